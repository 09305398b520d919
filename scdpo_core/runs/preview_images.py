"""A run as images: its curves, and what it draws before and now. Pillow alone: hosts have no plotter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, UnidentifiedImageError

from ..reports.curves import FEWEST_FOR_A_TREND, Points, known_curves, trend
from ..reports.metrics import CHARTS, METRICS, ChartGroup
from ..run_store.events import Sample
from ..scoring.text_image import lettered
from .follow import RunView

Colour = tuple[int, int, int]
Line = tuple[str, Colour, Points]

_PAPER, _INK, _SOFT, _FAINT = (250, 250, 248), (30, 34, 40), (96, 102, 110), (212, 215, 219)
# One a curve of a panel; told apart by people who see no red or green as well.
_COLOURS: tuple[Colour, ...] = (
    (20, 110, 190), (183, 28, 28), (27, 120, 55), (176, 112, 0), (120, 94, 160), (90, 90, 90),
)  # fmt: skip
_SHOWN = 4
_COLUMNS = 3
_LINE = 1.6  # letters from one line of names to the next
_FAINTLY = 0.3  # how much of its colour a line of single steps has


def curves(view: RunView, size: tuple[int, int] = (960, 320)) -> Image.Image:
    """The curves of a run, each under its title with its latest figure, at most three side by side.

    Args:
        view: of the run; without any curve the image says so.
        size: (width, height) of a row of charts, pixels.
    """
    known = known_curves(view.curves)
    panels = [
        (chart, lines) for chart in CHARTS if not chart.detail and (lines := _lines(chart.metrics, known))
    ]
    letter = max(10, size[1] // 24)
    rows = max(1, math.ceil(len(panels) / _COLUMNS))
    image = Image.new("RGB", (size[0], rows * size[1]), _PAPER)
    if not panels:
        _write(image, "No training step yet.", (letter, letter), letter, _SOFT)
        return image
    width = size[0] / min(_COLUMNS, len(panels))
    for number, (chart, lines) in enumerate(panels):
        row, column = divmod(number, _COLUMNS)
        box = (width * column, float(size[1] * row), width * (column + 1), float(size[1] * (row + 1)))
        _panel(image, box, letter, chart, lines, view.steps)
    return image


def _lines(metrics: Sequence[str], curves: Mapping[str, Points]) -> list[Line]:
    known = [name for name in metrics if name in curves]
    return [
        (METRICS[name].short, _COLOURS[number % len(_COLOURS)], curves[name])
        for number, name in enumerate(known)
    ]


def samples(view: RunView, side: int = 256) -> Image.Image | None:
    """The first prompts as the base model draws them, and below as the newest LoRA does; None before that.

    Args:
        view: of the run.
        side: of each image on the sheet, pixels.
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
            image = file.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return Image.new("RGB", (side, side), _FAINT)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def _panel(
    image: Image.Image,
    box: tuple[float, float, float, float],
    letter: int,
    chart: ChartGroup,
    lines: Sequence[Line],
    steps: int,
) -> None:
    small = max(8, letter * 3 // 4)
    level = [] if chart.neutral is None else [chart.neutral]
    low, high = _range([*level, *(value for _, _, curve in lines for _, value in curve)])
    ends = [f"{high:.3g}", f"{low:.3g}"]
    gutter = max(lettered(text, small).width for text in ends) + small
    left, right, bottom = box[0] + gutter, box[2] - letter, box[3] - 2 * letter
    trends = [trend(curve) for _, _, curve in lines]
    names = [
        f"{name} {points[-1][1]:.3g}" if points else name
        for (name, _, _), points in zip(lines, trends, strict=True)
    ]
    places = _placed([lettered(text, letter).width for text in names], right - left, letter)
    top = box[1] + (3.8 + _LINE * places[-1][1]) * letter
    first = min(curve[0][0] for _, _, curve in lines)
    last = max(curve[-1][0] for _, _, curve in lines)
    draw = ImageDraw.Draw(image)

    def at(step: int, value: float) -> tuple[float, float]:
        across = (step - first) / max(1, last - first)
        return left + (right - left) * across, bottom - (bottom - top) * (value - low) / (high - low)

    _write(image, chart.title, (left, box[1] + letter * 0.6), letter, _INK)
    for text, (_, colour, _), (across, down) in zip(names, lines, places, strict=True):
        _write(image, text, (left + across, box[1] + (2.1 + _LINE * down) * letter), letter, colour)
    draw.rectangle((left, top, right, bottom), outline=_FAINT)
    for value in level:
        draw.line((*at(first, value), *at(last, value)), fill=_SOFT)
    for (_, colour, curve), through in zip(lines, trends, strict=True):
        if len(through) >= FEWEST_FOR_A_TREND:
            single = [at(step, value) for step, value in curve if math.isfinite(value)]
            draw.line(single, fill=_mixed(colour, _PAPER), width=1)
        points = [at(step, value) for step, value in through]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        for x, y in points[-1:]:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    for text, height in zip(ends, (top, bottom - small), strict=True):
        _write(image, text, (left - lettered(text, small).width - small / 2, height), small, _SOFT)
    end = f"step {last} of {max(steps, last)}"
    _write(image, end, (right - lettered(end, small).width, bottom + letter / 2), small, _SOFT)


def _placed(widths: Sequence[int], room: float, gap: int) -> list[tuple[float, int]]:
    """Where texts of these widths stand side by side: how far to the right, and in which line."""
    found: list[tuple[float, int]] = []
    place, line = 0.0, 0
    for width in widths:
        if place and place + width > room:
            place, line = 0.0, line + 1
        found.append((place, line))
        place += width + gap
    return found


def _mixed(colour: Colour, paper: Colour) -> Colour:
    red, green, blue = (
        round(_FAINTLY * own + (1 - _FAINTLY) * other) for own, other in zip(colour, paper, strict=True)
    )
    return red, green, blue


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From where to where an axis goes; never empty."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    room = 0.05 * (high - low) or max(abs(high), 1e-3) * 0.1
    return low - room, high + room


def _write(image: Image.Image, text: str, place: tuple[float, float], height: int, colour: Colour) -> None:
    image.paste(colour, (round(place[0]), round(place[1])), lettered(text, height))
