"""The contact sheet of pairs that are being built: figures by category, and the newest pairs."""

from __future__ import annotations

from functools import lru_cache
from html import escape
from pathlib import Path

from ..io.files import inside
from ..pairs.store import FOLDER, Row, Store
from ..pairs.table import tally
from ..scoring.html_parts import band_of
from .elements import cost, listed, veiled, wrapped

MOST_PAIRS = 24
_MOST_GROUPS = 8192


def built_pairs(folder: Path) -> str:
    """The pairs in a preference folder that is being built; '' while there are none.

    Args:
        folder: that `build_pairs.py` writes.
    """
    files = sorted((folder / FOLDER / "rows").glob("[0-9]*.json"))[-_MOST_GROUPS:]
    groups = [_rows(str(folder), int(file.stem), file.stat().st_mtime_ns) for file in files]
    rows = [row for group in groups for row in group]
    if not rows:
        return ""
    newest = [row for row in reversed(rows) if row.pair][:MOST_PAIRS]
    cards = "".join(_card(folder, row) for row in newest)
    title = "<h4>Newest pairs</h4>" if newest else ""
    place = f"<p class='soft'>The preference folder: {escape(str(folder))}</p>"
    return wrapped(f"{place}{_table(rows)}{title}<ul class='cards twins'>{cards}</ul>", "built")


@lru_cache(maxsize=_MOST_GROUPS)
def _rows(folder: str, group: int, changed: int) -> tuple[Row, ...]:
    """What became of a group; `changed` makes a new file new rows."""
    return Store(Path(folder)).rows(group) or ()


def _table(rows: list[Row]) -> str:
    lines = tally(rows)
    body = "".join(
        f'<tr><th scope="row">{escape(line.category or "no category")}</th><td>{line.wanted:,}</td>'
        f"<td>{line.kept:,}</td><td>{line.rate:.0%}</td></tr>"
        for line in lines
    )
    dropped = [f"{count:,} dropped: {reason}" for reason, count in lines[-1].dropped.items()]
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Pairs by category">'
        '<table class="figures">'
        '<thead><tr><th scope="col">Category</th><th scope="col">Prompts drawn</th><th scope="col">Pairs</th>'
        f'<th scope="col">Kept</th></tr></thead><tbody>{body}</tbody></table></div>{listed(dropped)}'
    )


def _card(folder: Path, row: Row) -> str:
    sides = "".join(
        _side(folder, title, file, value, row.prompt)
        for title, file, value in (
            ("chosen", row.chosen, row.chosen_cost),
            ("rejected", row.rejected, row.rejected_cost),
        )
    )
    prompt = escape(row.prompt, quote=True)
    return f'<li><div class="sides">{sides}</div><div class="name" title="{prompt}">{prompt}</div></li>'


def _side(folder: Path, title: str, file: str, value: float | None, prompt: str) -> str:
    path = inside(folder, file)
    shown = (
        ""
        if path is None
        else veiled(path, f"{title}: {prompt}", 192, veil=value is None or band_of(value) != "safe")
    )
    number = "" if value is None else f" {cost(value, band_of(value))}"
    return f"<figure><figcaption>{title}{number}</figcaption>{shown}</figure>"
