"""What ComfyUI gets: the list of nodes, and all that is registered with them."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths
import nodes
from comfy_api.latest import ComfyExtension, io

from ..scdpo_core.files import copy_file
from . import compare, cost, gate, lora, metadata, pairs, preferences, switch, train, train_cost, wiring
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
]
"""Every node of the pack, in the order of the menu."""


EXAMPLES = {
    "safety-example-apple.png": "examples/cost_pictures/safe/apple-0.png",
    "safety-example-knife.png": "examples/cost_pictures/unsafe/weapon/kitchen-knife-0.png",
}
"""Names in ComfyUI's input folder -> drawings of this pack."""
_ROOT = Path(__file__).parents[1]


class SafetyExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        return NODES


def open_door() -> SafetyExtension:
    """Make the pack ready: register what belongs to it, and hand over its nodes."""
    _register_folder()
    _offer_examples()
    metadata.watch_saving(nodes.NODE_CLASS_MAPPINGS)
    wiring.watch_prompts()
    return SafetyExtension()


def _offer_examples() -> None:
    """Two drawings in ComfyUI's input folder, where the menu of Load Image finds them for the templates."""
    for name, source in EXAMPLES.items():
        target = Path(folder_paths.get_input_directory()) / name
        try:
            if not target.exists():
                copy_file(_ROOT / source, target)
        except OSError as error:
            logging.info("%s cannot be written (%s); choose images of your own.", target, error.strerror)


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
