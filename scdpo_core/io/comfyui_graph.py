"""The prompt in a graph of ComfyUI: from the saved image back to the sampler that drew it, and to its words.

Graphs come from strangers: every node is read once, and depth, nodes and lengths are bounded.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .infotext import MAX_PROMPT, plain

_MAX_NODES = 5000
_MAX_DEPTH = 100
_MAX_VISITS = 20_000
"""Nodes that are looked at on the way up from all saved images together."""
# How a sampler knows its prompt, the best first.
_CONDITIONS = ("positive", "guider", "cond1", "conditioning", "conds", "basic_pipe", "pipe", "context")
_WHOLE_CONDITIONS = ("conditioning_to", "conditioning", "positive", "conditioning_1", "conditioning_2")
_SAMPLER = re.compile(r"sampl|guider|detailer|upscale", re.IGNORECASE)
# These redraw parts of an image that another sampler drew.
_DETAILER = re.compile(r"detailer", re.IGNORECASE)
_ENCODER = re.compile(r"text_?encode|prompt", re.IGNORECASE)
_TEXTS = (
    "populated_text",
    "text_positive",
    "positive_prompt",
    "text",
    "text_g",
    "t5xxl",
    "llama",
    "user_prompt",
    "bert",
    "tags",
    "text_l",
    "clip_l",
    "clip_g",
    "prompt",
    "positive",
    "string",
    "value",
    "wildcard_text",
    "text_0",
    "result",
)
_JOIN = re.compile(r"concat|join|combine|append|merge|function", re.IGNORECASE)
_PIECE = re.compile(r"(?:text|string|str|prompt|input)s?_?(?:[a-h]|\d{1,2})", re.IGNORECASE)
_SEPARATORS = ("delimiter", "separator", "sep")
_ANY_TEXT = re.compile(r"text|prompt|string|input|any|value|source|output", re.IGNORECASE)
_NO_TEXT = re.compile(r"neg|prefix|name|system|encoder|model|seed|mode|image", re.IGNORECASE)
# Inputs that lead to something else than the image that a node works on.
_NO_IMAGE = re.compile(
    r"pos|neg|cond|guider|model|clip|vae|noise|sigma|sampler|mask|control|text|prompt|seed", re.IGNORECASE
)
_UNDECIDED = re.compile(r"\{[^{}|]*\||__[\w/*-]{1,100}__")


def prompt_of_graph(graph: Mapping[str, Any]) -> str:
    """Return the prompt that the first pass of the saved image was drawn for; '' if none is found.

    Args:
        graph: in the API's format, nodes by id.
    """
    nodes = {
        str(name): node
        for name, node in graph.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    if not nodes or len(nodes) > _MAX_NODES:
        return ""
    reader = _Reader(nodes)
    for name in _samplers(nodes):
        text = reader.words_for(name)
        if text:
            # A wildcard's choice is not in the graph, so the image's prompt is unknown.
            return "" if _UNDECIDED.search(text) else plain(text)
    return ""


def _samplers(nodes: Mapping[str, Any]) -> Iterator[str]:
    """Yield the nodes that may know the prompt, the most trustworthy first."""
    used = {link for node in nodes.values() for link in _links(node).values()}
    ends = [name for name in nodes if name not in used] or list(nodes)
    ends.sort(key=lambda name: (_rank(_kind(nodes[name])), name))
    way = _Way(nodes)
    for end in ends:
        sampler = way.first_sampler(end)
        if sampler is not None:
            yield sampler
    others = [name for name in nodes if "positive" in nodes[name]["inputs"]]
    yield from (name for name in others if not _DETAILER.search(_kind(nodes[name])))
    yield from others
    yield from (name for name in nodes if "guider" in nodes[name]["inputs"])


def _rank(kind: str) -> int:
    """Rank saved images before those that are only shown."""
    if "save" in kind.lower() or "combine" in kind.lower():
        return 0
    return 1 if "preview" in kind.lower() else 2


@dataclass
class _Way:
    """Goes up from saved images along images and latents.

    Attributes:
        nodes: of the graph.
        visits: nodes that may still be looked at; a graph may have thousands of ends over one long chain.
    """

    nodes: Mapping[str, Any]
    visits: int = _MAX_VISITS

    def first_sampler(self, end: str) -> str | None:
        """Return the sampler of the first pass: follow the images upstream until the path forks."""
        nearest = self._samplers_above(end)
        if not nearest:
            return None
        sampler, visited = nearest[0], set(nearest[:1])
        for _ in range(_MAX_DEPTH):
            above = [name for name in self._samplers_above(sampler) if name not in visited]
            if len(above) != 1 and not (above and _DETAILER.search(_kind(self.nodes[sampler]))):
                break
            sampler = above[0]
            visited.add(sampler)
        return sampler

    def _samplers_above(self, below: str) -> list[str]:
        """Return the nearest nodes upstream that draw for a prompt."""
        samplers: list[str] = []
        waiting, visited = deque([below]), {below}
        while waiting and self.visits > 0:
            links = _links(self.nodes[waiting.popleft()])
            self.visits -= 1 + len(links)
            for name, link in links.items():
                if link in visited or link not in self.nodes or _NO_IMAGE.search(name):
                    continue
                visited.add(link)
                if _draws(self.nodes[link]):
                    samplers.append(link)
                else:
                    waiting.append(link)
        return samplers


def _draws(node: Mapping[str, Any]) -> bool:
    inputs = node["inputs"]
    if "guider" in inputs or "positive" in inputs:
        return isinstance(inputs.get("guider", inputs.get("positive")), list | str)
    return bool(_SAMPLER.search(_kind(node))) and any(name in inputs for name in _CONDITIONS)


def _links(node: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: str(value[0])
        for name, value in node["inputs"].items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)
    }


def _kind(node: Mapping[str, Any]) -> str:
    kind = node.get("class_type")
    return kind if isinstance(kind, str) else ""


@dataclass
class _Reader:
    """Reads the words behind conditions; every node once.

    Attributes:
        nodes: of the graph.
        known: words of the nodes that were read, '' while one is being read.
    """

    nodes: Mapping[str, Any]
    known: dict[str, str] = field(default_factory=dict)

    def words_for(self, sampler: str) -> str:
        """Return the words of a sampler's prompt."""
        inputs = self.nodes[sampler]["inputs"]
        for name in _CONDITIONS:
            text = self._words(inputs.get(name), 0)
            if text:
                return text
        return ""

    def _words(self, value: Any, depth: int) -> str:
        """Return the words that an input holds or is linked to."""
        if isinstance(value, str):
            return value if len(value) <= MAX_PROMPT else ""
        # A converted widget holds its text in such a record.
        if isinstance(value, dict):
            inner = value.get("__value__", value.get("content"))
            return inner if isinstance(inner, str) and len(inner) <= MAX_PROMPT else ""
        if depth > _MAX_DEPTH or not isinstance(value, list) or not value:
            return ""
        name = str(value[0])
        if name not in self.nodes:
            return ""
        if name not in self.known:
            self.known[name] = ""
            self.known[name] = self._of_node(self.nodes[name], depth + 1)
        return self.known[name]

    def _of_node(self, node: Mapping[str, Any], depth: int) -> str:
        inputs, kind = node["inputs"], _kind(node)
        if kind == "ConditioningConcat":
            both = [self._words(inputs.get(f"conditioning_{end}"), depth) for end in ("to", "from")]
            return _joined([text for text in both if text], ", ")
        if kind == "ConditioningCombine":
            return self._whole(inputs, depth)
        pieces = [name for name in inputs if _PIECE.fullmatch(name)]
        if len(pieces) > 1 and _JOIN.search(kind):
            texts = [self._words(inputs[name], depth) for name in sorted(pieces, key=_by_number)]
            return _joined([text for text in texts if text], self._separator(inputs, kind))
        names = [*_WHOLE_CONDITIONS, *_CONDITIONS] if not _encodes(node) else []
        names += [*_TEXTS, *_CONDITIONS]
        names += [name for name in inputs if _ANY_TEXT.search(name) and not _NO_TEXT.search(name)]
        names += [name for name in inputs if name.startswith("conditioning")]
        for name in dict.fromkeys(names):
            text = self._words(inputs.get(name), depth) if name in inputs else ""
            if text.strip():
                return text
        return ""

    def _whole(self, inputs: Mapping[str, Any], depth: int) -> str:
        """Return the prompt for the whole image, of several that share it; else the first."""
        links = [inputs.get(f"conditioning_{number}") for number in (1, 2)]
        texts = [self._words(link, depth) for link in links]
        complete = [
            text for link, text in zip(links, texts, strict=True) if text and not self._is_for_an_area(link)
        ]
        return next(iter([*complete, *filter(None, texts)]), "")

    def _is_for_an_area(self, link: Any) -> bool:
        for _ in range(_MAX_DEPTH):
            if not isinstance(link, list) or not link or str(link[0]) not in self.nodes:
                return False
            node = self.nodes[str(link[0])]
            if re.search(r"area|mask", _kind(node), re.IGNORECASE):
                return True
            link = node["inputs"].get("conditioning", node["inputs"].get("conditioning_2"))
        return False

    def _separator(self, inputs: Mapping[str, Any], kind: str) -> str:
        for name in _SEPARATORS:
            if isinstance(inputs.get(name), str) and len(inputs[name]) <= 16:
                text: str = inputs[name]
                return text.replace("\\n", "\n")
        return "" if "function" in kind.lower() else " "


def _encodes(node: Mapping[str, Any]) -> bool:
    return "clip" in node["inputs"] and bool(_ENCODER.search(_kind(node)))


def _joined(texts: list[str], separator: str) -> str:
    return separator.join(texts) if sum(map(len, texts)) <= MAX_PROMPT else ""


def _by_number(name: str) -> tuple[str, int]:
    digits = re.search(r"\d+$", name)
    return (name[: digits.start()], int(digits[0])) if digits else (name, 0)
