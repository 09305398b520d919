"""SVG charts: what they draw, say and escape."""

from __future__ import annotations

import math
import re

import pytest

from scdpo_core.reports.charts import histogram
from scdpo_core.reports.metrics import ChartGroup
from scdpo_core.reports.svg import Svg, ticks
from scdpo_core.reports.training_charts import line_chart, training_charts


def test_histogram_counts_every_cost_once() -> None:
    # Bins of half a unit over -2..2; 99 goes into the last bar.
    text = histogram("t", [-1.9, -1.8, 0.1, 99.0], [-1.0], -2, 2)
    assert text.count('class="before bar"') == 3
    assert text.count('class="after bar"') == 1
    assert "Before tuning 2 of 4 images cost more than 0, after it 0 of 1." in text


def test_gaps_in_curves_do_not_become_lines() -> None:
    group = ChartGroup("t", ("loss",))
    drawn = line_chart(group, [("loss", "after", [(1, 1.0), (2, math.nan), (3, 3.0), (4, math.inf)])])
    faint = re.search(r'faint" d="([^"]*)"', drawn)
    assert faint is not None and faint[1].count("M") == 2 and "L" not in faint[1]
    assert "nan" not in drawn and "inf" not in drawn
    assert "<svg" in line_chart(group, [("loss", "after", [(1, 0.0)])])


def test_ticks_are_round() -> None:
    assert ticks(0, 300, 4) == [0, 100, 200, 300]
    assert ticks(-0.004, 0.021, 4) == pytest.approx([0, 0.01, 0.02])


def test_curves_that_share_a_chart_have_a_legend_with_their_latest_values() -> None:
    gaps = {"winner_gap": [(1, 0.0), (2, -0.5)], "loser_gap": [(1, 0.0), (2, 0.25)]}
    loss, errors = training_charts({"loss": [(1, 0.7), (2, 0.6)], **gaps}, 10)
    assert (loss.latest, loss.legend) == ("0.6", [("after", "loss 0.6")])
    assert errors.legend == [("after", "chosen gap -0.5"), ("before", "rejected gap 0.25")]
    assert "chosen gap goes from 0 to -0.5" in errors.svg


def test_texts_of_strangers_stay_texts() -> None:
    svg = Svg(10, 10, '"><script>')
    svg.text("name", 0, 0, "<b>", tooltip="<i>")
    assert not re.search("<(b|i|script)>", svg.markup()) and "&lt;b&gt;" in svg.markup()
