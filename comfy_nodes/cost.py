"""Load Cost Model and Score Safety Cost."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..scdpo_core.cost.model import is_cost_file
from ..scdpo_core.cost.scorers import SCORERS, Scorer, load_scorer, offered_scorers
from ..scdpo_core.reports import wording
from . import preview
from .convert import to_mask
from .scoring import judged
from .shared import COST_FOLDER, CostModelType, SafetyNode, ScoresType, say, schema, with_text

HEATMAPS = {"off": (), "review and unsafe": ("review", "unsafe"), "all": ("safe", "review", "unsafe")}
"""Which bands get a heatmap."""
_KEPT = 2
_loaded: OrderedDict[tuple[str, str, str], Scorer] = OrderedDict()


class LoadCostModel(SafetyNode):
    """A scorer by name, or a cost model from `models/safety_cost`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node's inputs and outputs."""
        return schema(
            "LoadCostModel",
            ["nsfw detector", "safety checker", "content filter", "safety classifier", "load scorer"],
            inputs=[
                io.Combo.Input(
                    "cost_model",
                    options=cost_models(),
                    default="embedded",
                ),
                io.Combo.Input("device", options=["auto", "cpu"], default="auto"),
            ],
            outputs=[CostModelType.Output("cost_model")],
        )

    @classmethod
    def fingerprint_inputs(cls, cost_model: str, device: str) -> str:
        """Return a value that changes with the file."""
        return "/".join(_key(cost_model, device))

    @classmethod
    def execute(cls, cost_model: str, device: str) -> io.NodeOutput:
        """Load the scorer, unless it is loaded."""
        key = _key(cost_model, device)
        if key not in _loaded:
            _loaded[key] = load_scorer(spec_of(cost_model), _device(device))
            while len(_loaded) > _KEPT:
                _loaded.popitem(last=False)
        _loaded.move_to_end(key)
        return io.NodeOutput(_loaded[key])


class ScoreSafetyCost(SafetyNode):
    """A cost for each image of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node's inputs and outputs."""
        return schema(
            "ScoreSafetyCost",
            ["nsfw score", "safety score", "detect nsfw", "nudity detection", "content moderation"],
            inputs=[
                io.Image.Input("images"),
                CostModelType.Input("cost_model"),
                io.Combo.Input(
                    "heatmap",
                    options=list(HEATMAPS),
                    default="off",
                ),
            ],
            outputs=[
                io.Image.Output("images"),
                ScoresType.Output("scores"),
                io.Float.Output("costs", is_output_list=True),
                io.Float.Output("highest"),
                io.String.Output("categories"),
                io.Mask.Output("heatmap"),
                io.String.Output("report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Tensor, cost_model: Scorer, heatmap: str) -> io.NodeOutput:
        """Score the images and show them with badges."""
        pil_images, scores = judged(cost_model, images)
        report = wording.score_report(scores)
        say(cls, report)
        selected = [score.band in HEATMAPS[heatmap] for score in scores]
        return io.NodeOutput(
            images,
            scores,
            costs := [score.value if score.finite else math.inf for score in scores],
            max(costs),
            json.dumps([wording.score_json(score)["categories"] for score in scores]),
            _heat(pil_images, selected, cost_model, images.shape[1:3]),
            report,
            ui=with_text(report, preview.badges(pil_images, scores)),
        )


def cost_models() -> list[str]:
    """List the names of scorers and of the cost models in `models/safety_cost`."""
    return [*offered_scorers(), *(name for name in _files() if _is_cost_model(name))]


def _files() -> list[str]:
    registered = COST_FOLDER in folder_paths.folder_names_and_paths
    return folder_paths.get_filename_list(COST_FOLDER) if registered else []


def _is_cost_model(name: str) -> bool:
    """Return whether a file is a cost model; an image encoder may lie beside one."""
    path = folder_paths.get_full_path(COST_FOLDER, name)
    return path is not None and _is_cost_file_at(path, Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _is_cost_file_at(path: str, mtime_ns: int) -> bool:
    return is_cost_file(Path(path))


def spec_of(name: str) -> str:
    """Return what the core loads: a scorer's name, with its folder if that lies in `models/safety_cost`."""
    if name not in SCORERS:
        return folder_paths.get_full_path_or_raise(COST_FOLDER, name)  # type: ignore[no-any-return]
    folders = [Path(root) / name for root in folder_paths.get_folder_paths(COST_FOLDER)]
    found = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    return name if found is None else f"{name}={found}"


def _key(name: str, device: str) -> tuple[str, str, str]:
    changed = "" if name in SCORERS else str(Path(spec_of(name)).stat().st_mtime_ns)
    return name, changed, device


def _device(choice: str) -> str:
    return "cpu" if choice == "cpu" else str(comfy.model_management.get_torch_device())


def _heat(pil_images: Sequence[Any], selected: Sequence[bool], scorer: Scorer, size: Sequence[int]) -> Tensor:
    """Compute heatmaps [B, H, W], black where none is selected."""
    from ..scdpo_core.cost.attribution import explain

    heat = torch.zeros(len(pil_images), *size)
    bar = comfy.utils.ProgressBar(max(1, sum(selected)))
    for number, (image, is_selected) in enumerate(zip(pil_images, selected, strict=True)):
        if is_selected:
            comfy.model_management.throw_exception_if_processing_interrupted()
            heat[number] = to_mask([explain(scorer, image).image()])[0]
            bar.update(1)
    return heat
