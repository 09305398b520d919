"""Graphs with the nodes that make pairs and train, for tests on a real ComfyUI."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

from tests.hosts.comfyui.graphs import node
from tests.hosts.comfyui.server import ROOT, Host, Run

EXAMPLE = "example: drawings"
FEW_IMAGES = "[terms]\nkeep_images = 2\n"
"""Settings: the base model draws so few images for the objective that is the default."""


def folder_node(path: str = "", **changes: Any) -> dict[str, Any]:
    return node("SCDPO_PreferenceFolder", folder=EXAMPLE, path=path, shown=4, **changes)


def lora_node(name: str, **changes: Any) -> dict[str, Any]:
    inputs = {
        "checkpoint": "micro",
        "pairs": ["pairs", 0],
        "output_name": name,
        "quality": "fast",
        "steps": 3,
        "rank": 4,
        "learning_rate": 0.0,
        "resolution": 0,
        "cost_model": "none",
        "settings": "[sampling]\nsample_steps = 2\nsamples = 2\n[optim]\nbatch_size = 2\n" + FEW_IMAGES,
    }
    return node("SCDPO_TrainSafetyLora", **{**inputs, **changes})


def in_background(host: Host, graph: dict[str, Any]) -> tuple[threading.Thread, list[Run]]:
    ended: list[Run] = []
    thread = threading.Thread(target=lambda: ended.append(host.run(graph)))
    thread.start()
    return thread, ended


def in_background_quietly(host: Host, graph: dict[str, Any]) -> tuple[threading.Thread, list[Run]]:
    """As `in_background`, of a host that will not live to answer."""

    def run() -> None:
        try:
            host.run(graph)
        except (ConnectionError, OSError):
            return

    thread = threading.Thread(target=run)
    thread.start()
    return thread, []


def copied_pairs(folder: Path, count: int = 6) -> Path:
    """Some of the example's pairs, in a folder that a test may change."""
    source = ROOT / "examples" / "preferences"
    for chosen in sorted((source / "chosen" / "weapon").glob("*.png"))[:count]:
        for side in ("chosen", "rejected"):
            (folder / side / "weapon").mkdir(parents=True, exist_ok=True)
            for file in (source / side / "weapon").glob(f"{chosen.stem}.*"):
                shutil.copy(file, folder / side / "weapon" / file.name)
    return folder
