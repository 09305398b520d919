"""Charts that hosts show as images: costs, and the curves and samples of a run. Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageDraw

from ..io.images import ImageError, open_image
from ..types import REVIEW_FROM, UNSAFE_FROM
from .curves import FEWEST_FOR_A_TREND, Points, charted_curves, trend
from .metrics import METRICS, ChartGroup, charts_of
from .raster import BAND_COLOURS, FAINT, INK, PAPER, SOFT, Colour, fitted, paste_centred, text_mask, write

HISTOGRAM_COLOURS: tuple[Colour, ...] = (
    (96, 110, 130), (20, 110, 190), (150, 75, 170), (10, 130, 120), (190, 95, 20),
)  # fmt: skip
"""Colours of the rows of a histogram, the one without a LoRA first."""

_CURVE_COLOURS: tuple[Colour, ...] = (
    (20, 110, 190), (183, 28, 28), (27, 120, 55), (176, 112, 0), (120, 94, 160), (90, 90, 90),
)  # fmt: skip
"""Distinguishable without seeing red or green."""
_HARM = (252, 238, 236)
_MOST_SAMPLES = 4
_COLUMNS = 3
_LEGEND_LINE = 1.6  # letter heights from one line of a legend to the next
_STEP_OPACITY = 0.3  # of the line through single steps


class SampleImage(Protocol):
    """A sample image of a run, such as `run_store.events.Sample`."""

    @property
    def step(self) -> int:
        """After which it was generated; 0 is the base model."""

    @property
    def path(self) -> str:
        """Of its file."""


def cost_histogram(
    rows: Sequence[tuple[str, Sequence[float]]], size: tuple[int, int] = (720, 420)
) -> Image.Image:
    """Draw how many images have which cost, row by row on one scale; right of the line at 0 is harmful.

    Args:
        rows: title and costs (log-odds) of each; at least one cost in all.
        size: (width, height), pixels.
    """
    width, height = size
    costs = [cost for _, values in rows for cost in values]
    low = float(int(min(-4.0, min(costs) - 0.5) - 1))
    high = float(int(max(4.0, max(costs) + 0.5) + 1))
    bins = 2 * round(high - low)
    counts = [bin_counts(values, low, high, bins) for _, values in rows]
    tallest = max(1, max(max(row) for row in counts))
    letter = max(11, height // 30)
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    left, right, bottom = letter, width - letter, height - 2 * letter

    def x(cost: float) -> float:
        return left + (right - left) * (cost - low) / (high - low)

    draw.rectangle((x(0), letter, right, bottom), fill=_HARM)
    for bound in (REVIEW_FROM, UNSAFE_FROM):
        draw.line((x(bound), letter, x(bound), bottom), fill=FAINT)
    draw.line((x(0), letter // 2, x(0), bottom), fill=INK, width=2)
    write(image, "harmful", (x(0) + letter / 2, letter // 3), letter, BAND_COLOURS["unsafe"])
    band = (bottom - 2 * letter) / len(rows)
    for number, ((title, _), row) in enumerate(zip(rows, counts, strict=True)):
        base = 2 * letter + band * (number + 1)
        colour = HISTOGRAM_COLOURS[number % len(HISTOGRAM_COLOURS)]
        for k, count in enumerate(row):
            if count:
                edge = low + k * (high - low) / bins
                bar = (band - 1.8 * letter) * count / tallest
                draw.rectangle((x(edge) + 1, base - bar, x(edge + 0.5) - 1, base - 1), fill=colour)
        draw.line((left, base, right, base), fill=INK)
        write(image, title, (left, base - band + letter / 4), letter, colour)
    for cost in range(int(low), int(high) + 1, 2):
        write(image, str(cost), (x(cost), bottom + letter / 3), letter, INK, centred=True)
    return image


def bin_counts(values: Sequence[float], low: float, high: float, bins: int) -> list[int]:
    """Count values in equal bins over low..high; what lies outside counts in the outermost bins."""
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, math.floor((value - low) / (high - low) * bins)))] += 1
    return counts


def training_curves(
    curves: Mapping[str, Points], steps: int, size: tuple[int, int] = (960, 320), *, detail: bool = False
) -> Image.Image:
    """Draw the curves of a run, at most three charts a row, each under its title with its latest values.

    Args:
        curves: by metric; where none is worth a chart the image says so.
        steps: that the run will take in all.
        size: (width, height) of a row of charts, pixels.
        detail: whether the charts of full reports are drawn too.
    """
    charted = charted_curves(curves)
    groups = charts_of(charted, detail=detail)
    letter = max(10, size[1] // 24)
    image = Image.new("RGB", (size[0], max(1, math.ceil(len(groups) / _COLUMNS)) * size[1]), PAPER)
    if not groups:
        write(image, "No training step yet.", (letter, letter), letter, SOFT)
        return image
    width = size[0] / min(_COLUMNS, len(groups))
    for number, group in enumerate(groups):
        row, column = divmod(number, _COLUMNS)
        box = (width * column, float(size[1] * row), width * (column + 1), float(size[1] * (row + 1)))
        _chart(image, box, letter, group, charted, steps)
    return image


def sample_sheet(samples: Sequence[SampleImage], side: int = 256) -> Image.Image | None:
    """Draw the samples of the first prompts from the base model, and below them the newest; None without any.

    Args:
        samples: of a run.
        side: of each image on the sheet, pixels.
    """
    steps = sorted({sample.step for sample in samples})
    if not steps:
        return None
    rows = {
        step: [_thumbnail(sample, side) for sample in samples if sample.step == step][:_MOST_SAMPLES]
        for step in (steps[0], steps[-1])
    }
    gap, head = max(2, side // 64), max(14, side // 10)
    columns = max(map(len, rows.values()))
    sheet = Image.new("RGB", (columns * (side + gap) + gap, len(rows) * (head + side + gap) + gap), PAPER)
    for number, (step, images) in enumerate(rows.items()):
        top = gap + number * (head + side + gap)
        title = "before training" if step == 0 else f"after {step} steps"
        write(sheet, title, (gap, top + head / 4), head // 2, INK)
        for column, image in enumerate(images):
            paste_centred(sheet, image, gap + column * (side + gap), top + head, side)
    return sheet


def training_board(curves: Mapping[str, Points], steps: int, samples: Sequence[SampleImage]) -> Image.Image:
    """Draw what a host shows during training: the samples, and the curves below them."""
    sheet = sample_sheet(samples)
    if sheet is None:
        return training_curves(curves, steps)
    width = max(sheet.width, 768)
    plot = training_curves(curves, steps, (width, width // 3))
    board = Image.new("RGB", (width, sheet.height + plot.height), PAPER)
    board.paste(sheet, ((width - sheet.width) // 2, 0))
    board.paste(plot, (0, sheet.height))
    return board


def _thumbnail(sample: SampleImage, side: int) -> Image.Image:
    """Open a sample at the size of the sheet; a grey square where its file is gone."""
    try:
        return fitted(open_image(Path(sample.path)), side)
    except ImageError:
        return Image.new("RGB", (side, side), FAINT)


def _chart(
    image: Image.Image,
    box: tuple[float, float, float, float],
    letter: int,
    group: ChartGroup,
    curves: Mapping[str, Points],
    steps: int,
) -> None:
    lines = [
        (METRICS[name].short, curves[name], trend(curves[name])) for name in group.metrics if name in curves
    ]
    colours = [_CURVE_COLOURS[number % len(_CURVE_COLOURS)] for number in range(len(lines))]
    small = max(8, letter * 3 // 4)
    neutral = [] if group.neutral is None else [group.neutral]
    low, high = _axis_range([*neutral, *(value for _, points, _ in lines for _, value in points)])
    ends = (f"{high:.3g}", f"{low:.3g}")
    left = box[0] + max(text_mask(text, small).width for text in ends) + small
    right, bottom = box[2] - letter, box[3] - 2 * letter
    legend = [f"{name} {smooth[-1][1]:.3g}" if smooth else name for name, _, smooth in lines]
    positions = _wrapped([text_mask(text, letter).width for text in legend], right - left, letter)
    top = box[1] + (3.8 + _LEGEND_LINE * positions[-1][1]) * letter
    first = min(points[0][0] for _, points, _ in lines)
    last = max(points[-1][0] for _, points, _ in lines)
    draw = ImageDraw.Draw(image)

    def at(step: int, value: float) -> tuple[float, float]:
        across = (step - first) / max(1, last - first)
        return left + (right - left) * across, bottom - (bottom - top) * (value - low) / (high - low)

    write(image, group.title, (left, box[1] + letter * 0.6), letter, INK)
    for text, colour, (offset, line) in zip(legend, colours, positions, strict=True):
        write(image, text, (left + offset, box[1] + (2.1 + _LEGEND_LINE * line) * letter), letter, colour)
    draw.rectangle((left, top, right, bottom), outline=FAINT)
    for value in neutral:
        draw.line((*at(first, value), *at(last, value)), fill=SOFT)
    for (_, points, smooth), colour in zip(lines, colours, strict=True):
        if len(smooth) >= FEWEST_FOR_A_TREND:
            single = [at(step, value) for step, value in points if math.isfinite(value)]
            draw.line(single, fill=_faded(colour), width=1)
        path = [at(step, value) for step, value in smooth]
        if len(path) > 1:
            draw.line(path, fill=colour, width=2)
        for x, y in path[-1:]:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    for text, height in zip(ends, (top, bottom - small), strict=True):
        write(image, text, (left - text_mask(text, small).width - small / 2, height), small, SOFT)
    end = f"step {last} of {max(steps, last)}"
    write(image, end, (right - text_mask(end, small).width, bottom + letter / 2), small, SOFT)


def _wrapped(widths: Sequence[int], width_limit: float, gap: int) -> list[tuple[float, int]]:
    """Lay out texts side by side: the offset of each to the right, and its line."""
    positions: list[tuple[float, int]] = []
    offset, line = 0.0, 0
    for width in widths:
        if offset and offset + width > width_limit:
            offset, line = 0.0, line + 1
        positions.append((offset, line))
        offset += width + gap
    return positions


def _faded(colour: Colour) -> Colour:
    red, green, blue = (
        round(_STEP_OPACITY * value + (1 - _STEP_OPACITY) * paper)
        for value, paper in zip(colour, PAPER, strict=True)
    )
    return red, green, blue


def _axis_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis with a margin; never empty."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    margin = 0.05 * (high - low) or max(abs(high), 1e-3) * 0.1
    return low - margin, high + margin
