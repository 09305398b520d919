"""What is read off the curves of a run, and the sentences that are made of it."""

from __future__ import annotations

import dataclasses
import math

import pytest

from scdpo_core.config.settings import ObjectiveSettings
from scdpo_core.config.terms import USUAL_TERMS
from scdpo_core.reports.curves import charted_curves, ends, trend
from scdpo_core.reports.metrics import CHARTS, METRICS, TERM_METRICS
from scdpo_core.reports.terms import what_terms_did

STRAIGHT = [(step, float(step)) for step in range(1, 21)]


def test_a_trend_is_the_mean_over_a_tenth_of_the_curve_to_either_side() -> None:
    # Twenty points: two to either side. In the middle of a straight line that changes nothing; at its ends
    # (1 + 2 + 3) / 3 and (18 + 19 + 20) / 3.
    found = dict(trend(STRAIGHT))
    assert found[10] == 10.0 and found[1] == 2.0 and found[20] == 19.0
    zigzag = trend([(step, float(step % 2)) for step in range(100)])
    assert all(0.45 < value < 0.55 for _, value in zigzag[10:-10])


def test_a_short_curve_is_its_own_trend_and_what_is_not_finite_is_left_out() -> None:
    assert trend([(1, 3.0), (2, math.nan), (3, 5.0)]) == [(1, 3.0), (3, 5.0)]
    assert trend([]) == [] and ends([(1, math.inf)]) is None


def test_ends_are_means_over_a_fifth() -> None:
    # The first four of twenty are 1, 2, 3, 4, the last four 17, 18, 19, 20.
    assert ends(STRAIGHT) == (2.5, 18.5)
    assert ends([(1, 7.0)]) == (7.0, 7.0)


def test_parts_that_a_run_does_not_have_get_no_chart() -> None:
    flat = [(1, 0.0), (2, 0.0)]
    curves = {"dfm_spread": flat, "margin": [(1, 0.0), (2, 0.5)], "keep": flat, "loss": []}
    # Keep at 0 is a fact of a run that has this term; a spread of 0 is a run without focus.
    assert set(charted_curves(curves)) == {"margin", "keep"}


@pytest.mark.parametrize("name", [name for terms in USUAL_TERMS.values() for name in terms])
def test_every_term_has_a_title_a_chart_and_a_sentence(name: str) -> None:
    assert name in METRICS and name in TERM_METRICS
    assert sum(name in chart.metrics for chart in CHARTS) == 1
    (sentence,) = what_terms_did({name: STRAIGHT})
    assert sentence.endswith(".") and ("18.5" in sentence or " 18 " in sentence)


def test_keep_is_not_drawn_on_the_scale_of_what_moves() -> None:
    together = [chart.metrics for chart in CHARTS if "redirect" in chart.metrics]
    assert not any("keep" in metrics for metrics in together)


def test_sentences_say_what_went_where() -> None:
    curves = {
        "redirect": [(1, 0.5), (2, 0.25)],
        "keep": [(1, 0.0), (2, 0.0012)],
        "preference_loss": [(1, 0.693), (2, 0.41)],
        "implicit_accuracy": [(1, 0.5), (2, 0.875)],
        "winner_gap": [(1, 0.0), (2, -0.05)],
        "loser_gap": [(1, 0.0), (2, 0.02)],
        "dfm_spread": [(1, 0.0), (2, 0.0)],
        "loss": [(1, 1.0)],
    }
    assert what_terms_did(curves) == [
        "Redirect: under harmful prompts the error to the chosen images went from 0.5 to 0.25 (-50 %).",
        "Keep: answers to benign pairs are 0.0012 away from the base model's (0: unchanged).",
        "Preference: its loss is 0.41 (0.693: nothing learnt; more: worse than the base model).",
        "Accuracy: the chosen image is preferred in 88 % of the pairs; look at the samples as well.",
        "Chosen: the error on chosen images is 0.05 below the base model's.",
        "Rejected: the error on rejected images is 0.02 above the base model's.",
    ]
    assert what_terms_did({}) == []


def test_parts_of_the_objectives_over_pairs_have_sentences() -> None:
    parts = {"margin": [(1, 2.0)], "prior": [(1, 0.5)], "dfm_spread": [(1, 1.5)]}
    assert len(what_terms_did(parts)) == 3
    assert {"margin", "prior_weight", "dfm_gamma"} <= {
        field.name for field in dataclasses.fields(ObjectiveSettings)
    }
