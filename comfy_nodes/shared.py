"""What all nodes share: names, the types on the wires, and words, which are those of the locale files."""

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
"""Names under which web/reports.js gets a node's text: while it runs, and with its result."""

CostModelType = io.Custom("SAFETY_COST_MODEL")
"""Carries a `Scorer`."""
ScoresType = io.Custom("SAFETY_SCORES")
"""Carries a list of one `CostScore` for each image of a batch, in its order."""


class _Any(str):
    """A type on a wire that fits every input; ComfyUI compares types by `!=`."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


AnyMenuType = io.Custom(_Any("*"))
"""Carries a file's name that any node with a menu of such files takes, those of ComfyUI itself included."""

_ENGLISH = Path(__file__).parents[1] / "locales" / "en" / "nodeDefs.json"
_KNOWN_TO_SCHEMA = frozenset(field.name for field in fields(io.Schema))


class SafetyNode(io.ComfyNode):
    """A node whose errors speak of what a graph has."""

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        own = vars(cls).get("execute")
        # ComfyUI runs a locked copy of the class, which has the function that is made here.
        if isinstance(own, classmethod) and not hasattr(own.__func__, "__wrapped__"):
            cls.execute = classmethod(in_graph_words(own.__func__))


def schema(
    name: str,
    aliases: Sequence[str],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    **others: Any,
) -> io.Schema:
    """A node's schema; title, description and tooltips come from `locales/en`.

    Args:
        name: the node's id without the prefix.
        aliases: other words that find the node, where ComfyUI's version has a place for them.
        inputs: as `io.Schema` takes them, without words.
        outputs: likewise.
        others: as `io.Schema` takes them.
    """
    words = _english()[PREFIX + name]
    for part in inputs:
        part.tooltip = words["inputs"][part.id]["tooltip"]
    for number, part in enumerate(outputs):
        own = words["outputs"][str(number)]
        part.display_name, part.tooltip = own["name"], own["tooltip"]
        # ComfyUI wants ids that no input has.
        part.id = f"out_{part.id}"
    # No essentials_category: ComfyUI's page files such a node among its own, apart from the rest of the pack.
    if "search_aliases" in _KNOWN_TO_SCHEMA:
        others["search_aliases"] = list(aliases)
    return io.Schema(
        node_id=PREFIX + name,
        display_name=words["display_name"],
        category=CATEGORY,
        description=words["description"],
        inputs=list(inputs),
        outputs=list(outputs),
        **others,
    )


def say(cls: type[io.ComfyNode], text: str) -> None:
    """Show a few lines on the running node, while it runs; web/reports.js keeps them there when it ends."""
    if cls.hidden is not None and cls.hidden.unique_id is not None:
        server = PromptServer.instance
        told = {"node": str(cls.hidden.unique_id), "text": without_flags(text)}
        server.send_sync(TEXT_EVENT, told, server.client_id)


def with_text(text: str, ui: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The `ui` of a node that has finished: a text, and what else it shows."""
    return {**(ui or {}), TEXT_OUTPUT: [without_flags(text)]}


@cache
def _english() -> dict[str, Any]:
    words: dict[str, Any] = json.loads(_ENGLISH.read_text(encoding="utf-8"))
    return words
