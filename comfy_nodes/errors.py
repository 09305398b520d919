"""Rewrite the core's error messages for a graph: inputs and settings instead of command line flags."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from functools import cache, wraps
from typing import Any

from ..scdpo_core.types import ScdpoError

_INPUTS = {
    "base": "checkpoint",
    "pairs": "pairs",
    "output": "output_name",
    "cost-model": "cost_model",
    "width": "resolution",
    "height": "resolution",
    "rank": "rank",
    "lr": "learning_rate",
    "max-train-steps": "steps",
    "steps": "steps",
    "unsafe": "unsafe",
    "safe": "safe",
    "benign": "benign",
    "encoder": "encoder",
}
"""Command line flag -> the node input with the same meaning."""
_FLAG = re.compile(
    r"(?<!install\.py )(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?![\w-])(?: ([A-Z]{2,}\b))?"
)
_SCORER_FOLDER = re.compile(r"or give its folder: '([\w-]+)=FOLDER'")
_RESUME = re.compile(r"(?:, a training that has begun)? with --resume\b| \(--resume\)|--resume (?=goes on)")


class SafetyError(Exception):
    """An error as ComfyUI shows it.

    ComfyUI shows a class together with its module, whose name begins with the path of this pack on the disk.
    """


SafetyError.__module__ = "scdpo"


def in_graph_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function raise `SafetyError` with a rewritten message instead of `ScdpoError`."""

    @wraps(function)
    def speaks(*args: Any, **named: Any) -> Any:
        try:
            return function(*args, **named)
        except ScdpoError as error:
            raise SafetyError(without_flags(str(error))) from None

    return speaks


def without_flags(message: str) -> str:
    """Replace flags in a message by node inputs, or by keys of the node's settings."""
    message = _SCORER_FOLDER.sub(r"or put its folder into models/safety_cost and call it '\1'", message)
    message = message.replace("(--width and --height)", "(a lower resolution)")
    message = _RESUME.sub(lambda found: "running it again " if found[0].endswith(" ") else "", message)
    return _FLAG.sub(_input_for, message)


def _input_for(match: re.Match[str]) -> str:
    flag, value = match[1], f' = "{match[2]}"' if match[2] else ""
    if flag in _INPUTS:
        return _INPUTS[flag]
    if flag == "resume":
        return "run it again"
    key = flag.removeprefix("no-").replace("-", "_")
    if section := _sections().get(key):
        value = " = false" if flag.startswith("no-") else value
        return f"'{key}{value}' under [{section}] in settings"
    return f"'{key}{value}' in settings"


@cache
def _sections() -> dict[str, str]:
    """Map each of the trainer's settings to its section in the TOML of a job."""
    from ..scdpo_core.config.settings import TrainSettings

    sections = {part.name: getattr(TrainSettings(), part.name) for part in fields(TrainSettings)}
    return {key.name: name for name, section in sections.items() for key in fields(section)}
