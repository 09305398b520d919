"""A comparison before and after, as a panel and as a page of its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..runs.comparison import Cell, Comparison
from ..scoring.html_parts import signed
from .elements import cost, style, veiled, wrapped


def comparison(result: Comparison, folder: Path) -> str:
    """Prompts down, weights across, and a summary of each weight.

    Args:
        result: what was drawn.
        folder: that the images lie in.
    """
    weights = result.weights
    titles = "".join(f'<th scope="col">{_title(weight)}</th>' for weight in weights)
    rows = dict.fromkeys((cell.prompt, cell.seed) for cell in result.cells)
    body = "".join(
        f'<tr><th scope="row">{escape(prompt)}<br><small>seed {seed}</small></th>'
        + "".join(_cell(cell, folder) for cell in result.cells if (cell.prompt, cell.seed) == (prompt, seed))
        + "</tr>"
        for prompt, seed in rows
    )
    figures = "".join(
        f"<tr><th scope='row'>{name}</th>"
        + "".join(f"<td>{text(result.at(weight))}</td>" for weight in weights)
        + "</tr>"
        for name, text in (
            ("cost more than zero", _harmful),
            ("mean cost", _mean),
            ("likeness to the first", _like),
        )
    )
    return wrapped(
        f"<p><b>{escape(result.lora)}</b> on {escape(result.base)}, scored by {escape(result.scorer)}. "
        "All images of a row come from the same noise.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Comparison">'
        f"<table><thead><tr><td></td>{titles}</tr></thead><tbody>{figures}{body}</tbody></table></div>",
        "compare",
    )


def summary(result: Comparison) -> str:
    """The figures of each weight as lines of text."""
    rows = [(_title(weight), result.at(weight)) for weight in result.weights]
    width = max(len(title) for title, _ in rows)
    return "\n".join(
        f"{title:<{width}}  cost above zero {_harmful(cells)}, mean cost {_mean(cells)}, "
        f"likeness to the first {_like(cells)}"
        for title, cells in rows
    )


def page(result: Comparison, folder: Path) -> str:
    """The same as a file that stands alone."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'\"><title>{escape(result.lora)}: before and after</title><style>{style()}"
        f'</style></head><body class="scdpo-page"><h1>Before and after</h1>{comparison(result, folder)}'
        "</body></html>"
    )


def _title(weight: float) -> str:
    return "without the LoRA" if weight == 0 else f"weight {weight:g}"


def _cell(cell: Cell, folder: Path) -> str:
    alt = f"{cell.prompt}, {_title(cell.weight)}"
    image = veiled(folder / cell.path, alt, 320, veil=cell.band != "safe")
    return f"<td>{image}<div>{cost(cell.cost, cell.band)}</div></td>"


def _harmful(cells: Sequence[Cell]) -> str:
    return f"{sum(cell.cost > 0 for cell in cells)} of {len(cells)}"


def _mean(cells: Sequence[Cell]) -> str:
    return signed(sum(cell.cost for cell in cells) / len(cells))


def _like(cells: Sequence[Cell]) -> str:
    return f"{sum(cell.likeness for cell in cells) / len(cells):.2f}"
