"""A gallery of scored images as one HTML file: the highest costs first, blurred until clicked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..io.files import write_text
from ..io.printable import printable
from ..reports import html
from ..reports.charts import band_histogram
from ..reports.images import Thumbnail, thumbnail_of
from ..reports.wording import signed
from ..types import objection
from .table import Row, category_names

MOST_IMAGES = 3000
"""Images with a thumbnail, those with the highest costs; about 10 kB each."""
_MOST_REASONS = 1000


@dataclass(frozen=True)
class Card:
    """One image, under all names that its content has.

    Attributes:
        row: of its first file.
        paths: of all its files.
        thumbnail: None where it is gone.
        notes: what the cost is made of.
        costs: of the categories, as JSON.
    """

    row: Row
    paths: Sequence[str]
    thumbnail: Thumbnail | None
    notes: Sequence[str]
    costs: str


def write_gallery(
    path: Path,
    rows: Sequence[Row],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the gallery, atomically. Files with the same content share a card.

    Args:
        path: the .html file.
        rows: of one scorer.
        progress: receives how many of how many thumbnails are made.

    Raises:
        OSError: the file cannot be written.
    """
    scored = by_cost(rows)
    groups: dict[str | None, list[Row]] = {}
    for row in scored:
        groups.setdefault(row.sha256, []).append(row)
    with_thumbnail = list(groups.values())[:MOST_IMAGES]
    # Decoders release the interpreter lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        cards = []
        for card in pool.map(_card, with_thumbnail):
            cards.append(card)
            progress(len(cards), len(with_thumbnail))
    has_costs = {
        name: any(row.categories.get(name) is not None for row in scored) for name in category_names(scored)
    }
    costs = [row.cost for row in scored if row.cost is not None]
    page = html.render(
        "gallery.html",
        scorer=rows[0].scorer if rows else "",
        created=datetime.now().strftime("%Y-%m-%d %H:%M"),
        scored=len(scored),
        above=sum(cost > 0 for cost in costs),
        unknown=[name for name, judged in has_costs.items() if not judged],
        categories=[name for name, judged in has_costs.items() if judged],
        histogram=band_histogram(costs) if costs else None,
        bands={band: sum(row.band == band for row in scored) for band in ("unsafe", "review", "safe")},
        cards=cards,
        left=len(scored) - sum(map(len, with_thumbnail)),
        failed=[row for row in rows if row.error is not None],
        most_reasons=_MOST_REASONS,
    )
    write_text(path, page)


def by_cost(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that have a cost, the highest first."""
    return sorted(
        (row for row in rows if row.cost is not None), key=lambda row: (-(row.cost or 0.0), row.path)
    )


def above_zero(row: Row) -> list[str]:
    """Return 'weapon +2.10' for every category above zero, where the scorer knows several."""
    costs = {name: cost for name, cost in row.categories.items() if cost is not None}
    return [f"{name} {signed(cost)}" for name, cost in costs.items() if cost > 0 and len(costs) > 1]


def _card(rows: Sequence[Row]) -> Card:
    row = rows[0]
    frame = f"frame {row.frame}" if row.frame else ""
    costs = {name: round(cost, 4) for name, cost in row.categories.items() if cost is not None}
    return Card(
        row,
        [printable(each.path) for each in rows],
        thumbnail_of(row.path, frame=row.frame),
        [note for note in (*above_zero(row), objection(row.details), frame) if note],
        json.dumps(costs),
    )
