"""Charts of costs and shares as inline SVG, in the colours of `templates/tokens.css`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from markupsafe import Markup

from ..types import band_of
from .raster_charts import bin_counts
from .svg import WIDTH, Svg, tick_label, ticks
from .wording import Share, percent, signed

_NAMES, _BARS_RIGHT, _ROW, _BAR = 132, 40, 20, 12
_COST_BINS = 28


@dataclass(frozen=True)
class Bar:
    """A share of one version, and the CSS class of its colour: 'before', 'after' or 'other'."""

    label: str
    style: str
    share: Share


@dataclass(frozen=True)
class BarGroup:
    """Bars that belong together, such as those of one category."""

    title: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class FrontierPoint:
    """One version: how similar its benign images are to the base model's, and how often it generates harm.

    Attributes:
        label: such as '0.75'.
        style: CSS class of its colour.
        kept: SSIM to the base model's benign images, at most 1.
        harm: of the images for harmful prompts.
    """

    label: str
    style: str
    kept: float
    harm: Share


class ReliabilityPoint(Protocol):
    """A bin of a reliability diagram, such as `cost.calibration.ReliabilityBin`."""

    @property
    def predicted(self) -> float:
        """Mean predicted chance of harm, 0..1."""

    @property
    def observed(self) -> float:
        """Share of harmful images, 0..1."""

    @property
    def unsafe(self) -> int:
        """Number of harmful images."""

    @property
    def safe(self) -> int:
        """Number of harmless images."""


def dumbbell(before: Share, after: Share, target: float | None) -> Markup:
    """Draw two shares with their 95 % intervals on a line from 0 to 100 %, with a tick at the target.

    Hidden from screen readers, because the numbers stand beside it as text.
    """

    def x(value: float) -> float:
        return 8 + 224 * min(1.0, max(0.0, value))

    svg = Svg(240, 38, style="chart dumbbell")
    svg.line("axis", 8, 15, 232, 15)
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        svg.line("axis", x(share), 12, x(share), 18)
        svg.text("tick", x(share) + 4 * (2 * share - 1), 36, f"{100 * share:g}", anchor)
    if target is not None:
        svg.add("path", "target", d=f"M{x(target):.1f} 3v24")
    measured = [(share, style) for share, style in ((before, "before"), (after, "after")) if share.total]
    for share_, style in measured:
        low, high = x(share_.interval().low), x(share_.interval().high)
        svg.add("rect", f"{style} ci", x=low, y=11.5, width=high - low, height=7, rx=3.5)
    for share_, style in measured:
        svg.add("circle", f"{style} dot", cx=x(share_.value), cy=15, r=5.5)
    return svg.markup()


def histogram(title: str, before: Sequence[float], after: Sequence[float], low: float, high: float) -> Markup:
    """Draw costs before (above the line) and after (below it) on one scale; 0 is the boundary.

    Args:
        title: what the images are.
        before: costs of the base model's images.
        after: costs with the LoRA.
        low: left end of the scale; what lies outside counts in the outermost bar.
        high: right end.
    """
    bins = max(1, round(2 * (high - low)))
    sides = [(bin_counts(costs, low, high, bins), costs) for costs in (before, after)]
    tallest = max(1, *(max(counts) for counts, _ in sides))
    middle, reach, step = 120, 80, (WIDTH - 20) / bins

    def x(value: float) -> float:
        return 10 + (WIDTH - 20) * (value - low) / (high - low)

    harmful = [f"{sum(cost > 0 for cost in costs)} of {len(costs)}" for _, costs in sides]
    words = f"Before tuning {harmful[0]} images cost more than 0, after it {harmful[1]}."
    svg = Svg(WIDTH, 256, f"{title}. {words}")
    svg.add("rect", "harm-side", x=x(0), y=6, width=WIDTH - 10 - x(0), height=228)
    svg.text("hint", x(0) + 6, 20, "harmful")
    svg.text("hint", x(0) - 6, 20, "safe", "end")
    for (counts, _), style, sign in zip(sides, ("before", "after"), (-1, 1), strict=True):
        for index, number in enumerate(counts):
            size = reach * number / tallest
            top = middle - size - 1 if sign < 0 else middle + 1
            if number:
                left, width = 10 + index * step + 1, max(1.0, step - 2)
                svg.add("rect", f"{style} bar", x=left, y=top, width=width, height=size)
        peak = counts.index(max(counts))
        level = middle + sign * (reach * counts[peak] / tallest + 9) + (4 if sign > 0 else 0)
        svg.text("tick", 10 + (peak + 0.5) * step, level, str(counts[peak]), "middle")
    svg.line("axis", 10, middle, WIDTH - 10, middle)
    svg.line("zero", x(0), 6, x(0), 234)
    for tick in ticks(low, high, 6):
        svg.text("tick", x(tick), 251, tick_label(tick), "middle")
    return svg.markup()


def band_histogram(costs: Sequence[float]) -> Markup:
    """Draw how many images have which cost, in the colours of their bands.

    A bar's height is the square root of its count, so that few images of high cost stay visible.

    Args:
        costs: at least one.
    """
    low, high = min(-4.0, *costs), max(4.0, *costs)
    step, foot = (high - low) / _COST_BINS, 92
    counts = bin_counts(costs, low, high, _COST_BINS)

    def x(cost: float) -> float:
        return (cost - low) / (high - low) * WIDTH

    svg = Svg(WIDTH, 116, "Histogram of the costs")
    svg.line("axis", 0, foot, WIDTH, foot)
    for k, number in enumerate(counts):
        if number:
            height = max(2.0, foot * (number / max(counts)) ** 0.5)
            start, end = low + k * step, low + (k + 1) * step
            svg.add(
                "rect",
                f"bar {band_of((start + end) / 2)}",
                tooltip=f"{number} from {signed(start)} to {signed(end)}",
                x=x(start) + 0.5, y=foot - height, width=WIDTH / _COST_BINS - 1, height=height, rx=1,
            )  # fmt: skip
    svg.line("zero", x(0), 4, x(0), foot + 5)
    for cost, anchor in ((low, "start"), (0.0, "middle"), (high, "end")):
        svg.text("tick", x(cost), 110, signed(cost) if cost else "0", anchor)
    return svg.markup()


def reliability(bins: Sequence[ReliabilityPoint]) -> Markup:
    """Draw the predicted against the observed chance of harm; larger dots stand for more images."""
    side, margin = 300, 42

    def at(predicted: float, observed: float) -> tuple[float, float]:
        return margin + predicted * side, margin / 2 + (1 - observed) * side

    filled = [(*at(one.predicted, one.observed), one) for one in bins if one.unsafe + one.safe]
    most = max((one.unsafe + one.safe for _, _, one in filled), default=1)
    (left, top), (right, bottom) = at(0, 1), at(1, 0)
    svg = Svg(right + 20, bottom + 38, "Reliability diagram")
    svg.path("axis", [(left, top), (left, bottom), (right, bottom)])
    svg.line("reference", left, bottom, right, top)
    svg.path("after strong", [(x, y) for x, y, _ in filled])
    for x, y, one in filled:
        images = f"{one.unsafe} unsafe, {one.safe} safe"
        tooltip = f"predicted {one.predicted:.0%}, observed {one.observed:.0%}: {images}"
        radius = 3 + 6 * ((one.unsafe + one.safe) / most) ** 0.5
        svg.add("circle", "after dot", tooltip=tooltip, cx=x, cy=y, r=radius)
    for share in (0.0, 0.5, 1.0):
        svg.text("tick", at(share, 0)[0], bottom + 16, f"{share:.0%}", "middle")
        svg.text("tick", left - 6, at(0, share)[1] + 4, f"{share:.0%}", "end")
    words = "across: chance of harm by the cost; up: share harmful"
    svg.text("hint", (left + right) / 2, bottom + 33, words, "middle")
    return svg.markup()


def bar_chart(title: str, groups: Sequence[BarGroup]) -> Markup:
    """Draw horizontal bars from 0 to 100 %, each with its 95 % interval and its number."""

    def x(value: float) -> float:
        return _NAMES + (WIDTH - _NAMES - _BARS_RIGHT) * min(1.0, max(0.0, value))

    words = "; ".join(
        f"{group.title}: " + ", ".join(f"{bar.label} {percent(bar.share.value)}" for bar in group.bars)
        for group in groups
    )
    height = 6.0 + sum(_ROW * len(group.bars) + 10 for group in groups)
    svg = Svg(WIDTH, height + 18, f"{title}. {words}.")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        svg.line("grid", x(share), 4, x(share), height - 4)
        svg.text("tick", x(share), height + 12, f"{100 * share:g}", "middle")
    top = 6.0
    for group in groups:
        name = group.title if len(group.title) <= 19 else f"{group.title[:18]}…"
        middle = top + _ROW * len(group.bars) / 2 + 4
        svg.text("name", _NAMES - 8, middle, name, "end", tooltip=group.title)
        for bar in group.bars:
            _bar(svg, bar, x, top + (_ROW - _BAR) / 2)
            top += _ROW
        top += 10
    return svg.markup()


def _bar(svg: Svg, bar: Bar, x: Callable[[float], float], top: float) -> None:
    if not bar.share.total:
        svg.text("tick", x(0) + 4, top + 10, "not judged")
        return
    ends, middle = bar.share.interval(), top + _BAR / 2
    width = max(1.0, x(bar.share.value) - x(0))
    svg.add("rect", f"{bar.style} bar", x=x(0), y=top, width=width, height=_BAR, rx=2)
    svg.path("whisker", [(x(ends.low), middle), (x(ends.high), middle)])
    svg.text("value", x(ends.high) + 5, middle + 4, percent(bar.share.value))


def frontier(points: Sequence[FrontierPoint]) -> Markup:
    """Draw harm (upwards) against similarity of benign images to the base model's; low and right is good.

    Points of one style are joined in their order.
    """
    height, left, right, top, bottom = 262, 44, 24, 26, 218
    low = max(0.0, math.floor((min(point.kept for point in points) - 0.02) * 20) / 20)

    def x(similarity: float) -> float:
        return left + (WIDTH - left - right) * (similarity - low) / (1.0 - low)

    def y(share: float) -> float:
        return bottom - (bottom - top) * share

    words = "; ".join(
        f"{point.label}: harmful {percent(point.harm.value)}, SSIM {point.kept:.3f}" for point in points
    )
    svg = Svg(WIDTH, height, f"Harm against preservation. {words}.")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        svg.line("grid", left, y(share), WIDTH - right, y(share))
        svg.text("tick", left - 7, y(share) + 4, f"{100 * share:g}", "end")
    for tick in ticks(low, 1.0, 4):
        svg.text("tick", x(tick), bottom + 18, f"{tick:.4g}", "middle")
    svg.text(
        "hint", (left + WIDTH - right) / 2, height - 6, "SSIM to the base model's benign images", "middle"
    )
    svg.text("hint", left, 11, "harmful, %")
    measured = [point for point in points if point.harm.total]
    for style in dict.fromkeys(point.style for point in points if point.style != "before"):
        joined = [(x(p.kept), y(p.harm.value)) for p in measured if p.style in (style, "before")]
        svg.path(f"{style} joined", joined)
    labels: list[tuple[float, float]] = []
    for point in measured:
        ends, across, level = point.harm.interval(), x(point.kept), y(point.harm.value)
        svg.path("whisker", [(across, y(ends.low)), (across, y(ends.high))])
        svg.add("circle", f"{point.style} dot", cx=across, cy=level, r=5)
        # Labels stand one above the other where points meet.
        label = level - 8
        while any(abs(label - other) < 13 and abs(across - at) < 60 for at, other in labels):
            label -= 13
        labels.append((across, label))
        anchor, shift = ("end", -8) if across > WIDTH / 2 else ("start", 8)
        svg.text("value", across + shift, max(top - 2.0, label), point.label, anchor)
    return svg.markup()
