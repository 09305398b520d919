"""Safety Gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from ..scdpo_core.cost.protocol import Scorer
from ..scdpo_core.reports import wording
from ..scdpo_core.reports.covers import COVERS, covered, reduced
from ..scdpo_core.scoring.gate import HOLD_RULES, held_back
from ..scdpo_core.types import CostScore, ScdpoError
from . import metadata, preview
from .convert import enlarged, fingerprints, in_threads, to_images, to_pil_images
from .scoring import scores_of
from .shared import CostModelType, SafetyNode, ScoresType, say, schema, with_text
from .wiring import feeds_only_switches

_ENLARGED = {"blur": "linear", "pixelate": "nearest-exact"}
"""Interpolation that enlarges the few pixels of a cover."""

ACTIONS = ["blur", "pixelate", "replace", "drop", "stop", "pass"]


class SafetyGate(SafetyNode):
    """Holds back images whose cost is too high, one by one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node's inputs and outputs."""
        return schema(
            "SafetyGate",
            ["nsfw filter", "nsfw blocker", "censor", "blur nsfw", "content filter", "safety filter"],
            inputs=[
                io.Image.Input("images"),
                io.MultiType.Input("judge", types=[CostModelType, ScoresType]),
                io.Combo.Input("action", options=ACTIONS, default="blur"),
                io.Combo.Input(
                    "hold",
                    options=list(HOLD_RULES),
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
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
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
        """Score the images, hide the held ones, and show previews."""
        pil_images, scores = scores_of(judge, images)
        held = held_back(scores, hold, threshold)
        passed = [k for k in range(len(images)) if k not in held]
        report = _report(scores, held, action)
        say(cls, report)
        if held and action == "stop":
            raise ScdpoError(f"The Safety Gate stopped the run. {report}")
        out, previews = _treated(images, pil_images, held, action, replacement)
        remaining = passed if action == "drop" else list(range(len(images)))
        images_out = _some(out, remaining) if remaining else _nothing(cls, images, pil_images)
        if held and action in COVERS:
            _note_covers(images[held], out[held], [scores[k] for k in held], action)
        mask = torch.zeros(images.shape[:3])
        mask[held] = 1.0
        return io.NodeOutput(
            images_out,
            _some(images, held) if held else ExecutionBlocker(None),
            bool(held),
            mask,
            passed or [ExecutionBlocker(None)],
            held or [ExecutionBlocker(None)],
            report,
            ui=with_text(report, preview.badges(previews, scores, held)),
        )


def _treated(
    images: Tensor, pil_images: Sequence[Image.Image], held: Sequence[int], action: str, other: Tensor | None
) -> tuple[Tensor, list[Image.Image]]:
    """Return the batch with held images hidden, and small images of it for the preview."""
    previews = preview.small(pil_images)
    # Previews must not show held images either: dropped ones are blurred.
    cover = "blur" if action == "drop" else action
    if not held or cover not in COVERS:
        return images, previews
    replacement = None if other is None else to_pil_images(other[:1])[0]
    originals = [previews[index] for index in held]
    hidden_previews = in_threads(lambda p: covered(p, cover, replacement), originals)
    for index, pil_image in zip(held, hidden_previews, strict=True):
        previews[index] = pil_image
    if action == "drop":
        return images, previews
    height, width = images.shape[1:3]
    if cover in _ENLARGED:
        hidden = enlarged(
            [reduced(pil_image, cover) for pil_image in originals], height, width, _ENLARGED[cover]
        )
    else:
        hidden = to_images([covered(pil_images[held[0]], cover, replacement)]).expand(len(held), -1, -1, -1)
    covers = _fitting(hidden, images)
    if len(held) == len(images):
        return covers, previews
    cover_of = dict(zip(held, covers, strict=True))
    return torch.stack([cover_of.get(index, image) for index, image in enumerate(images)]), previews


def _note_covers(images: Tensor, covers: Tensor, scores: Sequence[CostScore], action: str) -> None:
    """Remember the scores of hidden images for the files that are saved of their covers.

    Connected scores may be those of other images; then nothing is remembered.
    """
    marks = zip(fingerprints(images), fingerprints(covers), scores, strict=True)
    for image, cover, score in marks:
        if metadata.belongs(image, score):
            metadata.remember(cover, metadata.note(score, action))


def _fitting(covers: Tensor, images: Tensor) -> Tensor:
    """Match covers [N, H, W, 3] to the batch's channels (fully opaque), dtype and device."""
    more = images.shape[-1] - 3
    if more > 0:
        covers = torch.cat([covers, torch.ones(*covers.shape[:3], more)], dim=-1)
    return covers[..., : images.shape[-1]].to(images)


def _some(images: Tensor, indices: Sequence[int]) -> Tensor:
    """Select images of a batch; returns the batch itself, not a copy, if all are selected."""
    return images if len(indices) == len(images) else images[list(indices)]


def _nothing(cls: type[io.ComfyNode], images: Tensor, pil_images: Sequence[Image.Image]) -> Any:
    """Return the output when all images are dropped: a blocker, so that nodes behind the gate do not run.

    A switch set by this gate must still run, because it takes its other side. ComfyUI would not run it
    with a blocked side, so that side gets covers, which the switch does not use.
    """
    if not feeds_only_switches(cls.hidden.prompt, str(cls.hidden.unique_id)):
        return ExecutionBlocker(None)
    return _treated(images, pil_images, range(len(images)), "blur", None)[0]


def _report(scores: Sequence[CostScore], held: Sequence[int], action: str) -> str:
    indices = ", ".join(map(str, held))
    what = f"Held ({action}): {indices}." if held else "Nothing was held."
    if action == "drop" and len(held) == len(scores):
        what += " All images were held, so nodes that need them do not run."
    return f"{what}\n{wording.score_report(scores)}"
