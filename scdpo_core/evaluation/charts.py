"""Charts as inline SVG. Colours come from the page's style sheet, so that they follow its dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .intervals import Rate

WIDTH = 400
"""Of every chart in its own units; drawn at 370 (phone) to about 560 pixels, so 13 units read well."""

_LEFT, _RIGHT, _TOP = 44, 18, 14


@dataclass(frozen=True)
class Line:
    """One curve: `values` over `steps`; values that are not finite are gaps. `style` is a CSS class."""

    label: str
    style: str
    steps: Sequence[float]
    values: Sequence[float]


def dumbbell(before: Rate, after: Rate, bound: float | None) -> str:
    """Two rates with their 95 % intervals on a line from 0 to 100 %, and a tick where the target is.

    Hidden from screen readers: the numbers stand beside it as text.
    """

    def x(value: float) -> float:
        return 8 + 224 * min(1.0, max(0.0, value))

    parts = ['<svg class="dumbbell" viewBox="0 0 240 38" aria-hidden="true" focusable="false">']
    parts.append('<line class="axis" x1="8" x2="232" y1="15" y2="15"/>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        edge = x(share) + 4 * (2 * share - 1)
        parts.append(
            f'<line class="axis" x1="{x(share):g}" x2="{x(share):g}" y1="12" y2="18"/>'
            f'<text x="{edge:g}" y="36" text-anchor="{anchor}">{100 * share:g}</text>'
        )
    if bound is not None:
        parts.append(f'<path class="target" d="M{x(bound):.1f} 3v24"/>')
    for rate, style in ((before, "before"), (after, "after")):
        if rate.total:
            ends = rate.interval()
            low, high = x(ends.low), x(ends.high)
            place = f'x="{low:.1f}" y="11.5" width="{high - low:.1f}"'
            parts.append(f'<rect class="{style} ci" {place} height="7" rx="3.5"/>')
    for rate, style in ((before, "before"), (after, "after")):
        if rate.total:
            parts.append(f'<circle class="{style} dot" cx="{x(rate.value):.1f}" cy="15" r="5.5"/>')
    return "".join(parts) + "</svg>"


def histogram(title: str, before: Sequence[float], after: Sequence[float], low: float, high: float) -> str:
    """Costs before (above the line) and after (below it), on one scale; 0 is the boundary.

    Args:
        title: what the images are.
        before: costs of the base model's images.
        after: costs with the LoRA.
        low: left end of the scale; what lies beyond is counted in the outermost bar.
        high: right end.
    """
    bins = max(1, round(2 * (high - low)))
    above, below = _binned(before, low, high, bins), _binned(after, low, high, bins)
    tallest = max(1, *above, *below)
    height, middle, reach = 256, 120, 80

    def x(value: float) -> float:
        return 10 + (WIDTH - 20) * (value - low) / (high - low)

    step = (WIDTH - 20) / bins
    parts = [_open(title, _histogram_words(before, after), height)]
    parts.append(
        f'<rect class="harm-side" x="{x(0):.1f}" y="6" width="{WIDTH - 10 - x(0):.1f}" height="228"/>'
        f'<text class="hint" x="{x(0) + 6:.1f}" y="20">harmful</text>'
        f'<text class="hint" x="{x(0) - 6:.1f}" y="20" text-anchor="end">safe</text>'
    )
    for counts, style, sign in ((above, "before", -1), (below, "after", 1)):
        for index, number in enumerate(counts):
            if number:
                size = reach * number / tallest
                top = middle - size - 1 if sign < 0 else middle + 1
                parts.append(
                    f'<rect class="{style} bar" x="{10 + index * step + 1:.1f}" y="{top:.1f}" '
                    f'width="{max(1.0, step - 2):.1f}" height="{size:.1f}"/>'
                )
        peak = counts.index(max(counts))
        level = middle + sign * (reach * counts[peak] / tallest + 9) + (4 if sign > 0 else 0)
        parts.append(
            f'<text class="tick" x="{10 + (peak + 0.5) * step:.1f}" y="{level:.1f}" '
            f'text-anchor="middle">{counts[peak]}</text>'
        )
    parts.append(f'<line class="axis" x1="10" x2="{WIDTH - 10}" y1="{middle}" y2="{middle}"/>')
    parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="6" y2="234"/>')
    parts += [_below(x(tick), 251, tick) for tick in ticks(low, high, 6)]
    return "".join(parts) + "</svg>"


def line_chart(title: str, lines: Sequence[Line], reference: tuple[float, str] | None = None) -> str:
    """Curves over training steps: the noisy values faint, their running mean strong.

    Args:
        title: for screen readers.
        lines: the curves; they share the scale.
        reference: a level to mark, and what it means.
    """
    height, bottom = 220, 192
    steps = [s for line in lines for s in line.steps]
    low, high = _span(lines, reference)
    first, last = (min(steps), max(steps)) if steps else (0.0, 1.0)
    last = last if last > first else first + 1

    def x(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (step - first) / (last - first)

    def y(value: float) -> float:
        return bottom - (bottom - _TOP) * (value - low) / (high - low)

    def path(points: Sequence[tuple[float, float]]) -> str:
        text, pen = [], "M"
        for step, value in points:
            if math.isfinite(value):
                text.append(f"{pen}{x(step):.1f} {y(value):.1f}")
                pen = "L"
            else:
                pen = "M"
        return "".join(text)

    parts = [_open(title, _curve_words(lines), height)]
    for tick in ticks(low, high, 4):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="tick" x="{_LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{_tick(tick)}</text>'
        )
    parts += [_below(x(tick), 212, tick) for tick in ticks(first, last, 4)]
    if reference is not None:
        level, right = y(reference[0]), WIDTH - _RIGHT
        parts.append(
            f'<line class="reference" x1="{_LEFT}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}"/>'
            f'<text class="hint" x="{right}" y="{level - 5:.1f}" text-anchor="end">'
            f"{escape(reference[1])}</text>"
        )
    for line in lines:
        points = list(zip(line.steps, line.values, strict=True))
        parts.append(f'<path class="{line.style} faint" d="{path(_thin(points))}"/>')
        parts.append(f'<path class="{line.style} strong" d="{path(_thin(_smooth(points)))}"/>')
    return "".join(parts) + "</svg>"


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within low..high, some `about` of them."""
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    start = math.ceil(low / step - 1e-9)
    return [k * step for k in range(start, math.floor(high / step + 1e-9) + 1)]


def _open(title: str, description: str, height: int) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(f"{title}. {description}")}">'
    )


def _below(x: float, y: float, tick: float) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:g}" text-anchor="middle">{_tick(tick)}</text>'


def _binned(values: Sequence[float], low: float, high: float, bins: int) -> list[int]:
    counts = [0] * bins
    for value in values:
        index = math.floor((value - low) / (high - low) * bins)
        counts[min(bins - 1, max(0, index))] += 1
    return counts


def _histogram_words(before: Sequence[float], after: Sequence[float]) -> str:
    harmful_before, harmful_after = (sum(v > 0 for v in values) for values in (before, after))
    return (
        f"Before tuning {harmful_before} of {len(before)} images cost more than 0, "
        f"after it {harmful_after} of {len(after)}."
    )


def _curve_words(lines: Sequence[Line]) -> str:
    said = []
    for line in lines:
        finite = [v for v in line.values if math.isfinite(v)]
        if finite:
            said.append(f"{line.label} goes from {finite[0]:.3g} to {finite[-1]:.3g}")
    return "; ".join(said) + "." if said else "No values."


def _span(lines: Sequence[Line], reference: tuple[float, str] | None) -> tuple[float, float]:
    values = sorted(v for line in lines for v in line.values if math.isfinite(v))
    # A few wild steps must not flatten the curve that matters.
    trimmed = values[len(values) // 100 : len(values) - len(values) // 100]
    if reference is not None:
        trimmed = [*trimmed, reference[0]]
    low, high = (min(trimmed), max(trimmed)) if trimmed else (0.0, 1.0)
    margin = 0.08 * (high - low) or max(abs(high), 1e-6) * 0.1
    return low - margin, high + margin


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Running mean over a tenth of the curve, without the extreme tenths: one wild step leaves no trace."""
    half = max(1, len(points) // 20)
    smoothed = []
    for index, (step, _) in enumerate(points):
        window = sorted(v for _, v in points[max(0, index - half) : index + half + 1] if math.isfinite(v))
        cut = len(window) // 10
        kept = window[cut : len(window) - cut]
        smoothed.append((step, sum(kept) / len(kept) if kept else math.nan))
    return smoothed


def _thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most about 300 points; a screen shows no more."""
    stride = -(-len(points) // 300)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def _tick(value: float) -> str:
    text = f"{value:.6g}"
    return (text if "e" not in text else f"{value:.0e}").replace("-", "\u2212")
