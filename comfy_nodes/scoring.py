"""Score a batch, few images at a time so that a run can be interrupted, or use connected scores."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image
from torch import Tensor

from ..scdpo_core.cost.protocol import Scorer
from ..scdpo_core.io.alpha_views import worst
from ..scdpo_core.types import CostScore
from . import metadata
from .convert import fingerprint, from_each, to_pil_images

_AT_ONCE = 16
"""Images between two checks for an interrupt: a large encoder on a CPU takes seconds for them."""


def judged(scorer: Scorer, images: Tensor) -> tuple[list[Image.Image], list[CostScore]]:
    """Return the images of a batch and their scores, in its order; shows progress on the node.

    Each image is converted and prepared in one step, in threads, while it is in the CPU's cache.
    Scores are remembered for the files that are saved of these images.

    Args:
        images: as `to_pil_images` takes them.

    Raises:
        InterruptProcessingException: the user has interrupted.
    """

    def prepared(looks: list[Image.Image], value: Any) -> tuple[Image.Image, list[Any], str]:
        return looks[0], [scorer.prepare(look) for look in looks], fingerprint(looks[0], value)

    bar = comfy.utils.ProgressBar(len(images))
    pil_images: list[Image.Image] = []
    scores: list[CostScore] = []
    for start in range(0, len(images), _AT_ONCE):
        comfy.model_management.throw_exception_if_processing_interrupted()
        prepared_images = from_each(images[start : start + _AT_ONCE], prepared)
        pil_images += [image for image, _, _ in prepared_images]
        costs = iter(scorer.score_prepared([view for _, inputs, _ in prepared_images for view in inputs]))
        # What is hidden under an image's alpha counts as well.
        batch_scores = [worst([next(costs) for _ in inputs]) for _, inputs, _ in prepared_images]
        for (_, _, mark), score in zip(prepared_images, batch_scores, strict=True):
            metadata.remember(mark, metadata.note(score))
        scores += batch_scores
        bar.update_absolute(len(scores))
    return pil_images, scores


def scores_of(judge: Scorer | list[CostScore], images: Tensor) -> tuple[list[Image.Image], list[CostScore]]:
    """Return the images of a batch and their scores, from a scorer or as connected.

    Raises:
        ValueError: the scores are those of another batch.
        InterruptProcessingException: the user has interrupted.
    """
    if not isinstance(judge, list):
        return judged(judge, images)
    if len(judge) != len(images):
        raise ValueError(
            f"There are {len(judge)} scores for {len(images)} images. Connect the scores and the images "
            "of one Score Safety Cost, or a cost model instead of the scores."
        )
    return to_pil_images(images), judge
