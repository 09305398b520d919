"""The contact sheet: every pair with its mask as one HTML file, images covered until clicked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..io.files import inside, write_text
from ..reports import html
from ..reports.images import Thumbnail, spread, thumbnail_of
from .store import Row
from .table import tally

SHEET = "building.html"
"""In the preference folder."""
MOST_PAIRS = 400
"""Pairs with images on the sheet, from all over the folder; about 20 kB each."""


@dataclass(frozen=True)
class Shot:
    """An image on the sheet.

    Attributes:
        title: its caption.
        thumbnail: None where its file is gone.
        cost: log-odds; None for none.
        mask: whether it is a mask, which shows nothing that has to be covered.
    """

    title: str
    thumbnail: Thumbnail | None
    cost: float | None = None
    mask: bool = False


@dataclass(frozen=True)
class Card:
    """A pair on the sheet."""

    row: Row
    shots: tuple[Shot, ...]


def write_sheet(folder: Path, rows: Sequence[Row], facts: Mapping[str, str]) -> Path:
    """Write the contact sheet of a preference folder.

    Args:
        folder: with the pairs.
        rows: the outcome of every image.
        facts: what decided the pairs, by name.

    Returns:
        The page.

    Raises:
        OSError: it cannot be written.
    """
    pairs = list({row.pair: row for row in rows if row.pair}.values())
    with_images = spread(pairs, MOST_PAIRS)
    lines = tally(rows)
    page = html.render(
        "pairs.html",
        folder=folder.name,
        created=datetime.now().strftime("%Y-%m-%d %H:%M"),
        total=lines[-1],
        lines=lines if len(lines) > 2 else lines[-1:],
        dropped=lines[-1].dropped,
        facts=facts,
        cards=[_card(folder, row) for row in with_images],
        left=len(pairs) - len(with_images),
        categories=sorted({row.category for row in with_images}),
    )
    path = folder / SHEET
    write_text(path, page)
    return path


def _card(folder: Path, row: Row) -> Card:
    chosen, rejected = ("good", "hasty") if row.category == "benign" else ("chosen", "rejected")
    shots = [
        Shot(rejected, _thumbnail(folder, row.rejected), row.rejected_cost),
        Shot(chosen, _thumbnail(folder, row.chosen), row.chosen_cost),
    ]
    if row.mask:
        shots.append(Shot("regenerated", _thumbnail(folder, row.mask), mask=True))
    return Card(row, tuple(shots))


def _thumbnail(folder: Path, name: str) -> Thumbnail | None:
    # Rows lie in a folder that may have come from anybody.
    path = inside(folder, name)
    return None if path is None else thumbnail_of(path)
