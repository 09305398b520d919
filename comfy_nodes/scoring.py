"""Scores of a batch: few images at a time, so that a run can be left, or as they were found before."""

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
"""Images between two looks for an interrupt: a large encoder on a processor takes seconds for them."""


def judged(scorer: Scorer, images: Tensor) -> tuple[list[Image.Image], list[CostScore]]:
    """The images of a batch and their scores, in its order; the node shows how far it is.

    Each image is made and looked at in one go, in threads, while it is still in the processor's cache.
    What was found is remembered for the files that are saved of these images.

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
        looked = from_each(images[start : start + _AT_ONCE], prepared)
        pil_images += [image for image, _, _ in looked]
        costs = iter(scorer.score_prepared([view for _, inputs, _ in looked for view in inputs]))
        # What is hidden under an image's alpha counts as well.
        found = [worst([next(costs) for _ in inputs]) for _, inputs, _ in looked]
        for (_, _, mark), score in zip(looked, found, strict=True):
            metadata.remember(mark, metadata.note(score))
        scores += found
        bar.update_absolute(len(scores))
    return pil_images, scores


def scores_of(judge: Scorer | list[CostScore], images: Tensor) -> tuple[list[Image.Image], list[CostScore]]:
    """The images of a batch and their scores, from a scorer or as they were found before.

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
