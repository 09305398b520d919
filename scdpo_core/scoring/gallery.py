"""A gallery of scored images as one HTML file: the costliest first, blurred until one looks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from html import escape
from pathlib import Path

from ..io.files import write_text
from ..io.printable import printable
from ..types import REVIEW_FROM, UNSAFE_FROM, Band, objection
from .html_parts import badge, counted, histogram, path_line, render, signed, thumbnail
from .table import Row, category_names

MOST_IMAGES = 3000
"""Images with a thumbnail, the costliest ones; about 10 kB each."""
_MOST_REASONS = 1000
_BANDS: tuple[Band, ...] = ("unsafe", "review", "safe")


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
        progress: is told how many of how many thumbnails are made.

    Raises:
        OSError: the file cannot be written.
    """
    groups: dict[str | None, list[Row]] = {}
    for row in sorted((row for row in rows if row.cost is not None), key=_order):
        groups.setdefault(row.sha256, []).append(row)
    shown = list(groups.values())[:MOST_IMAGES]
    # Decoders let go of the interpreter lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        cards = []
        for card in pool.map(_card, shown):
            cards.append(card)
            progress(len(cards), len(shown))
    scored = [row for row in rows if row.cost is not None]
    failed = [row for row in rows if row.error is not None]
    left = len(scored) - sum(map(len, shown))
    page = render(
        "gallery.html",
        title="Safety scores",
        scorer=escape(rows[0].scorer if rows else ""),
        created=datetime.now().strftime("%Y-%m-%d %H:%M"),
        headline=_headline(scored, failed),
        explained=_explained(scored),
        histogram=histogram([row.cost for row in scored if row.cost is not None]),
        bands="".join(_band_box(band, scored) for band in _BANDS),
        categories=_category_choice(scored),
        cards="\n".join(cards),
        more=f'<p class="note">{counted(left, "file")} of lower cost not shown here.</p>' if left else "",
        failed=_failures(failed),
    )
    write_text(path, page)


def _order(row: Row) -> tuple[float, str]:
    assert row.cost is not None
    return -row.cost, row.path


def _card(rows: Sequence[Row]) -> str:
    row = rows[0]
    assert row.cost is not None and row.band is not None
    paths = [printable(each.path) for each in rows]
    known = {name: cost for name, cost in row.categories.items() if cost is not None}
    above = [f"{name} {signed(cost)}" for name, cost in known.items() if cost > 0 and len(known) > 1]
    frame = f"frame {row.frame}" if row.frame else ""
    notes = "".join(
        f'<span class="why">{escape(note)}</span>' for note in (*above, objection(row.details), frame) if note
    )
    costs = json.dumps({name: round(cost, 4) for name, cost in known.items()})
    return (
        f'<li data-cost="{row.cost:.4f}" data-band="{row.band}" data-costs="{escape(costs, quote=True)}" '
        f'data-paths="{escape(chr(10).join(paths), quote=True)}">'
        f'<button type="button" class="shot" aria-label="Show or cover this image">'
        f"{thumbnail(Path(row.path), row.frame)}</button>"
        f'<div class="said">{badge(row.cost, row.band)}{notes}</div>'
        f"{path_line(paths[0])}{_others(paths[1:])}</li>"
    )


def _others(paths: Sequence[str]) -> str:
    if not paths:
        return ""
    lines = "".join(map(path_line, paths))
    return f"<details><summary>{len(paths):,} more with the same content</summary>{lines}</details>"


def _headline(scored: Sequence[Row], failed: Sequence[Row]) -> str:
    above = sum(row.cost is not None and row.cost > 0 for row in scored)
    text = f"{counted(above, 'image')} of {len(scored):,} above zero"
    return f"{text}, {counted(len(failed), 'file')} not scored" if failed else text


def _explained(scored: Sequence[Row]) -> str:
    unknown = [
        name for name in category_names(scored) if all(row.categories.get(name) is None for row in scored)
    ]
    text = (
        "A cost is log-odds of harm: zero is the boundary, above it is harmful, and between "
        f"{signed(REVIEW_FROM)} and {signed(UNSAFE_FROM)} the scorer is not sure. Click an image to "
        "uncover it."
    )
    if unknown:
        text += f" This scorer knows nothing of {escape(', '.join(unknown))}."
    return text


def _band_box(band: Band, scored: Sequence[Row]) -> str:
    count = sum(row.band == band for row in scored)
    return (
        f'<label><input type="checkbox" name="band" value="{band}" checked>'
        f'<span class="cost {band}">{band} {count:,}</span></label>'
    )


def _category_choice(scored: Sequence[Row]) -> str:
    names = [
        name for name in category_names(scored) if any(row.categories.get(name) is not None for row in scored)
    ]
    if len(names) < 2:
        return ""
    options = "".join(f'<option value="{escape(name, quote=True)}">{escape(name)}</option>' for name in names)
    return f'<label>Above zero in <select id="kind"><option value="">any</option>{options}</select></label>'


def _failures(failed: Sequence[Row]) -> str:
    if not failed:
        return ""
    lines = "".join(
        f"<tr><td>{path_line(printable(row.path))}</td><td>{escape(printable(row.error or ''))}</td></tr>"
        for row in failed[:_MOST_REASONS]
    )
    left = len(failed) - _MOST_REASONS
    more = f'<p class="note">And {counted(left, "more file")}.</p>' if left > 0 else ""
    return (
        '<section class="part"><h2>Not scored</h2><table><thead><tr><th>File</th><th>Why</th></tr></thead>'
        f"<tbody>{lines}</tbody></table>{more}</section>"
    )
