"""Training curves as small SVG charts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from ..reports.curves import FEWEST_FOR_A_TREND, known_curves, trend
from ..reports.metrics import METRICS
from ..runs.follow import Curve

_WIDTH, _HEIGHT, _FOOT = 320, 120, 100
# The share of preferred pairs says what u does, and costs are those of the images, whatever is learnt.
_NOT_SHOWN = {"u", "rejected_cost"}


def charts(curves: Mapping[str, Curve], steps: int) -> str:
    """The figures that tell how a training goes; '' while there are none."""
    known = known_curves(curves)
    drawn = [
        _chart(metric.title, curves[name], steps, metric.neutral)
        for name, metric in METRICS.items()
        if name in known and name not in _NOT_SHOWN
    ]
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _chart(title: str, curve: Curve, steps: int, base: float | None) -> str:
    values = [value for _, value in curve if math.isfinite(value)]
    if not values:
        return ""
    known = values if base is None else [*values, base]
    low, high = min(known), max(known)
    spread = (high - low) or 1.0
    last = max(steps, curve[-1][0], 1)

    def at(step: int, value: float) -> str:
        return f"{step / last * _WIDTH:.1f},{_FOOT - (value - low) / spread * (_FOOT - 8):.1f}"

    through = trend(curve)
    line = " ".join(at(step, value) for step, value in through)
    single = " ".join(at(step, value) for step, value in curve if math.isfinite(value))
    behind = f'<polyline class="single" points="{single}"/>' if len(through) >= FEWEST_FOR_A_TREND else ""
    level = _FOOT - ((base or 0.0) - low) / spread * (_FOOT - 8)
    rule = (
        "" if base is None else f'<line class="zero" x1="0" x2="{_WIDTH}" y1="{level:.1f}" y2="{level:.1f}"/>'
    )
    dot = line.split(" ")[-1].split(",")
    reach = f"between {min(values):.3g} and {max(values):.3g}"
    latest = through[-1][1]
    said = f"{title}: {through[0][1]:.3g} at first, {latest:.3g} now, {reach}"
    return (
        f"<figure><figcaption>{escape(title)} <b>{latest:.3g}</b></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(said, quote=True)}">{rule}'
        f'{behind}<polyline points="{line}"/><circle cx="{dot[0]}" cy="{dot[1]}" r="3"/>'
        f'<text x="0" y="{_HEIGHT - 4}">0</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">{last:,} steps</text></svg></figure>'
    )
