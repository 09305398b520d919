"""What ComfyUI gets: the list of nodes, and all that is registered with them."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io
from server import PromptServer

from . import compare, cost, gate, lora, metadata, pairs, preferences, train, train_cost
from .shared import COST_FOLDER

NODES: list[type[io.ComfyNode]] = [
    lora.LoadSafetyLora,
    cost.LoadCostModel,
    cost.ScoreSafetyCost,
    gate.SafetyGate,
    gate.SafetySwitch,
    compare.CompareBeforeAfter,
    preferences.PreferenceFolder,
    pairs.MakePreferencePairs,
    train_cost.TrainCostModel,
    train.TrainSafetyLora,
]
"""Every node of the pack, in the order of the menu."""


class SafetyExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        return NODES


def open_door() -> SafetyExtension:
    """Make the pack ready: register what belongs to it, and hand over its nodes."""
    _register_folder()
    metadata.watch(PromptServer.instance)
    return SafetyExtension()


def _register_folder() -> None:
    """`models/safety_cost`, beside the folders that extra_model_paths.yaml names."""
    folder = Path(folder_paths.models_dir) / COST_FOLDER
    named = folder_paths.folder_names_and_paths.get(COST_FOLDER, ([], set()))[0]
    # ComfyUI's own function to add a folder leaves the set of file endings empty, which means any file.
    folder_paths.folder_names_and_paths[COST_FOLDER] = (
        list(dict.fromkeys([*named, str(folder)])),
        {".safetensors"},
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.info("%s cannot be made (%s); put cost models where you may write.", folder, error.strerror)
