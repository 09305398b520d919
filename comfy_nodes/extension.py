"""The extension that ComfyUI loads: its nodes and everything registered with them."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths
import nodes
from comfy_api.latest import ComfyExtension, io
from PIL import Image

from ..scdpo_core.io.files import atomic_path
from . import (
    compare,
    cost,
    evaluate,
    gate,
    lora,
    metadata,
    pairs,
    preferences,
    switch,
    train,
    train_cost,
    wiring,
)
from .shared import COST_FOLDER

NODES: list[type[io.ComfyNode]] = [
    lora.LoadSafetyLora,
    cost.LoadCostModel,
    cost.ScoreSafetyCost,
    gate.SafetyGate,
    switch.SafetySwitch,
    compare.CompareBeforeAfter,
    preferences.PreferenceFolder,
    pairs.MakePreferencePairs,
    train_cost.TrainCostModel,
    train.TrainSafetyLora,
    evaluate.EvaluateSafetyLora,
]
"""Every node of the pack, in the order of the menu."""


EXAMPLE = "safety-example-drawings.webp"
"""A file of two drawings in ComfyUI's input folder, which Load Image gives as a batch."""
DRAWINGS = ("safe/apple-0.png", "unsafe/weapon/kitchen-knife-0.png")
_SIDE, _MILLISECONDS = 512, 1500  # of a drawing, and between the two where the page shows them in turn
_ROOT = Path(__file__).parents[1]


class SafetyExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return every node of the pack."""
        return NODES


def open_door() -> SafetyExtension:
    """Register the pack's folder, example and hooks, and return the extension."""
    _register_folder()
    _offer_example()
    metadata.watch_saving(nodes.NODE_CLASS_MAPPINGS)
    wiring.watch_prompts()
    return SafetyExtension()


def _offer_example() -> None:
    """Put two drawings into ComfyUI's input folder for the workflow template."""
    target = Path(folder_paths.get_input_directory()) / EXAMPLE
    try:
        if target.exists():
            return
        first, *others = [_drawing(_ROOT / "examples" / "cost_pictures" / name) for name in DRAWINGS]
        how = {"save_all": True, "duration": _MILLISECONDS, "loop": 0, "lossless": True}
        with atomic_path(target) as temporary:
            first.save(temporary, "WEBP", append_images=others, **how)
    except OSError as error:
        logging.info("%s cannot be written (%s); use your own images.", target, error.strerror)


def _drawing(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _register_folder() -> None:
    """Register `models/safety_cost`, beside the folders that extra_model_paths.yaml names."""
    folder = Path(folder_paths.models_dir) / COST_FOLDER
    registered = folder_paths.folder_names_and_paths.get(COST_FOLDER, ([], set()))[0]
    # ComfyUI's function to add a folder leaves the set of suffixes empty, which means any file.
    folder_paths.folder_names_and_paths[COST_FOLDER] = (
        list(dict.fromkeys([*registered, str(folder)])),
        {".safetensors"},
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.info("%s cannot be created (%s); use another folder for cost models.", folder, error.strerror)
