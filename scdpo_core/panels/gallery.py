"""Scored images, the highest costs first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..reports import html
from ..reports.images import thumbnail_of
from ..scoring.gallery import above_zero, by_cost
from ..scoring.table import Row
from ..types import objection

MOST_IMAGES = 400
"""Images shown; the table has all of them."""
_SIDE = 256


def gallery(rows: Sequence[Row], heatmaps: Mapping[str, Path] | None = None) -> str:
    """Show cards sorted by cost, covered until clicked.

    Args:
        rows: of one scorer.
        heatmaps: overlays of what raises the cost, by the image's path.
    """
    scored = by_cost(rows)
    return html.render(
        "panel_gallery.html",
        scorer=rows[0].scorer if rows else None,
        scored=len(scored),
        above=sum(row.cost is not None and row.cost > 0 for row in scored),
        cards=[_card(row, (heatmaps or {}).get(row.path)) for row in scored[:MOST_IMAGES]],
        left=len(scored[MOST_IMAGES:]),
        failed=[f"{Path(row.path).name}: {row.error}" for row in rows if row.cost is None],
    )


def _card(row: Row, heatmap: Path | None) -> dict[str, object]:
    return {
        "row": row,
        "name": Path(row.path).name,
        "thumbnail": thumbnail_of(row.path, _SIDE, row.frame),
        "categories": above_zero(row),
        "has_heatmap": heatmap is not None,
        "heatmap": None if heatmap is None else thumbnail_of(heatmap, _SIDE),
        "objection": objection(row.details),
    }
