"""Errors in the words of a graph: the core speaks of flags, a graph has inputs, outputs and settings."""

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
"""Flags of the command line -> the input of a node that means the same."""
_FLAG = re.compile(
    r"(?<!install\.py )(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?![\w-])(?: ([A-Z]{2,}\b))?"
)
_SCORER_FOLDER = re.compile(r"or name its folder: '([\w-]+)=FOLDER'")
_RESUME = re.compile(r"(?:, a training that has begun)? with --resume\b| \(--resume\)|--resume (?=goes on)")


class SafetyError(Exception):
    """What ComfyUI shows of an error of ours.

    ComfyUI shows a class together with its module, whose name begins with the path of this pack on the disk.
    """


SafetyError.__module__ = "scdpo"


def in_graph_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function raise `SafetyError` in the words of a graph instead of `ScdpoError`."""

    @wraps(function)
    def speaks(*args: Any, **named: Any) -> Any:
        try:
            return function(*args, **named)
        except ScdpoError as error:
            raise SafetyError(without_flags(str(error))) from None

    return speaks


def without_flags(message: str) -> str:
    """A message that names inputs of nodes, or keys of their settings, where it named flags."""
    message = _SCORER_FOLDER.sub(r"or put its folder into models/safety_cost and call it '\1'", message)
    message = message.replace("(--width and --height)", "(a lower resolution)")
    message = _RESUME.sub(lambda found: "running it again " if found[0].endswith(" ") else "", message)
    return _FLAG.sub(_spoken, message)


def _spoken(found: re.Match[str]) -> str:
    flag, value = found[1], f' = "{found[2]}"' if found[2] else ""
    if flag in _INPUTS:
        return _INPUTS[flag]
    if flag == "resume":
        return "run it again"
    known = flag.removeprefix("no-").replace("-", "_")
    if section := _sections().get(known):
        value = " = false" if flag.startswith("no-") else value
        return f"'{known}{value}' under [{section}] in settings"
    return f"'{known}{value}' in settings"


@cache
def _sections() -> dict[str, str]:
    """Each of the trainer's settings -> its section in the TOML of a job."""
    from ..scdpo_core.config.settings import TrainSettings

    sections = {part.name: getattr(TrainSettings(), part.name) for part in fields(TrainSettings)}
    return {key.name: name for name, section in sections.items() for key in fields(section)}
