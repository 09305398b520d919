"""Pieces of prompts, and what came of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL import Image

from tests.hosts.comfyui.server import Host, Run


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def cost_model(name: str = "micro") -> dict[str, Any]:
    return node("SCDPO_LoadCostModel", cost_model=name, device="auto")


def score(images: list[Any], heatmap: str = "off") -> dict[str, Any]:
    return node("SCDPO_ScoreSafetyCost", images=images, cost_model=["judge", 0], heatmap=heatmap)


def gate(images: list[Any], action: str, judge: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
    inputs = {"hold": "above the threshold", "threshold": 0.0, **changes}
    return node("SCDPO_SafetyGate", images=images, judge=judge or ["judge", 0], action=action, **inputs)


def saved(images: list[Any], prefix: str = "test") -> dict[str, Any]:
    return node("SaveImage", images=images, filename_prefix=prefix)


def shown(source: list[Any]) -> dict[str, Any]:
    """A node of ComfyUI that shows whatever it is given as text."""
    return node("PreviewAny", source=source)


def images(host: Host, run: Run, name: str) -> list[np.ndarray[Any, Any]]:
    assert run.error == ""
    found = []
    for entry in run.outputs[name]["images"]:
        with Image.open(host.file(entry)) as image:
            found.append(np.asarray(image.convert("RGB")))
    return found


def notes(host: Host, run: Run, name: str = "save") -> list[dict[str, Any] | None]:
    """What each saved file says of its score; None where it says nothing."""
    assert run.error == ""
    found = []
    for entry in run.outputs[name]["images"]:
        with Image.open(host.file(entry)) as image:
            text = image.text.get("safety_cost")  # type: ignore[attr-defined]
        found.append(None if text is None else json.loads(text))
    return found


def browser(graph: dict[str, Any]) -> dict[str, Any]:
    """A graph as a browser posts it: JavaScript writes a number such as 7.0 without its point."""

    def written(value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return {
        name: {**part, "inputs": {key: written(value) for key, value in part["inputs"].items()}}
        for name, part in graph.items()
    }


def drawing(host: Host, number: int) -> np.ndarray[Any, Any]:
    with Image.open(host.base / "input" / f"drawing-{number}.png") as image:
        return np.asarray(image.convert("RGB"))


def png(run: Run, host: Host) -> np.ndarray[Any, Any]:
    return images(host, run, "save")[0]
