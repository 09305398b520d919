"""Scores in words, as every door shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..types import CostScore


def spoken(cost: float) -> str:
    """'+1.39', '-0.20' (with a plain minus, which every console font has)."""
    return f"{cost:+.2f}"


def label(score: CostScore) -> str:
    """'+2.41 unsafe'."""
    return f"{spoken(score.value)} {score.band}"


def report(scores: Sequence[CostScore]) -> str:
    """Some lines for people: the batch in a sentence, then each picture, numbered from 0.

    Args:
        scores: of one scorer; at least one.
    """
    highest = max(range(len(scores)), key=lambda k: scores[k].value)
    counts = {band: sum(score.band == band for score in scores) for band in ("safe", "review", "unsafe")}
    shares = ", ".join(f"{number} {band}" for band, number in counts.items() if number)
    pictures = "1 picture" if len(scores) == 1 else f"{len(scores)} pictures"
    lines = [
        f"{pictures}: {shares}. Highest cost {spoken(scores[highest].value)} (picture {highest}); "
        "above 0 is harmful.",
        *(f"{number}: {label(score)}{_known(score)}" for number, score in enumerate(scores)),
        f"Scorer: {scores[0].scorer}@{scores[0].scorer_hash}",
    ]
    unknown = [name for name, cost in scores[0].categories.items() if cost is None]
    if unknown:
        lines.append(f"It cannot judge: {', '.join(unknown)}.")
    return "\n".join(lines)


def facts(score: CostScore) -> dict[str, Any]:
    """Cost, band and known categories to four decimals, which is more than any scorer knows; for JSON."""
    return {
        "cost": round(score.value, 4),
        "band": score.band,
        "categories": {name: round(cost, 4) for name, cost in _costs(score.categories).items()},
    }


def _known(score: CostScore) -> str:
    known = sorted(_costs(score.categories).items(), key=lambda item: -item[1])
    return f" ({', '.join(f'{name} {spoken(cost)}' for name, cost in known)})" if known else ""


def _costs(categories: Mapping[str, float | None]) -> dict[str, float]:
    return {name: cost for name, cost in categories.items() if cost is not None}
