"""The contact sheet: every pair with its mask as one HTML file, images covered until clicked."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..io.files import inside, write_text
from ..io.images import ImageError, open_image
from ..io.printable import printable
from ..preferences.summary import spread
from ..scoring.html_parts import band_of, signed
from .store import Row
from .table import tally

if TYPE_CHECKING:
    from jinja2 import Environment

SHEET = "building.html"
"""In the preference folder."""
MOST_PAIRS = 400
"""Pairs with images on the sheet, from all over the folder; about 20 kB each."""

_SIDE = 224
_CRISP_UP_TO = 128


@dataclass(frozen=True)
class Shot:
    """An image on the sheet.

    Attributes:
        title: what it is.
        uri: its pixels; '' where it is no longer there.
        crisp: whether it is so small that pixels are shown hard.
        cost: log-odds, with its sign; '' for none.
        band: of the cost.
        covered: whether it waits for a click; a mask shows nothing that anybody has to be spared.
    """

    title: str
    uri: str
    crisp: bool
    cost: str = ""
    band: str = ""
    covered: bool = True


@dataclass(frozen=True)
class Card:
    """A pair on the sheet."""

    row: Row
    shots: tuple[Shot, ...]


def write_sheet(folder: Path, rows: Sequence[Row], facts: Mapping[str, str]) -> Path:
    """Write the contact sheet of a preference folder.

    Args:
        folder: with the pairs.
        rows: what became of everything.
        facts: what decided the pairs, by name.

    Returns:
        The page.

    Raises:
        OSError: it cannot be written.
    """
    kept = list({row.pair: row for row in rows if row.pair}.values())
    shown = spread(kept, MOST_PAIRS)
    lines = tally(rows)
    page = (
        _environment()
        .get_template("sheet.html")
        .render(
            folder=printable(folder.name),
            created=datetime.now().strftime("%Y-%m-%d %H:%M"),
            total=lines[-1],
            lines=lines if len(lines) > 2 else lines[-1:],
            dropped=lines[-1].dropped,
            facts=facts,
            cards=[_card(folder, row) for row in shown],
            left=len(kept) - len(shown),
            categories=sorted({row.category for row in shown}),
            style=_style(),
        )
    )
    path = folder / SHEET
    write_text(path, page)
    return path


def _environment() -> Environment:
    # Here, since hosts may lack it.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("scdpo_core.pairs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = lambda share: f"{share:.0%}"
    made.filters["count"] = lambda number: f"{number:,}"
    made.filters["plain"] = printable
    return made


def _style() -> str:
    folder = resources.files("scdpo_core.scoring").joinpath("templates")
    return folder.joinpath("page.css").read_text(encoding="utf-8")


def _card(folder: Path, row: Row) -> Card:
    titles = ("good", "hasty") if row.category == "benign" else ("chosen", "rejected")
    shots = [
        _shot(folder, name, title, cost)
        for name, title, cost in (
            (row.rejected, titles[1], row.rejected_cost),
            (row.chosen, titles[0], row.chosen_cost),
        )
    ]
    if row.mask:
        shots.append(replace(_shot(folder, row.mask, "drawn anew", None), covered=False))
    return Card(row, tuple(shots))


def _shot(folder: Path, name: str, title: str, cost: float | None) -> Shot:
    told, band = ("", "") if cost is None else (signed(cost), band_of(cost))
    # Rows lie in a folder that may have come from anybody.
    path = inside(folder, name)
    try:
        image = None if path is None else open_image(path)
    except ImageError:
        image = None
    if image is None:
        return Shot(title, "", False, told, band)
    crisp = max(image.size) <= _CRISP_UP_TO
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=92 if crisp else 78)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return Shot(title, f"data:image/jpeg;base64,{data}", crisp, told, band)
