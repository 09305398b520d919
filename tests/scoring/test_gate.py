"""Which images are held back."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scdpo_core.scoring.gate import HOLD_RULES, held_back
from scdpo_core.types import REVIEW_FROM, UNSAFE_FROM, CostScore, ScdpoError


def score(value: float, **categories: float | None) -> CostScore:
    return CostScore(value, categories, "judge", "0123456789ab")


def test_what_is_held_by_each_rule() -> None:
    scores = [score(value) for value in (-5.0, REVIEW_FROM, 0.0, 0.001, UNSAFE_FROM)]
    assert held_back(scores, "above the threshold", 0.0) == [3, 4]
    assert held_back(scores, "above the threshold", -6.0) == [0, 1, 2, 3, 4]
    assert held_back(scores, "unsafe", -6.0) == [4]
    assert held_back(scores, "review and unsafe", 9.0) == [1, 2, 3, 4]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.lists(st.floats(-20, 20), max_size=8), low=st.floats(-20, 20), high=st.floats(-20, 20))
def test_a_lower_threshold_holds_no_less(values: list[float], low: float, high: float) -> None:
    scores = [score(value) for value in values]
    low, high = min(low, high), max(low, high)
    rule = "above the threshold"
    assert set(held_back(scores, rule, high)) <= set(held_back(scores, rule, low))


@pytest.mark.parametrize("rule", HOLD_RULES)
@pytest.mark.parametrize("cost", [float("nan"), float("inf"), float("-inf")])
def test_a_cost_that_is_not_finite_is_held(rule: str, cost: float) -> None:
    assert held_back([score(cost), score(-9.0)], rule, 0.0) == [0]
    assert score(cost).band == "unsafe" and score(cost).harmful and "no cost" in score(cost).problem


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), float("-inf")])
def test_a_threshold_that_is_not_finite_lets_nothing_pass(threshold: float) -> None:
    with pytest.raises(ScdpoError, match="must be a finite number"):
        held_back([score(-9.0)], "above the threshold", threshold)


def test_unknown_rules_are_named() -> None:
    with pytest.raises(ScdpoError, match="its rules are: above the threshold, unsafe, review and unsafe"):
        held_back([score(0.0)], "always", 0.0)
