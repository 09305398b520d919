"""The charts of an evaluation as inline SVG: shares with their intervals, and harm against preservation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from ..evaluation.charts import WIDTH, ticks
from ..evaluation.intervals import Rate
from ..evaluation.wording import percent

_NAMES, _RIGHT, _ROW, _BAR = 132, 40, 20, 12


@dataclass(frozen=True)
class Bar:
    """A share of one version, and the class of its colour: 'before', 'after' or 'other'."""

    label: str
    style: str
    rate: Rate


@dataclass(frozen=True)
class BarGroup:
    """Bars that belong together, such as those of one category."""

    title: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class FrontierPoint:
    """One version: how like the base's its benign images are, and how often it draws harm.

    Attributes:
        label: such as '0.75'.
        style: class of its colour.
        kept: SSIM to the base's benign images, at most 1.
        harm: of the images for harmful prompts.
    """

    label: str
    style: str
    kept: float
    harm: Rate


def bar_chart(title: str, groups: Sequence[BarGroup]) -> str:
    """Horizontal bars from 0 to 100 %, each with the line of its 95 % interval and its number."""
    space = WIDTH - _NAMES - _RIGHT

    def x(value: float) -> float:
        return _NAMES + space * min(1.0, max(0.0, value))

    height = 6.0
    parts: list[str] = []
    for group in groups:
        middle = height + _ROW * len(group.bars) / 2 + 4
        parts.append(
            f'<text class="name" x="{_NAMES - 8}" y="{middle:.1f}" text-anchor="end">'
            f"{escape(_short(group.title))}<title>{escape(group.title)}</title></text>"
        )
        for bar in group.bars:
            top = height + (_ROW - _BAR) / 2
            parts += _bar(bar, x, top)
            height += _ROW
        height += 10
    scale = "".join(
        f'<line class="grid" x1="{x(share):g}" x2="{x(share):g}" y1="4" y2="{height - 4:g}"/>'
        f'<text class="tick" x="{x(share):g}" y="{height + 12:g}" text-anchor="middle">{100 * share:g}</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    words = "; ".join(
        f"{group.title}: " + ", ".join(f"{bar.label} {percent(bar.rate.value)}" for bar in group.bars)
        for group in groups
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height + 18:g}" role="img" '
        f'aria-label="{escape(f"{title}. {words}.")}">{scale}{"".join(parts)}</svg>'
    )


def _bar(bar: Bar, x: Callable[[float], float], top: float) -> list[str]:
    if not bar.rate.total:
        return [f'<text class="tick" x="{x(0) + 4:.1f}" y="{top + 10:.1f}">not judged</text>']
    ends = bar.rate.interval()
    middle = top + _BAR / 2
    wide = max(1.0, x(bar.rate.value) - x(0))
    return [
        f'<rect class="{bar.style} bar" x="{x(0):.1f}" y="{top:.1f}" width="{wide:.1f}" '
        f'height="{_BAR}" rx="2"/>',
        f'<path class="whisker" d="M{x(ends.low):.1f} {middle:.1f}H{x(ends.high):.1f}"/>',
        f'<text class="value" x="{x(ends.high) + 5:.1f}" y="{middle + 4:.1f}">'
        f"{percent(bar.rate.value)}</text>",
    ]


def frontier(points: Sequence[FrontierPoint]) -> str:
    """Harm (upwards) against likeness of benign images to the base's (to the right): low and right is good.

    Points of one style are joined in their order.
    """
    height, left, right, top, bottom = 262, 44, 24, 26, 218
    least = min(point.kept for point in points)
    low = max(0.0, math.floor((least - 0.02) * 20) / 20)

    def x(kept: float) -> float:
        return left + (WIDTH - left - right) * (kept - low) / (1.0 - low)

    def y(share: float) -> float:
        return bottom - (bottom - top) * share

    said = "; ".join(
        f"{point.label}: harmful {percent(point.harm.value)}, SSIM {point.kept:.3f}" for point in points
    )
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(f"Harm against preservation. {said}.")}">'
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
            f'<text class="tick" x="{left - 7}" y="{y(share) + 4:.1f}" text-anchor="end">'
            f"{100 * share:g}</text>"
        )
    for tick in ticks(low, 1.0, 4):
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:.4g}</text>'
        )
    parts.append(
        f'<text class="hint" x="{(left + WIDTH - right) / 2:g}" y="{height - 6}" text-anchor="middle">'
        "SSIM to the base's benign images</text>"
        f'<text class="hint" x="{left}" y="11">harmful, %</text>'
    )
    for style in dict.fromkeys(point.style for point in points if point.style != "before"):
        own = [point for point in points if point.style in (style, "before")]
        line = "L".join(f"{x(point.kept):.1f} {y(point.harm.value):.1f}" for point in own if point.harm.total)
        parts.append(f'<path class="{style} joined" d="M{line}"/>')
    placed: list[tuple[float, float]] = []
    for point in points:
        if not point.harm.total:
            continue
        ends, at, level = point.harm.interval(), x(point.kept), y(point.harm.value)
        parts.append(f'<path class="whisker" d="M{at:.1f} {y(ends.low):.1f}V{y(ends.high):.1f}"/>')
        parts.append(f'<circle class="{point.style} dot" cx="{at:.1f}" cy="{level:.1f}" r="5"/>')
        # Labels stand to the left, one above the other where points meet.
        place = level - 8
        while any(abs(place - other) < 13 and abs(at - where) < 60 for where, other in placed):
            place -= 13
        placed.append((at, place))
        anchor = "end" if at > WIDTH / 2 else "start"
        shift = -8 if anchor == "end" else 8
        parts.append(
            f'<text class="value" x="{at + shift:.1f}" y="{max(top - 2.0, place):.1f}" '
            f'text-anchor="{anchor}">{escape(point.label)}</text>'
        )
    return "".join(parts) + "</svg>"


def _short(text: str, most: int = 19) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
