"""Scores in the metadata of every image that is saved behind a node, by the normal Save Image.

Save Image writes each entry of the prompt's `extra_pnginfo` into its file, so a node that scores adds one.
A node whose result ComfyUI reuses does not run, however, and each prompt comes with an `extra_pnginfo` of its
own: so what was found last is kept, by what the node depends on, and put into each new prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from ..scdpo_core.scoring.words import facts
from ..scdpo_core.types import CostScore
from .shared import PREFIX

KEY = "safety_cost"
"""Of the PNG's text, as `trainer/score.py` writes it."""

_MOST = 256
_found: OrderedDict[str, dict[str, Any]] = OrderedDict()


def note(scores: Sequence[CostScore], done: Mapping[int, str] | None = None) -> dict[str, Any]:
    """What is written: the highest cost, and each image of the batch in its order.

    Args:
        scores: of the images as they leave the node; at least one.
        done: image -> what became of it, such as 'blur'.
    """
    images = [facts(score) for score in scores]
    for number, action in (done or {}).items():
        images[number]["action"] = action
    highest = max(range(len(scores)), key=lambda k: scores[k].value)
    scorer = f"{scores[0].scorer}@{scores[0].scorer_hash}"
    return {**facts(scores[highest]), "scorer": scorer, "images": images}


def write(cls: type[io.ComfyNode], value: dict[str, Any]) -> None:
    """Add a note to this prompt's images, and keep it for prompts in which the node's result is reused."""
    if cls.hidden is None or cls.hidden.unique_id is None:
        return
    node = str(cls.hidden.unique_id)
    _found[_lineage(cls.hidden.prompt or {}, node)] = value
    while len(_found) > _MOST:
        _found.popitem(last=False)
    if cls.hidden.extra_pnginfo is not None:
        _put(cls.hidden.extra_pnginfo, node, value)


def watch(server: Any) -> None:
    """Look at each prompt before it runs."""
    server.add_on_prompt_handler(recall)


def recall(request: dict[str, Any]) -> dict[str, Any]:
    """A request for a prompt, with what is known already of nodes that ComfyUI may not run again."""
    prompt = request.get("prompt")
    if not isinstance(prompt, dict):
        return request
    ours = [node for node, what in prompt.items() if str(what.get("class_type", "")).startswith(PREFIX)]
    if not ours:
        return request
    # Programs that use the API may leave these out; Save Image needs them to be there.
    extra = request.setdefault("extra_data", {})
    info = extra["extra_pnginfo"] = extra.get("extra_pnginfo") or {}
    for node in ours:
        if known := _found.get(_lineage(prompt, node)):
            _put(info, node, known)
    return request


def _put(info: dict[str, Any], node: str, value: dict[str, Any]) -> None:
    """The first node gets the plain key, others one with their number."""
    held = info.get(KEY)
    own = KEY if held is None or held.get("node") == node else f"{KEY}_{node}"
    info[own] = {**value, "node": node}


def _lineage(prompt: Mapping[str, Any], node: str, known: dict[str, str] | None = None) -> str:
    """A hash of a node and all that it depends on; like ComfyUI's own, whatever the nodes' numbers are."""
    known = {} if known is None else known
    if node not in known:
        known[node] = ""  # should it depend on itself, which ComfyUI refuses later
        what = prompt.get(node)
        if isinstance(what, Mapping):
            inputs = {}
            for name, value in what.get("inputs", {}).items():
                linked = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
                inputs[name] = [_lineage(prompt, value[0], known), value[1]] if linked else value
            told = json.dumps([what.get("class_type"), inputs], sort_keys=True, default=str)
            known[node] = hashlib.sha256(told.encode()).hexdigest()
    return known[node]
