"""Safety Gate and Safety Switch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from ..scdpo_core.cost.protocol import Scorer
from ..scdpo_core.scoring import words
from ..scdpo_core.scoring.gate import COVERS, HOLDS, covered, held_back, remains
from ..scdpo_core.types import CostScore, ScdpoError
from . import metadata, preview
from .convert import enlarged, in_threads, to_images, to_pictures
from .judging import scores_of
from .shared import CostModelType, ScoresType, say, schema

_ENLARGED = {"blur": "linear", "pixelate": "nearest-exact"}
"""How the pixels that a cover lets through fill the image again."""

ACTIONS = ["blur", "pixelate", "replace", "drop", "stop", "pass"]


class SafetyGate(io.ComfyNode):
    """Holds back images whose cost is too high, one by one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        return schema(
            "SafetyGate",
            ["nsfw filter", "nsfw blocker", "censor", "blur nsfw", "content filter", "safety filter"],
            inputs=[
                io.Image.Input("images"),
                io.MultiType.Input("judge", types=[CostModelType, ScoresType]),
                io.Combo.Input("action", options=ACTIONS, default="blur"),
                io.Combo.Input(
                    "hold",
                    options=list(HOLDS),
                    default="above the threshold",
                ),
                io.Float.Input("threshold", default=0.0, min=-20.0, max=20.0, step=0.1),
                io.Image.Input("replacement", optional=True),
            ],
            outputs=[
                io.Image.Output("images"),
                io.Image.Output("held"),
                io.Boolean.Output("any_held"),
                io.Mask.Output("mask"),
                io.Int.Output("passed_indexes", is_output_list=True),
                io.Int.Output("held_indexes", is_output_list=True),
                io.String.Output("report"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        judge: Scorer | list[CostScore],
        action: str,
        hold: str,
        threshold: float,
        replacement: Tensor | None = None,
    ) -> io.NodeOutput:
        """Judge, treat, preview, note."""
        pictures, scores = scores_of(judge, images)
        held = held_back(scores, hold, threshold)
        passed = [k for k in range(len(images)) if k not in held]
        report = _report(scores, held, action)
        say(cls, report)
        if held and action == "stop":
            raise ScdpoError(f"The Safety Gate stopped the run. {report}")
        out, shown = _treated(images, pictures, held, action, replacement)
        left = passed if action == "drop" else list(range(len(images)))
        if left:
            done = {place: action for place, k in enumerate(left) if k in held}
            metadata.write(cls, metadata.note([scores[k] for k in left], done))
        mask = torch.zeros(images.shape[:3])
        mask[held] = 1.0
        labels = [(f"{words.label(s)}{', held' if k in held else ''}", s.band) for k, s in enumerate(scores)]
        return io.NodeOutput(
            _some(out, left) if left else ExecutionBlocker(None),
            _some(images, held) if held else ExecutionBlocker(None),
            bool(held),
            mask,
            passed or [ExecutionBlocker(None)],
            held or [ExecutionBlocker(None)],
            report,
            ui=preview.badges(shown, labels),
        )


class SafetySwitch(io.ComfyNode):
    """Two branches, of which only the needed one is computed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        return schema(
            "SafetySwitch",
            ["if else", "lazy switch", "branch on nsfw", "conditional"],
            inputs=[
                io.Boolean.Input("any_held", default=False),
                io.AnyType.Input("if_safe", optional=True, lazy=True),
                io.AnyType.Input("if_held", optional=True, lazy=True),
            ],
            outputs=[io.AnyType.Output("chosen")],
        )

    @classmethod
    def check_lazy_status(cls, any_held: bool, **sides: Any) -> list[str]:
        """The one side that has to be computed, if it is connected."""
        side = _side(any_held)
        return [side] if side in sides and sides[side] is None else []

    @classmethod
    def execute(cls, any_held: bool, if_safe: Any = None, if_held: Any = None) -> io.NodeOutput:
        """Pass it on."""
        chosen = {"if_safe": if_safe, "if_held": if_held}[_side(any_held)]
        return io.NodeOutput(ExecutionBlocker(None) if chosen is None else chosen)


def _side(any_held: bool) -> str:
    return "if_held" if any_held else "if_safe"


def _treated(
    images: Tensor, pictures: Sequence[Image.Image], held: Sequence[int], action: str, other: Tensor | None
) -> tuple[Tensor, list[Image.Image]]:
    """The batch with held images hidden, and small pictures of it for the preview."""
    shown = preview.small(pictures)
    # A preview is a way out too: what is dropped shows as a blur.
    cover = "blur" if action == "drop" else action
    if not held or cover not in COVERS:
        return images, shown
    instead = None if other is None else to_pictures(other[:1])[0]
    seen = [shown[place] for place in held]
    for place, picture in zip(held, in_threads(lambda p: covered(p, cover, instead), seen), strict=True):
        shown[place] = picture
    if action == "drop":
        return images, shown
    height, width = images.shape[1:3]
    if cover in _ENLARGED:
        hidden = enlarged([remains(picture, cover) for picture in seen], height, width, _ENLARGED[cover])
    else:
        hidden = to_images([covered(pictures[held[0]], cover, instead)]).expand(len(held), -1, -1, -1)
    covers = _fitting(hidden, images)
    if len(held) == len(images):
        return covers, shown
    places = dict(zip(held, covers, strict=True))
    return torch.stack([places.get(place, image) for place, image in enumerate(images)]), shown


def _fitting(covers: Tensor, images: Tensor) -> Tensor:
    """[N, H, W, 3] with as many channels as the batch has, fully opaque, and where and as it lies."""
    more = images.shape[-1] - 3
    if more > 0:
        covers = torch.cat([covers, torch.ones(*covers.shape[:3], more)], dim=-1)
    return covers[..., : images.shape[-1]].to(images)


def _some(images: Tensor, places: Sequence[int]) -> Tensor:
    """Those of a batch; the batch itself, and no copy of it, if it is all of them."""
    return images if len(places) == len(images) else images[list(places)]


def _report(scores: Sequence[CostScore], held: Sequence[int], action: str) -> str:
    places = ", ".join(map(str, held))
    what = f"Held ({action}): {places}." if held else "Nothing was held."
    return f"{what}\n{words.report(scores)}"
