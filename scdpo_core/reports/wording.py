"""Numbers, costs and scores in words, the same in every page, console, node and API."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..types import CostScore

NARROW = "\u202f"
"""Narrow no-break space, between a number and its unit."""
MINUS = "\u2212"
DASH = "\u2013"
ARROW = "\u2192"

MOST_IMAGES = 12
"""Images that a score report lists one by one; of more, those with the highest costs."""


class Interval(Protocol):
    """A confidence interval."""

    @property
    def low(self) -> float:
        """Lower end, included."""

    @property
    def high(self) -> float:
        """Upper end, included."""


class Share(Protocol):
    """A share of images with its 95 % interval, such as `evaluation.intervals.Rate`."""

    @property
    def total(self) -> int:
        """Number of images; 0 makes the share unknown."""

    @property
    def value(self) -> float:
        """The share, 0..1; NaN without images."""

    def interval(self) -> Interval:
        """Return the 95 % confidence interval."""


def percent(value: float) -> str:
    """Return '92 %', '3.1 %', or 'not measured' for NaN."""
    return f"{short(100 * value)}{NARROW}%" if math.isfinite(value) else "not measured"


def interval(share: Share) -> str:
    """Return the 95 % confidence interval as '1.2-8.7 %'; whole percents below 200 images, '' without any."""
    if not share.total:
        return ""
    ends = share.interval()
    low, high = (
        f"{100 * end:.0f}" if share.total < 200 else short(100 * end) for end in (ends.low, ends.high)
    )
    return f"{low}{DASH}{high}{NARROW}%"


def short(value: float) -> str:
    """Return a number with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0").replace("-", MINUS)


def signed(value: float, digits: int = 2, minus: str = MINUS) -> str:
    """Return '+1.39', '-0.20' or '0.00'.

    Args:
        value: usually a cost.
        digits: decimals.
        minus: '-' where a console's font may lack the true minus sign.
    """
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", minus) if rounded else f"{0:.{digits}f}"


def duration(seconds: float) -> str:
    """Return '45 s', '4 min 30 s' or '2 h 5 min'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return " ".join(
        filter(None, (f"{minutes} min" if minutes else "", f"{rest} s" if rest or not minutes else ""))
    )


def count(number: int, one: str, many: str | None = None) -> str:
    """Return '1 caption', '2 captions', '12,000 images'."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def label(score: CostScore) -> str:
    """Return '+2.41 unsafe', or that there is no cost; with a plain minus, which every font has."""
    return f"{signed(score.value, minus='-')} {score.band}" if score.finite else "could not be judged"


def highest(scores: Sequence[CostScore], most: int) -> list[int]:
    """Return the indexes of at most `most` scores by falling cost, first those that could not be judged."""
    return sorted(range(len(scores)), key=lambda k: _severity(scores[k]), reverse=True)[:most]


def score_report(scores: Sequence[CostScore]) -> str:
    """Describe a batch in one sentence, then each image by its index, from 0.

    Lists all images in order, or, of a large batch, the `MOST_IMAGES` with the highest costs.

    Args:
        scores: of one scorer; at least one.
    """
    finite = [score for score in scores if score.finite]
    counts = {band: sum(score.band == band for score in finite) for band in ("safe", "review", "unsafe")}
    counts["could not be judged"] = len(scores) - len(finite)
    shares = ", ".join(f"{number} {band}" for band, number in counts.items() if number)
    by_cost = highest(scores, len(scores))
    worst_cost = ""
    if finite:
        worst = next(k for k in by_cost if scores[k].finite)
        cost = signed(scores[worst].value, minus="-")
        worst_cost = f" Highest cost {cost} (image {worst}); above 0 is harmful."
    lines = [f"{count(len(scores), 'image')}: {shares}.{worst_cost}"]
    if len(scores) <= MOST_IMAGES:
        by_cost.sort()
    else:
        lines.append(f"The {MOST_IMAGES} highest of {len(scores)}:")
    lines += [f"{k}: {label(scores[k])}{_categories(scores[k])}" for k in by_cost[:MOST_IMAGES]]
    lines.append(f"Scorer: {scores[0].scorer}@{scores[0].scorer_hash}")
    unknown = [name for name, cost in scores[0].categories.items() if cost is None]
    if unknown:
        lines.append(f"It cannot judge: {', '.join(unknown)}.")
    return "\n".join(lines)


def score_json(score: CostScore) -> dict[str, Any]:
    """Return cost, band and known categories for JSON, to four decimals.

    A cost that is not finite becomes None, since JSON has no such number, and 'error' says why.
    """
    if not score.finite:
        return {"cost": None, "band": score.band, "categories": {}, "error": score.problem}
    values: dict[str, Any] = {
        "cost": round(score.value, 4),
        "band": score.band,
        "categories": {name: round(cost, 4) for name, cost in _judged(score.categories).items()},
    }
    if score.details:
        values["details"] = {name: round(cost, 4) for name, cost in score.details.items()}
    return values


def _severity(score: CostScore) -> tuple[bool, float]:
    """Order by cost, first what could not be judged."""
    return not score.finite, score.value if score.finite else 0.0


def _categories(score: CostScore) -> str:
    costs = sorted(_judged(score.categories).items(), key=lambda item: -item[1])
    parts = [f"{name} {signed(cost, minus='-')}" for name, cost in costs]
    parts += [f"mostly {score.objection}"] if score.objection and score.band != "safe" else []
    return f" ({', '.join(parts)})" if parts else ""


def _judged(categories: Mapping[str, float | None]) -> dict[str, float]:
    return {name: cost for name, cost in categories.items() if cost is not None}
