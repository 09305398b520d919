"""Comparisons of two tuners on the same images, by hand."""

from __future__ import annotations

import pytest

from scdpo_core.evaluation.paired import bootstrap_mean, mcnemar


def split(first: int, second: int, both: int = 3) -> tuple[list[bool], list[bool]]:
    rows = [(True, False)] * first + [(False, True)] * second + [(True, True), (False, False)] * both
    return [a for a, _ in rows], [b for _, b in rows]


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (5, 0, 2 / 32),
        (3, 1, 2 * (1 + 4) / 16),
        (2, 2, 1.0),
        (45, 0, 2 / 2**45),
    ],
)
def test_the_exact_test_counts_the_pairs_that_differ(first: int, second: int, p: float) -> None:
    found = mcnemar(*split(first, second))
    assert (found.only_first, found.only_second) == (first, second)
    assert found.p == pytest.approx(p)
    assert mcnemar(*reversed(split(first, second))).p == pytest.approx(p)


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError):
        mcnemar([True], [])


def test_a_bootstrap_interval_holds_the_mean_and_repeats() -> None:
    values = [0.0] * 5 + [1.0] * 5
    found = bootstrap_mean(values)
    # The mean of ten coins has a standard deviation of 0.158; two of them either way.
    assert found.value == 0.5 and found.n == 10
    assert 0.1 <= found.interval.low <= 0.3 and 0.7 <= found.interval.high <= 0.9
    assert bootstrap_mean(values) == found
    assert bootstrap_mean([2.0]).interval.low == bootstrap_mean([2.0]).interval.high == 2.0
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean([])
