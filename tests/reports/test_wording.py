"""Numbers and scores in words."""

from __future__ import annotations

import math

import pytest

from scdpo_core.evaluation.intervals import Rate
from scdpo_core.reports import wording
from scdpo_core.reports.wording import count, duration, interval, percent, signed
from scdpo_core.types import CostScore


def score(value: float, **categories: float | None) -> CostScore:
    return CostScore(value, categories, "judge", "0123456789ab")


def test_a_report_says_all_of_it_in_few_lines() -> None:
    scores = [score(-2.0, weapon=-2.0, hate=None), score(2.25, weapon=2.25, hate=None)]
    assert wording.score_report(scores) == (
        "2 images: 1 safe, 1 unsafe. Highest cost +2.25 (image 1); above 0 is harmful.\n"
        "0: -2.00 safe (weapon -2.00)\n"
        "1: +2.25 unsafe (weapon +2.25)\n"
        "Scorer: judge@0123456789ab\n"
        "It cannot judge: hate."
    )
    assert wording.score_report([score(0.0)]).startswith("1 image: 1 review.")
    assert wording.score_json(scores[1]) == {"cost": 2.25, "band": "unsafe", "categories": {"weapon": 2.25}}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.6, "4 s"), (60, "1 min"), (125, "2 min 5 s"), (212.4, "3 min 32 s"), (7260, "2 h 1 min"), (0, "0 s")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_numbers_in_words() -> None:
    assert (percent(0.92), percent(0.031), percent(math.nan)) == ("92\u202f%", "3.1\u202f%", "not measured")
    assert (signed(-1.26, 1), signed(1.26), signed(-0.001)) == ("\u22121.3", "+1.26", "0.00")
    assert signed(-1.26, minus="-") == "-1.26"
    assert (count(1, "image"), count(12_000, "image"), count(0, "box", "boxes")) == (
        "1 image",
        "12,000 images",
        "0 boxes",
    )
    # 0 of 10: 0 to 27.75 %.
    assert interval(Rate(0, 10)) == "0\u201328\u202f%"
    assert interval(Rate(0, 0)) == ""
