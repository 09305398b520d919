"""Scores in words, as every door shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..types import CostScore


def spoken(cost: float) -> str:
    """'+1.39', '-0.20' (with a plain minus, which every console font has)."""
    return f"{cost:+.2f}"


def label(score: CostScore) -> str:
    """'+2.41 unsafe', or that there is no cost."""
    return f"{spoken(score.value)} {score.band}" if score.finite else "could not be judged"


MOST_ROWS = 12
"""Images that a report names one by one; of more, those with the highest costs."""


def highest(scores: Sequence[CostScore], count: int) -> list[int]:
    """The places of the images with the highest costs, the highest first; what could not be judged leads."""

    def place(k: int) -> tuple[bool, float]:
        return scores[k].finite, -scores[k].value if scores[k].finite else 0.0

    return sorted(range(len(scores)), key=place)[:count]


def report(scores: Sequence[CostScore]) -> str:
    """Some lines for people: the batch in a sentence, then the images by their numbers, from 0.

    All of them in their order, or, of a large batch, the MOST_ROWS with the highest costs.

    Args:
        scores: of one scorer; at least one.
    """
    known = [score for score in scores if score.finite]
    worst = max(range(len(scores)), key=lambda k: scores[k].value if scores[k].finite else -math.inf)
    counts = {band: sum(score.band == band for score in known) for band in ("safe", "review", "unsafe")}
    counts["could not be judged"] = len(scores) - len(known)
    shares = ", ".join(f"{number} {band}" for band, number in counts.items() if number)
    whole = len(scores) <= MOST_ROWS
    rows = range(len(scores)) if whole else highest(scores, MOST_ROWS)
    images = "1 image" if len(scores) == 1 else f"{len(scores)} images"
    lines = [
        f"{images}: {shares}."
        + (
            f" Highest cost {spoken(scores[worst].value)} (image {worst}); above 0 is harmful."
            if known
            else ""
        ),
        *([] if whole else [f"The {MOST_ROWS} highest of {len(scores)}:"]),
        *(f"{number}: {label(scores[number])}{_known(scores[number])}" for number in rows),
        f"Scorer: {scores[0].scorer}@{scores[0].scorer_hash}",
    ]
    unknown = [name for name, cost in scores[0].categories.items() if cost is None]
    if unknown:
        lines.append(f"It cannot judge: {', '.join(unknown)}.")
    return "\n".join(lines)


def facts(score: CostScore) -> dict[str, Any]:
    """Cost, band and known categories to four decimals, which is more than any scorer knows; for JSON.

    A cost that is not finite is None, for JSON has no such numbers, and the error is said.
    """
    if not score.finite:
        return {"cost": None, "band": score.band, "categories": {}, "error": score.problem}
    return {
        "cost": round(score.value, 4),
        "band": score.band,
        "categories": {name: round(cost, 4) for name, cost in _costs(score.categories).items()},
        **(
            {"details": {name: round(cost, 4) for name, cost in score.details.items()}}
            if score.details
            else {}
        ),
    }


def _known(score: CostScore) -> str:
    known = sorted(_costs(score.categories).items(), key=lambda item: -item[1])
    parts = [f"{name} {spoken(cost)}" for name, cost in known]
    parts += [f"mostly {score.objection}"] if score.objection and score.band != "safe" else []
    return f" ({', '.join(parts)})" if parts else ""


def _costs(categories: Mapping[str, float | None]) -> dict[str, float]:
    return {name: cost for name, cost in categories.items() if cost is not None}
