"""The combined reward, and what it makes of the artist's labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ..types import LabelledPair, PreferencePair, RelabelReport, ScdpoError, ScoredPair

_OWN_LABEL = (1.0, 0.0)

CLEAR_GAP = 1.0
"""Log-odds by which two harmful images must differ to be ordered; the odds of harm differ by 2.7 then.

In the shipped folder the gaps are 0.15 and then 2.8 and more, so that nothing hangs on its exact value.
"""


def relabel(
    pairs: Sequence[ScoredPair],
    *,
    safety_weight: float = 1.0,
    tie: float = 0.1,
    both_unsafe: Literal["drop", "order"] = "order",
    soft_tau: float | None = None,
    reward: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[list[LabelledPair], RelabelReport]:
    """Decide of each pair which image training prefers, or that it teaches nothing.

    RECONSTRUCTED; the paper's abstract only says that its reward combines human preference with safety cost.
    R = r - lambda * max(C, 0), where r is the quality reward and C the cost. Exactly one image unsafe
    (C > 0): the safe one wins, whatever R says. Both unsafe: the one of lower cost wins where the costs
    differ by `CLEAR_GAP` or more, else the pair is dropped: a companion image of cost +0.02 whose twin costs
    +11.20 still teaches. Both safe: ordered by r, and dropped if |R_winner - R_loser| < `tie`. What safety
    has decided is no such tie, however close its price comes to the reward.

    Args:
        pairs: in the artist's order, both images scored by one scorer; ids unique.
        safety_weight: lambda, in units of r per log-odds of cost; it decides what is a tie and how sure a
            soft label is, not which image wins.
        tie: in units of r; 0 drops nothing.
        both_unsafe: 'order' pairs of two unsafe images by cost as above, or 'drop' every one of them.
        soft_tau: temperature, in units of r, of the soft label q = sigmoid((R_winner - R_loser) / tau), which
            is 1/2 at least: where the safe image won against R, the label claims nothing. None: q = 1.
        reward: r of the artist's chosen and rejected image by pair id; without it r is the artist's own
            label, 1 and 0. An order that nothing decides stays the artist's.

    Returns:
        The pairs that remain, in their order, and the outcome of every pair.

    Raises:
        ScdpoError: a cost or reward is missing or not a number, or two scorers are mixed.
        ValueError: a weight, tie or temperature that makes no sense.
    """
    if safety_weight < 0 or tie < 0 or (soft_tau is not None and soft_tau <= 0):
        raise ValueError("safety_weight and tie must be at least 0, soft_tau above 0.")
    labelled: list[LabelledPair] = []
    kept: list[str] = []
    swapped: list[tuple[str, str]] = []
    dropped: list[tuple[str, str]] = []
    for scored in pairs:
        name = scored.pair.id
        rewards = _OWN_LABEL if reward is None else _reward_of(name, reward)
        costs = _costs_of(scored, pairs[0])
        winner, reason = _winner(costs, rewards, both_unsafe, keep_order=reward is None)
        if winner is None:
            dropped.append((name, reason))
            continue
        combined = [r - safety_weight * max(c, 0.0) for r, c in zip(rewards, costs, strict=True)]
        gap = combined[winner] - combined[1 - winner]
        if abs(gap) < tie and max(costs) <= 0:
            dropped.append((name, f"near tie: combined rewards {combined[0]:.2f} and {combined[1]:.2f}"))
            continue
        label = 1.0 if soft_tau is None else _sigmoid(max(gap, 0.0) / soft_tau)
        labelled.append(_labelled(scored.pair, costs, label, reason, swap=winner == 1))
        if winner == 1:
            swapped.append((name, reason))
        else:
            kept.append(name)
    return labelled, RelabelReport(kept, swapped, dropped)


def unscored(pairs: Sequence[PreferencePair]) -> list[LabelledPair]:
    """Return the pairs as the artist labelled them, for training without a cost model."""
    reason = "the artist's order; not scored"
    return [LabelledPair(pair, None, None, False, pair.weight, 1.0, reason) for pair in pairs]


def _winner(
    costs: tuple[float, float], rewards: tuple[float, float], both_unsafe: str, keep_order: bool
) -> tuple[int | None, str]:
    """Index of the image that wins, or None if the pair is dropped; and why."""
    reason = f"costs {costs[0]:+.2f} and {costs[1]:+.2f}"
    unsafe = (costs[0] > 0, costs[1] > 0)
    if unsafe == (True, True):
        if both_unsafe == "drop":
            return None, f"both unsafe: {reason}"
        if abs(costs[0] - costs[1]) < CLEAR_GAP:
            return None, f"near tie, both unsafe: {reason}"
        return int(costs[1] < costs[0]), f"both unsafe, the less harmful one wins: {reason}"
    if unsafe[0] != unsafe[1]:
        return int(unsafe[0]), f"only the {'chosen' if unsafe[0] else 'rejected'} one is unsafe: {reason}"
    if keep_order:
        return 0, "both safe, the artist's order"
    return int(rewards[1] > rewards[0]), f"both safe, rewards {rewards[0]:.2f} and {rewards[1]:.2f}"


def _labelled(
    pair: PreferencePair, costs: tuple[float, float], label: float, reason: str, swap: bool
) -> LabelledPair:
    if swap:
        pair = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
        costs = (costs[1], costs[0])
    return LabelledPair(pair, *costs, swap, pair.weight, label, reason)


def _costs_of(scored: ScoredPair, first: ScoredPair) -> tuple[float, float]:
    scores = (scored.chosen_cost, scored.rejected_cost)
    for score, image in zip(scores, (scored.pair.chosen, scored.pair.rejected), strict=True):
        reference = first.chosen_cost
        if (score.scorer, score.scorer_hash) != (reference.scorer, reference.scorer_hash):
            raise ScdpoError(
                f"{image} was scored by {score.scorer} ({score.scorer_hash}) and other images by "
                f"{reference.scorer} ({reference.scorer_hash}). Score all images with one scorer."
            )
        if not math.isfinite(score.value):
            raise ScdpoError(
                f"The cost model {score.scorer} returned {score.value} for {image}. "
                "Remove the image, or use another cost model."
            )
    return scores[0].value, scores[1].value


def _reward_of(name: str, reward: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    rewards = reward.get(name)
    if rewards is None or not all(math.isfinite(value) for value in rewards):
        raise ScdpoError(
            f"The quality reward of the pair {name} is {'missing' if rewards is None else 'not a number'}. "
            "Compute the rewards of all pairs again, or train with the artist's own labels."
        )
    return rewards


def _sigmoid(value: float) -> float:
    # The argument is never negative here, so that exp cannot overflow.
    return 1.0 / (1.0 + math.exp(-value))
