"""The combined reward: every rule worked by hand, and what must hold for any set of pairs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdpo_core.preferences.relabel import relabel, unscored
from scdpo_core.types import CostScore, LabelledPair, PreferencePair, ScdpoError, ScoredPair


def _cost(value: float, scorer: str = "test", digest: str = "0" * 12) -> CostScore:
    return CostScore(value, {}, scorer, digest)


def _scored(chosen: float, rejected: float, name: str = "p") -> ScoredPair:
    pair = PreferencePair(name, "a cat", Path(f"{name}-1.png"), Path(f"{name}-2.png"), "weapon")
    return ScoredPair(pair, _cost(chosen), _cost(rejected))


def _one(chosen: float, rejected: float, **options: Any) -> LabelledPair | str:
    """The labelled pair, or the reason why it was dropped."""
    labelled, report = relabel([_scored(chosen, rejected)], **options)
    if labelled:
        assert (report.swapped == [("p", labelled[0].reason)]) == labelled[0].swapped
        assert (report.kept == ["p"]) != labelled[0].swapped
        assert report.dropped == []
        return labelled[0]
    assert (report.kept, report.swapped) == ([], [])
    assert [name for name, _ in report.dropped] == ["p"]
    return report.dropped[0][1]


def test_both_safe_keeps_the_artists_order() -> None:
    label = _one(-1.0, -3.0)
    assert isinstance(label, LabelledPair)
    assert (label.pair.chosen, label.pair.rejected) == (Path("p-1.png"), Path("p-2.png"))
    assert (label.chosen_cost, label.rejected_cost) == (-1.0, -3.0)
    assert (label.swapped, label.weight, label.label) == (False, 1.0, 1.0)
    assert "artist" in label.reason


def test_only_the_rejected_one_unsafe_keeps_the_order() -> None:
    label = _one(-1.0, 2.0)
    assert isinstance(label, LabelledPair)
    assert not label.swapped
    assert "only the rejected one is unsafe: costs -1.00 and +2.00" in label.reason


def test_only_the_chosen_one_unsafe_is_swapped() -> None:
    label = _one(2.0, -1.0)
    assert isinstance(label, LabelledPair)
    assert label.swapped
    assert (label.pair.chosen, label.pair.rejected) == (Path("p-2.png"), Path("p-1.png"))
    assert (label.chosen_cost, label.rejected_cost) == (-1.0, 2.0)
    assert (label.pair.id, label.pair.prompt, label.pair.category) == ("p", "a cat", "weapon")
    assert "only the chosen one is unsafe: costs +2.00 and -1.00" in label.reason


def test_the_safe_one_wins_even_against_the_combined_reward() -> None:
    # R = 1 - 0.5 = 0.5 of the unsafe one against 0 - 0 = 0: it would win by reward alone.
    label = _one(0.5, -1.0)
    assert isinstance(label, LabelledPair)
    assert label.swapped


def test_zero_is_safe() -> None:
    label = _one(0.0, -1.0)
    assert isinstance(label, LabelledPair)
    assert not label.swapped


def test_two_unsafe_images_are_ordered_by_cost_where_the_gap_is_clear() -> None:
    # What the shipped folder has: a companion image just above zero and its harmful twin far above.
    kept = _one(0.02, 11.20)
    assert isinstance(kept, LabelledPair)
    assert not kept.swapped
    assert (kept.chosen_cost, kept.rejected_cost) == (0.02, 11.20)
    assert kept.reason == "both unsafe, the less harmful one wins: costs +0.02 and +11.20"
    swapped = _one(3.0, 1.0)
    assert isinstance(swapped, LabelledPair)
    assert swapped.swapped
    assert "less harmful" in swapped.reason
    # 3.00 - 2.25 = 0.75 < 1: neither order is sure, whatever the combined rewards say (1 - 2.25 against -3).
    assert _one(2.25, 3.0) == "near tie, both unsafe: costs +2.25 and +3.00"
    assert _one(3.0, 2.25) == "near tie, both unsafe: costs +3.00 and +2.25"
    assert _one(2.0, 2.0) == "near tie, both unsafe: costs +2.00 and +2.00"
    # A gap of exactly 1 is clear. R = 1 - 2 and 0 - 1 are equal: what the costs decide is no tie of rewards.
    edge = _one(2.0, 1.0)
    assert isinstance(edge, LabelledPair)
    assert edge.swapped


def test_two_unsafe_images_can_be_left_out_however_far_apart() -> None:
    assert _one(0.02, 11.20, both_unsafe="drop") == "both unsafe: costs +0.02 and +11.20"


def test_near_ties_are_dropped() -> None:
    # Both safe, so R = r: |0.55 - 0.50| = 0.05 < 0.1.
    assert _one(-1.0, -1.0, reward={"p": (0.55, 0.50)}) == "near tie: combined rewards 0.55 and 0.50"
    assert isinstance(_one(-1.0, -1.0, reward={"p": (0.55, 0.50)}, tie=0.01), LabelledPair)
    assert isinstance(_one(-1.0, -1.0, reward={"p": (0.75, 0.50)}), LabelledPair)


def test_what_safety_decides_is_no_tie() -> None:
    # R = 1 - 1.05 = -0.05 of the chosen one against 0, but only the chosen one is unsafe.
    swapped = _one(1.05, -1.0)
    assert isinstance(swapped, LabelledPair)
    assert swapped.swapped


def test_a_reward_orders_safe_pairs() -> None:
    swapped = _one(-1.0, -2.0, reward={"p": (0.2, 0.8)})
    assert isinstance(swapped, LabelledPair)
    assert swapped.swapped
    assert "rewards 0.20 and 0.80" in swapped.reason
    # A better reward does not buy harm.
    kept = _one(-1.0, 2.0, reward={"p": (0.2, 0.8)})
    assert isinstance(kept, LabelledPair)
    assert not kept.swapped


def test_soft_labels() -> None:
    # R = 1 and 0: sigmoid(1 / 0.5) = 1 / (1 + e^-2) = 0.880797.
    both_safe = _one(-1.0, -1.0, soft_tau=0.5)
    assert isinstance(both_safe, LabelledPair)
    assert both_safe.label == pytest.approx(0.880797, abs=1e-6)
    # R = 1 and 0 - 2: sigmoid(3) = 0.952574.
    unsafe = _one(-1.0, 2.0, soft_tau=1.0)
    assert isinstance(unsafe, LabelledPair)
    assert unsafe.label == pytest.approx(0.952574, abs=1e-6)
    # lambda = 0.5, swapped: R_winner - R_loser = 0 - (1 - 0.5 * 4) = 1, sigmoid(1) = 0.731059.
    swapped = _one(4.0, -1.0, soft_tau=1.0, safety_weight=0.5)
    assert isinstance(swapped, LabelledPair)
    assert swapped.label == pytest.approx(0.731059, abs=1e-6)
    # The safe one won against R (0.5 to 0): the label claims nothing.
    against = _one(0.5, -1.0, soft_tau=1.0)
    assert isinstance(against, LabelledPair)
    assert against.label == 0.5
    sure = _one(-1.0, 2.0, soft_tau=1e-4)
    assert isinstance(sure, LabelledPair)
    assert sure.label == 1.0


def test_unscored_pairs_stay_as_they_are() -> None:
    pairs = [_scored(0, 0, name).pair for name in "ab"]
    labelled = unscored(pairs)
    assert [label.pair for label in labelled] == pairs
    assert all((label.chosen_cost, label.rejected_cost) == (None, None) for label in labelled)
    assert all((label.swapped, label.weight, label.label) == (False, 1.0, 1.0) for label in labelled)


def test_no_pairs() -> None:
    labelled, report = relabel([])
    assert (labelled, report.kept, report.swapped, report.dropped) == ([], [], [], [])


def test_bad_costs_and_rewards_are_named() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ScdpoError, match=r"returned (nan|inf) for .*p-2\.png"):
            relabel([_scored(-1.0, value)])
    good = _scored(-1.0, 1.0)
    for other in (_cost(1.0, scorer="another"), _cost(1.0, digest="1" * 12)):
        with pytest.raises(ScdpoError, match="Score all images with one scorer"):
            relabel([good, ScoredPair(good.pair, other, other)])
    with pytest.raises(ScdpoError, match="pair p is missing"):
        relabel([good], reward={"q": (1.0, 0.0)})
    with pytest.raises(ScdpoError, match="pair p is not a number"):
        relabel([good], reward={"p": (math.nan, 0.0)})
    for options in ({"safety_weight": -1.0}, {"tie": -0.1}, {"soft_tau": 0.0}):
        with pytest.raises(ValueError, match="at least 0"):
            relabel([good], **options)  # type: ignore[arg-type]


_NUMBER = st.floats(-5, 5) | st.sampled_from([0.0, 0.1, 1.0, -1.0])
_SETS = st.lists(st.tuples(_NUMBER, _NUMBER), max_size=12).map(
    lambda costs: [_scored(*both, name=f"p{index}") for index, both in enumerate(costs)]
)
_OPTIONS = st.fixed_dictionaries(
    {
        "safety_weight": st.sampled_from([0.0, 0.3, 1.0, 4.0]),
        "tie": st.sampled_from([0.0, 0.1, 0.5]),
        "both_unsafe": st.sampled_from(["drop", "order"]),
        "soft_tau": st.sampled_from([None, 0.5]),
    }
)


def _again(labelled: list[LabelledPair]) -> list[ScoredPair]:
    scored = []
    for label in labelled:
        assert label.chosen_cost is not None
        assert label.rejected_cost is not None
        scored.append(ScoredPair(label.pair, _cost(label.chosen_cost), _cost(label.rejected_cost)))
    return scored


@given(_SETS, _OPTIONS)
def test_every_pair_is_kept_swapped_or_dropped(pairs: list[ScoredPair], options: dict[str, Any]) -> None:
    labelled, report = relabel(pairs, **options)
    groups = [*report.kept], [name for name, _ in report.swapped], [name for name, _ in report.dropped]
    assert sorted(name for group in groups for name in group) == sorted(scored.pair.id for scored in pairs)
    assert [label.pair.id for label in labelled if not label.swapped] == groups[0]
    assert [label.pair.id for label in labelled if label.swapped] == groups[1]
    ids = [scored.pair.id for scored in pairs]
    assert [label.pair.id for label in labelled] == sorted(groups[0] + groups[1], key=ids.index)
    assert all(reason for _, reason in [*report.swapped, *report.dropped])


@given(_SETS, _OPTIONS)
def test_an_unsafe_image_never_wins_over_a_safe_one(pairs: list[ScoredPair], options: dict[str, Any]) -> None:
    for label in relabel(pairs, **options)[0]:
        assert label.chosen_cost is not None
        assert label.rejected_cost is not None
        assert not (label.chosen_cost > 0 >= label.rejected_cost)
        assert 0.5 <= label.label <= 1.0
        assert (label.chosen_cost > 0) <= (options["both_unsafe"] == "order")


@given(_SETS, _OPTIONS)
def test_relabelling_twice_changes_nothing_more(pairs: list[ScoredPair], options: dict[str, Any]) -> None:
    # The winner becomes the artist's choice, so R gains: nothing turns back and nothing becomes a tie. Only a
    # soft label grows surer, since the label it argued against is gone.
    once, _ = relabel(pairs, **options)
    twice, report = relabel(_again(once), **options)
    assert [label.pair for label in twice] == [label.pair for label in once]
    assert (report.swapped, report.dropped) == ([], [])
    assert all(second.label >= first.label for first, second in zip(once, twice, strict=True))


@given(_SETS, _OPTIONS, st.data())
def test_relabelling_twice_by_a_reward_changes_nothing(
    pairs: list[ScoredPair], options: dict[str, Any], data: st.DataObject
) -> None:
    rewards = {scored.pair.id: data.draw(st.tuples(_NUMBER, _NUMBER)) for scored in pairs}
    once, _ = relabel(pairs, reward=rewards, **options)
    turned = {x.pair.id: rewards[x.pair.id][::-1] if x.swapped else rewards[x.pair.id] for x in once}
    twice, report = relabel(_again(once), reward=turned, **options)
    assert [(label.pair, label.label) for label in twice] == [(label.pair, label.label) for label in once]
    assert (report.swapped, report.dropped) == ([], [])


@given(_SETS, _OPTIONS)
def test_lambda_decides_no_winner(pairs: list[ScoredPair], options: dict[str, Any]) -> None:
    # Not even lambda = 0 keeps all of the artist's orders: harm turns a pair round whatever it weighs. With
    # lambda = 0 and the artist's labels R is 1 and 0, so nothing is a tie either.
    labelled, report = relabel(pairs, **{**options, "safety_weight": 0.0})
    by_id = {scored.pair.id: scored for scored in pairs}
    for label in labelled:
        scored = by_id[label.pair.id]
        costs = scored.chosen_cost.value, scored.rejected_cost.value
        only_chosen = costs[0] > 0 >= costs[1]
        worse = options["both_unsafe"] == "order" and costs[0] > costs[1] > 0
        assert label.swapped == (only_chosen or worse)
    assert all("both unsafe" in reason for _, reason in report.dropped)


@given(_SETS, _OPTIONS)
def test_the_artists_order_does_not_matter_to_harm(pairs: list[ScoredPair], options: dict[str, Any]) -> None:
    turned = [
        ScoredPair(
            PreferencePair(s.pair.id, s.pair.prompt, s.pair.rejected, s.pair.chosen, s.pair.category),
            s.rejected_cost,
            s.chosen_cost,
        )
        for s in pairs
    ]
    one, other = relabel(pairs, **options)[0], relabel(turned, **options)[0]
    winners = {label.pair.id: label.pair.chosen for label in other}
    for label in one:
        assert label.chosen_cost is not None
        assert label.rejected_cost is not None
        if label.pair.id in winners and label.chosen_cost <= 0 < label.rejected_cost:
            assert winners[label.pair.id] == label.pair.chosen
