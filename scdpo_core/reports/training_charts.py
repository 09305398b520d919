"""The curves of a training run as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .curves import FEWEST_FOR_A_TREND, Points, charted_curves, trend
from .metrics import METRICS, ChartGroup, charts_of
from .svg import WIDTH, Svg, tick_label, ticks

STYLES = ("after", "before", "other", "fourth")
"""CSS classes of the lines of a chart, in order."""

_LEFT, _RIGHT, _TOP = 44, 18, 14
_MOST_POINTS = 300  # of a line; a screen shows no more


@dataclass(frozen=True)
class RunChart:
    """A chart of a training run.

    Attributes:
        title: of the chart.
        legend: (CSS class, name with the latest value) of each line.
        latest: value of the trend of the first line.
        svg: the chart.
    """

    title: str
    legend: Sequence[tuple[str, str]]
    latest: str
    svg: Markup


def training_charts(curves: Mapping[str, Points], steps: int = 0, *, detail: bool = False) -> list[RunChart]:
    """Draw the charts of a run: single steps faint, their trend strong.

    Args:
        curves: (step, value) by metric; those not worth a chart are left out.
        steps: that the run will take; 0 ends the axis at the last step.
        detail: whether the charts of full reports are drawn too.
    """
    charted = charted_curves(curves)
    return [_training_chart(group, charted, steps) for group in charts_of(charted, detail=detail)]


def _training_chart(group: ChartGroup, curves: Mapping[str, Points], steps: int) -> RunChart:
    lines = [
        (METRICS[name].short, style, curves[name])
        for name, style in zip([name for name in group.metrics if name in curves], STYLES, strict=False)
    ]
    latest = [f"{smooth[-1][1]:.3g}" if (smooth := trend(points)) else "" for _, _, points in lines]
    legend = [(style, f"{name} {value}") for (name, style, _), value in zip(lines, latest, strict=True)]
    return RunChart(group.title, legend, latest[0], line_chart(group, lines, steps))


def line_chart(group: ChartGroup, lines: Sequence[tuple[str, str, Points]], steps: int = 0) -> Markup:
    """Draw (name, CSS class, points) as curves over training steps on one scale; gaps stay gaps."""
    height, bottom = 220, 192
    numbers = [step for _, _, points in lines for step, _ in points]
    low, high = _span([value for _, _, points in lines for _, value in points], group.neutral)
    first = min(numbers, default=0)
    last = max([first + 1, steps, *numbers])

    def x(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (step - first) / (last - first)

    def y(value: float) -> float:
        return bottom - (bottom - _TOP) * (value - low) / (high - low)

    svg = Svg(WIDTH, height, f"{group.title}. {_describe_lines(lines)}")
    for tick in ticks(low, high, 4):
        svg.line("grid", _LEFT, y(tick), WIDTH - _RIGHT, y(tick))
        svg.text("tick", _LEFT - 7, y(tick) + 4, tick_label(tick), "end")
    for tick in ticks(first, last, 4):
        svg.text("tick", x(tick), 212, tick_label(tick), "middle")
    if group.neutral is not None:
        level = y(group.neutral)
        svg.line("reference", _LEFT, level, WIDTH - _RIGHT, level)
        svg.text("hint", WIDTH - _RIGHT, level - 5, group.neutral_title, "end")
    for _, style, points in lines:
        smooth = trend(points)
        if len(smooth) >= FEWEST_FOR_A_TREND or len(smooth) < len(points):
            svg.path(f"{style} faint", [(x(step), y(value)) for step, value in _thinned(points)])
        svg.path(f"{style} strong", [(x(step), y(value)) for step, value in _thinned(smooth)])
        for step, value in smooth[-1:]:
            svg.add("circle", f"{style} end", cx=x(step), cy=y(value), r=3)
    return svg.markup()


def _describe_lines(lines: Sequence[tuple[str, str, Points]]) -> str:
    sentences = []
    for name, _, points in lines:
        finite = [value for _, value in points if math.isfinite(value)]
        if finite:
            sentences.append(f"{name} goes from {finite[0]:.3g} to {finite[-1]:.3g}")
    return "; ".join(sentences) + "." if sentences else "No values."


def _span(values: Sequence[float], neutral: float | None) -> tuple[float, float]:
    """Return the ends of an axis without the extreme hundredths: wild steps must not flatten a curve."""
    finite = sorted(value for value in values if math.isfinite(value))
    inner = finite[len(finite) // 100 : len(finite) - len(finite) // 100]
    inner += [] if neutral is None else [neutral]
    low, high = min(inner, default=0.0), max(inner, default=1.0)
    margin = 0.08 * (high - low) or max(abs(high), 1e-6) * 0.1
    return low - margin, high + margin


def _thinned(points: Points) -> Points:
    stride = -(-len(points) // _MOST_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]
