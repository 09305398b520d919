"""Check how gates are wired: find nodes that get a gate's images without passing it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import nodes
from server import PromptServer

from .shared import PREFIX

EVENT = "scdpo.wiring"
"""Name under which web/reports.js receives what is wrong with a gate's wiring; '' if nothing is."""
GATE, SWITCH, SCORE = (f"{PREFIX}{name}" for name in ("SafetyGate", "SafetySwitch", "ScoreSafetyCost"))
_NAMED, _TITLE = 3, 60
"""Most nodes that a message names, and most characters of a name."""

Link = tuple[str, int]
"""An output: its node and its index among that node's outputs."""


@dataclass(frozen=True)
class NodeKind:
    """Outputs of a node class.

    Attributes:
        is_output: whether it saves or shows something.
        outputs: the types of its outputs.
    """

    is_output: bool
    outputs: tuple[str, ...]


def watch_prompts() -> None:
    """Check the wiring of each queued prompt, also where no gate will run."""
    PromptServer.instance.add_on_prompt_handler(_on_prompt)


def bypasses(prompt: Mapping[str, Any], kind_of: Callable[[str], NodeKind]) -> dict[str, list[str]]:
    """Return for each gate the nodes that save or show its images without passing it.

    Such a gate holds nothing back from them; and when one of them alone is run (partial execution), the
    gate does not run at all.

    Args:
        prompt: the queued prompt: node -> its class and inputs.
        kind_of: outputs of a class.
    """
    graph = _Graph({name: part for name, part in prompt.items() if isinstance(part, Mapping)}, kind_of)
    return {name: list(graph.users_past(name)) for name in graph.parts if graph.class_of(name) == GATE}


def feeds_only_switches(prompt: Mapping[str, Any] | None, gate: str) -> bool:
    """Return whether a gate's images go only to Safety Switches that this gate sets.

    Args:
        prompt: what ComfyUI runs: node -> its class and inputs.
        gate: the gate's key in it.
    """
    parts = [part for part in (prompt or {}).values() if isinstance(part.get("inputs"), Mapping)]
    users = [(part, name) for part in parts for name, link in part["inputs"].items() if link == [gate, 0]]
    return bool(users) and all(
        (part.get("class_type"), name, part["inputs"].get("any_held")) == (SWITCH, "if_safe", [gate, 2])
        for part, name in users
    )


class _Graph:
    """A prompt with its links from outputs to users."""

    def __init__(self, parts: Mapping[str, Mapping[str, Any]], kind_of: Callable[[str], NodeKind]) -> None:
        self.parts, self._kind_of = parts, kind_of
        self._users: dict[Link, list[str]] = {}
        for name in parts:
            for value in self.inputs(name).values():
                if (link := _link(value)) is not None:
                    self._users.setdefault(link, []).append(name)

    def class_of(self, name: str) -> str:
        return str(self.parts[name].get("class_type")) if name in self.parts else ""

    def inputs(self, name: str) -> Mapping[str, Any]:
        inputs = self.parts[name].get("inputs")
        return inputs if isinstance(inputs, Mapping) else {}

    def users_past(self, gate: str) -> Iterator[str]:
        """Yield nodes that save or show the images this gate judges, reached through no gate."""
        source = self._source(gate)
        pending, visited = [source] if source is not None else [], {source}
        reported: set[str] = set()
        while pending:
            for name in self._users.get(pending.pop(), ()):
                if self._is_gated(name):
                    continue
                kind = self._kind_of(self.class_of(name))
                if kind.is_output and not self.class_of(name).startswith(PREFIX) and name not in reported:
                    reported.add(name)
                    yield name
                further = {(name, slot) for slot, carried in enumerate(kind.outputs) if carried in _IMAGES}
                pending += further - visited
                visited |= further

    def _is_gated(self, name: str) -> bool:
        """Return whether a node holds images back: a gate, or a switch that a gate sets."""
        setter = _link(self.inputs(name).get("any_held"))
        return self.class_of(name) == GATE or (
            self.class_of(name) == SWITCH and setter is not None and self.class_of(setter[0]) == GATE
        )

    def _source(self, gate: str) -> Link | None:
        """Return where a gate's images come from; Score Safety Cost passes them on unchanged."""
        link = _link(self.inputs(gate).get("images"))
        for _ in self.parts:
            if link is None or link[1] != 0 or self.class_of(link[0]) != SCORE:
                break
            link = _link(self.inputs(link[0]).get("images"))
        return link


_IMAGES = ("IMAGE", "*")


def _link(value: Any) -> Link | None:
    """Return an input's value if it is a link; prompts are untrusted."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int:
        return value[0], value[1]
    return None


def _kind_of(name: str) -> NodeKind:
    node = nodes.NODE_CLASS_MAPPINGS.get(name)
    if node is None:
        return NodeKind(False, ())
    return NodeKind(
        bool(getattr(node, "OUTPUT_NODE", False)), tuple(map(str, getattr(node, "RETURN_TYPES", ()) or ()))
    )


def _on_prompt(data: dict[str, Any]) -> dict[str, Any]:
    """Report to each gate of a prompt which nodes bypass it; returns the prompt unchanged."""
    prompt = data.get("prompt")
    if isinstance(prompt, Mapping):
        client = data.get("client_id")
        for gate, users in bypasses(prompt, _kind_of).items():
            text = _words(prompt, users)
            PromptServer.instance.send_sync(EVENT, {"node": gate, "text": text}, client)
            if text:
                logging.warning("Safety Gate (%s): %s", gate, text)
    return data


def _words(prompt: Mapping[str, Any], users: list[str]) -> str:
    if not users:
        return ""
    more = f" and {len(users) - _NAMED} more" if len(users) > _NAMED else ""
    names = ", ".join(_title(prompt[name], name) for name in users[:_NAMED])
    verb, them = ("gets", "it") if len(users) == 1 else ("get", "them")
    return (
        f"Not gated: {names}{more} {verb} these images from before this gate. "
        f"Connect the gate's images output to {them}."
    )


def _title(part: Mapping[str, Any], name: str) -> str:
    meta = part.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    label = title if isinstance(title, str) and title else str(part.get("class_type"))
    return f"{' '.join(label.split())[:_TITLE]} ({name[:_TITLE]})"
