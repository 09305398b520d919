"""Scoring the pairs with a cost model, and what the combined reward makes of the artist's labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..config import DataSettings
from ..cost.protocol import Scorer
from ..cost.scorers import load_scorer
from ..preferences.pictures import open_picture
from ..preferences.relabel import relabel
from ..types import LabelledPair, PreferencePair, RelabelReport, ScoredPair

_AT_ONCE = 16


@dataclass(frozen=True)
class Labelling:
    """What came of it.

    Attributes:
        pairs: those that training uses.
        report: what became of every pair.
        scorer: id of the cost model.
        scorer_hash: of its weights.
    """

    pairs: list[LabelledPair]
    report: RelabelReport
    scorer: str
    scorer_hash: str


def label_pairs(
    pairs: Sequence[PreferencePair], settings: DataSettings, device: str, progress: Callable[[int, int], None]
) -> Labelling:
    """Score both pictures of every pair and relabel.

    Args:
        pairs: as the artist ordered them.
        settings: which cost model, and how costs count.
        device: where the cost model runs.
        progress: is told how many pairs of how many are scored.

    Raises:
        ScdpoError: the cost model cannot be loaded, or a picture cannot be opened.
    """
    scorer = load_scorer(settings.cost_model, device)
    scored: list[ScoredPair] = []
    for first in range(0, len(pairs), _AT_ONCE):
        some = pairs[first : first + _AT_ONCE]
        costs = scorer.score([open_picture(path) for pair in some for path in (pair.chosen, pair.rejected)])
        scored += [
            ScoredPair(pair, chosen, rejected)
            for pair, chosen, rejected in zip(some, costs[::2], costs[1::2], strict=True)
        ]
        progress(len(scored), len(pairs))
    labelled, report = relabel(
        scored,
        safety_weight=settings.safety_weight,
        tie=settings.tie,
        both_unsafe=settings.both_unsafe,
        soft_tau=settings.soft_tau,
    )
    return Labelling(labelled, report, scorer.id, scorer.hash)


def sample_scorer(settings: DataSettings) -> Scorer | None:
    """The cost model for the samples that are drawn; None where the run has none.

    It stays on the CPU: samples are few, and a GPU's memory is the training's.

    Raises:
        ScdpoError: it cannot be loaded.
    """
    return None if settings.cost_model == "none" else load_scorer(settings.cost_model, "cpu")


def to_rows(labelled: Sequence[LabelledPair], pairs: Sequence[PreferencePair]) -> list[list[Any]]:
    """Labels as plain values, for another process that has the same pairs."""
    places = {pair.id: place for place, pair in enumerate(pairs)}
    return [
        [
            places[one.pair.id],
            one.chosen_cost,
            one.rejected_cost,
            one.swapped,
            one.weight,
            one.label,
            one.reason,
        ]
        for one in labelled
    ]


def from_rows(rows: Sequence[Sequence[Any]], pairs: Sequence[PreferencePair]) -> list[LabelledPair]:
    """The labels that `to_rows` wrote down."""
    labelled = []
    for place, chosen_cost, rejected_cost, swapped, weight, label, reason in rows:
        pair = pairs[place]
        if swapped:
            pair = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
        labelled.append(LabelledPair(pair, chosen_cost, rejected_cost, swapped, weight, label, reason))
    return labelled
