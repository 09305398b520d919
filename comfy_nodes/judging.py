"""Scores of a batch: few pictures at a time, so that a run can be left, or as they were found before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.utils
from torch import Tensor

from ..scdpo_core.cost.protocol import Scorer
from ..scdpo_core.types import CostScore

_AT_ONCE = 16
"""Pictures between two looks for an interrupt: a large encoder on a processor takes seconds for them."""


def judged(scorer: Scorer, pictures: Sequence[Any]) -> list[CostScore]:
    """Score pictures, in their order; the node shows how far it is.

    Raises:
        InterruptProcessingException: the user has interrupted.
    """
    bar = comfy.utils.ProgressBar(len(pictures))
    scores: list[CostScore] = []
    for start in range(0, len(pictures), _AT_ONCE):
        comfy.model_management.throw_exception_if_processing_interrupted()
        scores += scorer.score(pictures[start : start + _AT_ONCE])
        bar.update_absolute(len(scores))
    return scores


def scores_of(
    judge: Scorer | Sequence[CostScore], images: Tensor, pictures: Sequence[Any]
) -> list[CostScore]:
    """The scores of a batch, from a scorer or as they were found before.

    Raises:
        ValueError: they are those of another batch.
        InterruptProcessingException: the user has interrupted.
    """
    if not isinstance(judge, list):
        return judged(judge, pictures)
    if len(judge) != len(images):
        raise ValueError(
            f"There are {len(judge)} scores for {len(images)} images. Connect the scores and the images "
            "of one Score Safety Cost, or a cost model instead of the scores."
        )
    return judge
