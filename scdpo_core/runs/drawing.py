"""A run as pictures: its curves, and what it draws before and now. Pillow alone: hosts have no plotter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, UnidentifiedImageError

from ..scoring.lettering import lettered
from ..training.events import Sample
from .follow import Curve, RunView

Colour = tuple[int, int, int]
Line = tuple[str, Colour, Curve]

_PAPER, _INK, _SOFT, _FAINT = (250, 250, 248), (30, 34, 40), (96, 102, 110), (212, 215, 219)
_BLUE, _RED, _GREEN = (20, 110, 190), (183, 28, 28), (27, 120, 55)
# Title of each panel, and its curves: figure, name, colour. A panel without any curve is left out.
_PANELS: tuple[tuple[str, tuple[tuple[str, str, Colour], ...]], ...] = (
    ("loss that is minimised", (("loss", "loss", _BLUE),)),
    ("preference loss (0.693 at the start)", (("preference_loss", "loss", _BLUE),)),
    (
        "error against the base (below 0: learnt)",
        (("winner_gap", "chosen", _GREEN), ("loser_gap", "rejected", _RED)),
    ),
)
_SHOWN = 4


def curves(view: RunView, size: tuple[int, int] = (960, 320)) -> Image.Image:
    """The curves of a run, each under its title with its latest figure.

    Args:
        view: of the run; without any curve the picture says so.
        size: (width, height), pixels.
    """
    picture = Image.new("RGB", size, _PAPER)
    panels = [
        (title, [(name, colour, view.curves[key]) for key, name, colour in known if view.curves.get(key)])
        for title, known in _PANELS
    ]
    panels = [(title, lines) for title, lines in panels if lines]
    letter = max(10, size[1] // 24)
    if not panels:
        _write(picture, "No training step yet.", (letter, letter), letter, _SOFT)
        return picture
    width = size[0] / len(panels)
    for number, (title, lines) in enumerate(panels):
        box = (width * number, 0.0, width * (number + 1), float(size[1]))
        _panel(picture, box, letter, title, lines, view.steps)
    return picture


def samples(view: RunView, side: int = 256) -> Image.Image | None:
    """The first prompts as the base model draws them, and below as the newest LoRA does; None before that.

    Args:
        view: of the run.
        side: of each picture on the sheet, pixels.
    """
    steps = sorted({sample.step for sample in view.samples})
    rows = [step for step in dict.fromkeys([*steps[:1], *steps[-1:]])]
    drawn = [[sample for sample in view.samples if sample.step == step][:_SHOWN] for step in rows]
    cells = [[_cell(sample, side) for sample in row] for row in drawn]
    if not cells:
        return None
    gap, head = max(2, side // 64), max(14, side // 10)
    columns = max(len(row) for row in cells)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, len(cells) * (head + side + gap) + gap), _PAPER)
    for number, (step, row) in enumerate(zip(rows, cells, strict=True)):
        top = gap + number * (head + side + gap)
        title = "before training" if step == 0 else f"after {step} steps"
        _write(sheet, title, (gap, top + head / 4), head // 2, _INK)
        for column, cell in enumerate(row):
            left = gap + column * (side + gap)
            sheet.paste(cell, (left + (side - cell.width) // 2, top + head + (side - cell.height) // 2))
    return sheet


def board(view: RunView) -> Image.Image:
    """What a door shows while it trains: the samples, and the curves below."""
    sheet = samples(view)
    if sheet is None:
        return curves(view)
    width = max(sheet.width, 768)
    plot = curves(view, (width, width // 3))
    whole = Image.new("RGB", (width, sheet.height + plot.height), _PAPER)
    whole.paste(sheet, ((width - sheet.width) // 2, 0))
    whole.paste(plot, (0, sheet.height))
    return whole


def _cell(sample: Sample, side: int) -> Image.Image:
    """A sample at the size of the sheet; grey where somebody has taken its file away."""
    try:
        with Image.open(Path(sample.path)) as file:
            picture = file.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return Image.new("RGB", (side, side), _FAINT)
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def _panel(
    picture: Image.Image,
    box: tuple[float, float, float, float],
    letter: int,
    title: str,
    lines: Sequence[Line],
    steps: int,
) -> None:
    small = max(8, letter * 3 // 4)
    low, high = _range([value for _, _, curve in lines for _, value in curve])
    ends = [f"{high:.3g}", f"{low:.3g}"]
    gutter = max(lettered(text, small).width for text in ends) + small
    left, top, right, bottom = box[0] + gutter, box[1] + 3.8 * letter, box[2] - letter, box[3] - 2 * letter
    first = min(curve[0][0] for _, _, curve in lines)
    last = max(curve[-1][0] for _, _, curve in lines)
    draw = ImageDraw.Draw(picture)

    def at(step: int, value: float) -> tuple[float, float]:
        across = (step - first) / max(1, last - first)
        return left + (right - left) * across, bottom - (bottom - top) * (value - low) / (high - low)

    _write(picture, title, (left, box[1] + letter * 0.6), letter, _INK)
    place = left
    for name, colour, curve in lines:
        text = f"{name} {curve[-1][1]:.3g}"
        _write(picture, text, (place, box[1] + 2.1 * letter), letter, colour)
        place += lettered(text, letter).width + letter
    draw.rectangle((left, top, right, bottom), outline=_FAINT)
    if low < 0 < high:
        draw.line((*at(first, 0.0), *at(last, 0.0)), fill=_SOFT)
    for _, colour, curve in lines:
        points = [at(step, value) for step, value in curve if math.isfinite(value)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        for x, y in points[-1:]:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    for text, height in zip(ends, (top, bottom - small), strict=True):
        _write(picture, text, (left - lettered(text, small).width - small / 2, height), small, _SOFT)
    end = f"step {last} of {max(steps, last)}"
    _write(picture, end, (right - lettered(end, small).width, bottom + letter / 2), small, _SOFT)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From where to where an axis goes; never empty."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    room = 0.05 * (high - low) or max(abs(high), 1e-3) * 0.1
    return low - room, high + room


def _write(picture: Image.Image, text: str, place: tuple[float, float], height: int, colour: Colour) -> None:
    picture.paste(colour, (round(place[0]), round(place[1])), lettered(text, height))
