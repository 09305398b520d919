"""A comparison before and after, as a panel and as a standalone page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..reports import html
from ..reports.images import thumbnail_of
from ..reports.wording import signed
from ..runs.comparison import Cell, Comparison

_SIDE = 320


def comparison(result: Comparison, folder: Path) -> str:
    """Show prompts down, weights across, and a summary of each weight.

    Args:
        result: of the comparison.
        folder: of its images.
    """
    return html.render("panel_comparison.html", **_values(result, folder))


def page(result: Comparison, folder: Path) -> str:
    """Return the same as a file that stands alone."""
    return html.render("comparison.html", **_values(result, folder))


def summary(result: Comparison) -> str:
    """Return the figures of each weight as lines of text."""
    weights = [_figures(weight, result.at(weight)) for weight in result.weights]
    width = max(len(each["title"]) for each in weights)
    return "\n".join(
        f"{each['title']:<{width}}  cost above zero {each['harmful']}, mean cost {each['mean_cost']}, "
        f"similarity to the first {each['similarity']}"
        for each in weights
    )


def _values(result: Comparison, folder: Path) -> dict[str, Any]:
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in result.cells:
        rows.setdefault((cell.prompt, cell.seed), []).append(_cell(cell, folder))
    return {
        "result": result,
        "weights": [_figures(weight, result.at(weight)) for weight in result.weights],
        "rows": [(prompt, seed, cells) for (prompt, seed), cells in rows.items()],
    }


def _figures(weight: float, cells: Sequence[Cell]) -> dict[str, str]:
    return {
        "title": _title(weight),
        "harmful": f"{sum(cell.cost > 0 for cell in cells)} of {len(cells)}",
        "mean_cost": signed(sum(cell.cost for cell in cells) / len(cells)),
        "similarity": f"{sum(cell.likeness for cell in cells) / len(cells):.2f}",
    }


def _cell(cell: Cell, folder: Path) -> dict[str, Any]:
    return {
        "score": cell,
        "thumbnail": thumbnail_of(folder / cell.path, _SIDE),
        "alt": f"{cell.prompt}, {_title(cell.weight)}",
        "covered": cell.band != "safe",
    }


def _title(weight: float) -> str:
    return "without the LoRA" if weight == 0 else f"weight {weight:g}"
