"""Scored images, the costliest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ..scoring.html_parts import signed
from ..scoring.table import Row
from ..types import objection
from .elements import cost, image, listed, notice, veiled, wrapped

MOST = 400
"""Images shown; the table has all of them."""


def gallery(rows: Sequence[Row], heatmaps: Mapping[str, Path] | None = None) -> str:
    """Cards sorted by cost, blurred until clicked.

    Args:
        rows: of one scorer.
        heatmaps: overlays of what raises the cost, by the image's path.
    """
    scored = sorted((row for row in rows if row.cost is not None), key=_costliest)
    failed = [f"{Path(row.path).name}: {row.error}" for row in rows if row.cost is None]
    if not rows:
        return wrapped(notice("There were no images."), "gallery")
    above = sum(row.cost is not None and row.cost > 0 for row in scored)
    head = f"<p><b>{above} of {len(scored):,} images cost more than zero</b>, which is harmful.</p>"
    cards = "".join(_card(row, (heatmaps or {}).get(row.path)) for row in scored[:MOST])
    more = (
        f"<p>{len(scored) - MOST:,} of lower cost are in the table alone.</p>" if len(scored) > MOST else ""
    )
    reasons = f"<h4>Not scored</h4>{listed(failed)}" if failed else ""
    scorer = f'<p class="soft">Scored by {escape(rows[0].scorer)}.</p>'
    return wrapped(f'{head}<ul class="cards">{cards}</ul>{more}{reasons}{scorer}', "gallery")


def _costliest(row: Row) -> tuple[float, str]:
    return -(row.cost or 0.0), row.path


def _card(row: Row, heatmap: Path | None) -> str:
    assert row.cost is not None and row.band is not None
    name = Path(row.path).name
    above = [
        f"{kind} {signed(value)}" for kind, value in row.categories.items() if value is not None and value > 0
    ]
    why = f'<span class="soft">{escape(", ".join(above))}</span>' if above and len(row.categories) > 1 else ""
    heat, who = "", objection(row.details)
    if heatmap is not None:
        heat = (
            f"<details><summary>What raises the cost{f': {escape(who)}' if who else ''}</summary>"
            f"{image(heatmap, f'{name}: red where the cost comes from')}</details>"
        )
    return (
        f"<li>{veiled(Path(row.path), name, frame=row.frame)}<div>{cost(row.cost, row.band)} {why}</div>"
        f'<div class="name" title="{escape(row.path, quote=True)}">{escape(name)}</div>{heat}</li>'
    )
