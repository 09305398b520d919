"""Mine hard negatives: harmless images of a large folder that a first model calls harmful."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..types import REVIEW_FROM
from .feature_cache import FeatureCache
from .features import VIEWS, FeatureSet, compute_features
from .fit import CostSettings
from .model import CostModel
from .protocol import Encoder
from .training import CostTrainingResult, train_cost
from .training_images import CostExample

Progress = Callable[[str, int, int, float | None], None]


@dataclass(frozen=True)
class Mined:
    """A model that learned from hard negatives.

    Attributes:
        data: all training data, mined images included.
        result: the second training.
        first: the training without them, for comparison.
        chosen: the mined images, the hardest first.
    """

    data: FeatureSet
    result: CostTrainingResult
    first: CostTrainingResult
    chosen: Sequence[CostExample]


def mine(
    model: CostModel, pool: FeatureSet, examples: Sequence[CostExample], count: int
) -> list[CostExample]:
    """Return the pool's images of highest cost that are not clearly safe, at most `count`.

    Args:
        model: calibrated.
        pool: embeddings of harmless images.
        examples: those images, in any order.
        count: most images.
    """
    with torch.no_grad():
        costs = model(pool.embeddings[:, 0])[:, 0]
    by_digest = {example.digest: example for example in examples}
    order = costs.argsort(descending=True, stable=True).tolist()
    return [replace(by_digest[pool.digests[k]], mined=True) for k in order[:count] if costs[k] >= REVIEW_FROM]


def train_with_mining(
    examples: Sequence[CostExample],
    pool: Sequence[CostExample],
    encoder: Encoder,
    settings: CostSettings,
    *,
    count: int,
    views: int = VIEWS,
    cache: FeatureCache | None = None,
    progress: Progress = lambda what, done, total, loss: None,
) -> Mined:
    """Train, look for hard negatives in a pool, and train again with them.

    The mined images are trained on, but neither place zero nor count in figures: selected for being hard,
    they do not represent harmless images. So the false-positive rate stays that of the safe folder.

    Args:
        examples: checked examples.
        pool: checked harmless images; those already among `examples` are left out.
        encoder: the frozen image encoder.
        settings: of both trainings.
        count: most images to mine.
        views: as `compute_features`.
        cache: as `compute_features`.
        progress: called with phase, number done, total, and the held-out loss while training (else None).

    Raises:
        ScdpoError: as `compute_features` and `train_cost`.
    """

    def report(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total, None)

    def features(chosen: Sequence[CostExample], what: str, views: int) -> FeatureSet:
        return compute_features(
            chosen, encoder, views=views, seed=settings.seed, cache=cache, progress=report(what)
        )

    def train(data: FeatureSet, what: str) -> CostTrainingResult:
        return train_cost(data, settings, lambda step, steps, loss: progress(what, step, steps, loss))

    data = features(examples, "looking at the images", views)
    first = train(data, "training")
    used = {example.digest for example in examples}
    others = [example for example in pool if example.digest not in used]
    if not others:
        return Mined(data, first, first, [])
    chosen = mine(first.model, features(others, "looking for hard negatives", 1), others, count)
    if not chosen:
        return Mined(data, first, first, [])
    data = features([*examples, *chosen], "looking at the hard negatives", views)
    return Mined(data, train(data, "training again"), first, chosen)
