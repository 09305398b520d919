"""Training curves as small SVG charts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from ..runs.follow import Curve

_WIDTH, _HEIGHT, _FOOT = 320, 120, 100
# Title, figure, and the value that stands for "nothing learnt yet".
_CHARTS: tuple[tuple[str, str, float | None], ...] = (
    ("Loss", "loss", None),
    ("Prefers the chosen picture, share", "implicit_accuracy", 0.5),
    ("Error on chosen pictures (below 0: learnt)", "winner_gap", 0.0),
    ("Error on rejected pictures (above 0: unlearnt)", "loser_gap", 0.0),
)


def charts(curves: Mapping[str, Curve], steps: int) -> str:
    """The figures that tell how a training goes; '' while there are none."""
    drawn = [_chart(title, curves[name], steps, base) for title, name, base in _CHARTS if curves.get(name)]
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

    line = " ".join(at(step, value) for step, value in curve if math.isfinite(value))
    level = _FOOT - ((base or 0.0) - low) / spread * (_FOOT - 8)
    rule = (
        "" if base is None else f'<line class="zero" x1="0" x2="{_WIDTH}" y1="{level:.1f}" y2="{level:.1f}"/>'
    )
    dot = line.split(" ")[-1].split(",")
    reach = f"between {min(values):.3g} and {max(values):.3g}"
    said = f"{title}: {values[0]:.3g} at first, {values[-1]:.3g} now, {reach}"
    return (
        f"<figure><figcaption>{escape(title)} <b>{values[-1]:.3g}</b></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(said, quote=True)}">{rule}'
        f'<polyline points="{line}"/><circle cx="{dot[0]}" cy="{dot[1]}" r="3"/>'
        f'<text x="0" y="{_HEIGHT - 4}">0</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">{last:,} steps</text></svg></figure>'
    )
