"""Scores of a batch: few pictures at a time, so that a run can be left, or as they were found before."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image
from torch import Tensor

from ..scdpo_core.cost.protocol import Scorer
from ..scdpo_core.types import CostScore
from .convert import from_each, to_pictures

_AT_ONCE = 16
"""Pictures between two looks for an interrupt: a large encoder on a processor takes seconds for them."""


def judged(scorer: Scorer, images: Tensor) -> tuple[list[Image.Image], list[CostScore]]:
    """The pictures of a batch and their scores, in its order; the node shows how far it is.

    Each picture is made and looked at in one go, in threads, while it is still in the processor's cache.

    Args:
        images: as `to_pictures` takes them.

    Raises:
        InterruptProcessingException: the user has interrupted.
    """

    def seen(image: Image.Image) -> tuple[Image.Image, Any]:
        return image, scorer.prepare(image)

    bar = comfy.utils.ProgressBar(len(images))
    pictures: list[Image.Image] = []
    scores: list[CostScore] = []
    for start in range(0, len(images), _AT_ONCE):
        comfy.model_management.throw_exception_if_processing_interrupted()
        looked = from_each(images[start : start + _AT_ONCE], seen)
        pictures += [picture for picture, _ in looked]
        scores += scorer.score_prepared([view for _, view in looked])
        bar.update_absolute(len(scores))
    return pictures, scores


def scores_of(judge: Scorer | list[CostScore], images: Tensor) -> tuple[list[Image.Image], list[CostScore]]:
    """The pictures of a batch and their scores, from a scorer or as they were found before.

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
    return to_pictures(images), judge
