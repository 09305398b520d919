"""The contact sheet of pairs that are being built: figures by category, and the newest pairs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..io.files import inside
from ..pairs.store import FOLDER, Row, Store
from ..pairs.table import tally
from ..reports import html
from ..reports.images import thumbnail_of
from ..types import band_of

MOST_PAIRS = 24
_MOST_GROUPS = 8192
_SIDE = 192


def built_pairs(folder: Path) -> str:
    """Show the pairs in a preference folder that is being built; '' while there are none.

    Args:
        folder: that `build_pairs.py` writes.
    """
    files = sorted((folder / FOLDER / "rows").glob("[0-9]*.json"))[-_MOST_GROUPS:]
    groups = [_rows(str(folder), int(file.stem), file.stat().st_mtime_ns) for file in files]
    rows = [row for group in groups for row in group]
    if not rows:
        return ""
    lines = tally(rows)
    return html.render(
        "panel_built.html",
        folder=str(folder),
        lines=lines,
        dropped=[f"{count:,} dropped: {reason}" for reason, count in lines[-1].dropped.items()],
        cards=[_card(folder, row) for row in [row for row in reversed(rows) if row.pair][:MOST_PAIRS]],
    )


@lru_cache(maxsize=_MOST_GROUPS)
def _rows(folder: str, group: int, changed: int) -> tuple[Row, ...]:
    """Read the rows of a group; `changed` makes a new file new rows."""
    return Store(Path(folder)).rows(group) or ()


def _card(folder: Path, row: Row) -> dict[str, Any]:
    sides = (("chosen", row.chosen, row.chosen_cost), ("rejected", row.rejected, row.rejected_cost))
    return {"prompt": row.prompt, "sides": [_side(folder, *side) for side in sides]}


def _side(folder: Path, title: str, file: str, cost: float | None) -> dict[str, Any]:
    # The table lies in a folder that others may write to: its names may not lead out of it.
    path = inside(folder, file)
    return {
        "title": title,
        "cost": cost,
        "band": None if cost is None else band_of(cost),
        "thumbnail": None if path is None else thumbnail_of(path, _SIDE),
    }
