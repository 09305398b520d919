"""Several scorers as one: the worst of them, or the mean of their evidence."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

from PIL import Image

from ..types import CostScore
from .protocol import Scorer, ScorerError

Rule = Literal["maximum", "mean"]


class EnsembleScorer:
    """The maximum of several costs, or their mean.

    Every member's zero is its own boundary, so the maximum is above zero where any member objects. The
    mean compares members only as far as they are calibrated: each cost is log-odds, and the mean of
    log-odds is the log-odds of the geometric mean of the odds. A category counts the members that know
    it; one that none knows stays None. Where a member's cost is not finite, the ensemble's is NaN: it has
    not been judged by all of them.

    Args:
        members: at least two, with different hashes.
        rule: 'maximum' or 'mean'.

    Raises:
        ScorerError: fewer than two members, or one twice.
    """

    def __init__(self, members: Sequence[Scorer], rule: Rule = "maximum") -> None:
        """Name the ensemble after its members."""
        if len(members) < 2 or len({member.hash for member in members}) < len(members):
            raise ScorerError("An ensemble needs at least two different scorers, such as 'embedded+my_cost'.")
        self.members, self.rule = tuple(members), rule
        self.id = f"{rule}({'+'.join(member.id for member in members)})"
        together = rule + "".join(sorted(member.hash for member in members))
        self.hash = hashlib.sha256(together.encode()).hexdigest()[:12]
        self.categories = tuple(dict.fromkeys(name for member in members for name in member.categories))

    def prepare(self, image: Image.Image) -> tuple[Any, ...]:
        """Prepare the image for every member."""
        return tuple(member.prepare(image) for member in self.members)

    def score_prepared(self, prepared: Sequence[tuple[Any, ...]]) -> list[CostScore]:
        """Score what `prepare` returned, in its order."""
        return self._join(
            [
                member.score_prepared([views[number] for views in prepared])
                for number, member in enumerate(self.members)
            ]
        )

    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        """Score images of any size, in their order."""
        return self._join([member.score(images) for member in self.members])

    def _join(self, by_member: Sequence[Sequence[CostScore]]) -> list[CostScore]:
        return [self._one(scores) for scores in zip(*by_member, strict=True)]

    def _one(self, scores: Sequence[CostScore]) -> CostScore:
        categories = {}
        for name in self.categories:
            costs = [cost for score in scores if (cost := score.categories.get(name)) is not None]
            categories[name] = self._combine(costs) if costs else None
        details = {name: cost for score in scores for name, cost in score.details.items()}
        return CostScore(
            self._combine([score.value for score in scores]), categories, self.id, self.hash, details
        )

    def _combine(self, costs: Sequence[float]) -> float:
        if not all(map(math.isfinite, costs)):
            return math.nan
        return max(costs) if self.rule == "maximum" else sum(costs) / len(costs)
