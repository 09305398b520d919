"""Names, link types and texts that all nodes share; texts come from the locale files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from server import PromptServer

from .errors import in_graph_words, without_flags

PREFIX = "SCDPO_"
CATEGORY = "Safety (SC-DPO)"
COST_FOLDER = "safety_cost"
TEXT_EVENT, TEXT_OUTPUT = "scdpo.text", "scdpo_text"
"""Names under which web/reports.js receives a node's text: while it runs, and with its result."""

CostModelType = io.Custom("SAFETY_COST_MODEL")
"""Carries a `Scorer`."""
ScoresType = io.Custom("SAFETY_SCORES")
"""Carries a list of one `CostScore` for each image of a batch, in its order."""


class _Any(str):
    """A link type that fits every input; ComfyUI compares types by `!=`."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


AnyMenuType = io.Custom(_Any("*"))
"""Carries a file name for any node with a menu of such files, ComfyUI's own included."""

_ENGLISH = Path(__file__).parents[1] / "locales" / "en" / "nodeDefs.json"
_KNOWN_TO_SCHEMA = frozenset(field.name for field in fields(io.Schema))


class SafetyNode(io.ComfyNode):
    """A node whose error messages name inputs instead of command line flags."""

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        execute = vars(cls).get("execute")
        # ComfyUI runs a locked copy of the class, which includes the function set here.
        if isinstance(execute, classmethod) and not hasattr(execute.__func__, "__wrapped__"):
            cls.execute = classmethod(in_graph_words(execute.__func__))


def schema(
    name: str,
    aliases: Sequence[str],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    **others: Any,
) -> io.Schema:
    """Make a node's schema; title, description and tooltips come from `locales/en`.

    Args:
        name: the node's id without the prefix.
        aliases: search terms, for ComfyUI versions that support them.
        inputs: as `io.Schema` takes them, without texts.
        outputs: the same for outputs.
        others: as `io.Schema` takes them.
    """
    texts = _english()[PREFIX + name]
    for part in inputs:
        part.tooltip = texts["inputs"][part.id]["tooltip"]
    for number, part in enumerate(outputs):
        output_words = texts["outputs"][str(number)]
        part.display_name, part.tooltip = output_words["name"], output_words["tooltip"]
        # ComfyUI requires ids that differ from those of inputs.
        part.id = f"out_{part.id}"
    # No essentials_category: ComfyUI would list such a node among its own, apart from the pack.
    if "search_aliases" in _KNOWN_TO_SCHEMA:
        others["search_aliases"] = list(aliases)
    return io.Schema(
        node_id=PREFIX + name,
        display_name=texts["display_name"],
        category=CATEGORY,
        description=texts["description"],
        inputs=list(inputs),
        outputs=list(outputs),
        **others,
    )


def say(cls: type[io.ComfyNode], text: str) -> None:
    """Show text on the running node; web/reports.js keeps it there when the node ends."""
    if cls.hidden is not None and cls.hidden.unique_id is not None:
        server = PromptServer.instance
        message = {"node": str(cls.hidden.unique_id), "text": without_flags(text)}
        server.send_sync(TEXT_EVENT, message, server.client_id)


def with_text(text: str, ui: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the `ui` of a finished node: a text, and the rest of its output."""
    return {**(ui or {}), TEXT_OUTPUT: [without_flags(text)]}


@cache
def _english() -> dict[str, Any]:
    texts: dict[str, Any] = json.loads(_ENGLISH.read_text(encoding="utf-8"))
    return texts
