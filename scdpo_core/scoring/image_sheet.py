"""Scores drawn on images: badges, a sheet that compares rows of images, a histogram. Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..types import REVIEW_FROM, UNSAFE_FROM, Band, CostScore
from .text_image import lettered
from .wording import label

Colour = tuple[int, int, int]

BAND_COLOURS: dict[Band, Colour] = {"safe": (27, 120, 55), "review": (158, 96, 0), "unsafe": (183, 28, 28)}
"""Dark enough that white text on them reads well (contrast above 4.5)."""
SERIES: tuple[Colour, ...] = ((96, 110, 130), (20, 110, 190), (150, 75, 170), (10, 130, 120), (190, 95, 20))
"""Colours of the rows of a comparison, the one without a LoRA first."""

_PAPER, _INK, _FAINT = (250, 250, 248), (30, 34, 40), (205, 208, 212)
_HARM = (252, 238, 236)


@dataclass(frozen=True)
class Strip:
    """One row of a comparison.

    Attributes:
        title: what was done, 'strength 1' say.
        images: RGB, of one size in all rows; column k has the same seed in every row.
        scores: one for each image.
    """

    title: str
    images: Sequence[Image.Image]
    scores: Sequence[CostScore]


def with_badge(image: Image.Image, text: str, band: Band) -> Image.Image:
    """A copy of an image with a label in its lower left corner, in the colour of a band."""
    badged = image.convert("RGB")
    side = max(12, min(badged.size) // 12)
    written = lettered(text, side)
    pad = max(2, side // 3)
    width, height = min(badged.width, written.width + 2 * pad), written.height + pad
    plate = Image.new("RGB", (width, height), BAND_COLOURS[band])
    plate.paste((255, 255, 255), (pad, pad // 2), written)
    badged = badged.copy() if badged is image else badged
    badged.paste(plate, (0, badged.height - height))
    return badged


def comparison(strips: Sequence[Strip], side: int = 256) -> Image.Image:
    """Rows of images with their costs, each row under its title.

    Args:
        strips: at least one, each with the same number of images.
        side: longest side of each image on the sheet, pixels.
    """
    cells = [[_fitted(p, side) for p in strip.images] for strip in strips]
    width, height = cells[0][0].size
    gap, head = max(4, side // 40), max(18, side // 9)
    columns = len(cells[0])
    least = max(lettered(strip.title, head // 2).width for strip in strips)
    sheet_width = max(columns * (width + gap) + gap, least + 2 * gap)
    sheet = Image.new("RGB", (sheet_width, len(strips) * (head + height + gap) + gap), _PAPER)
    for row, strip in enumerate(strips):
        top = gap + row * (head + height + gap)
        title = lettered(strip.title, head // 2)
        sheet.paste(_INK, (gap, top + (head - title.height) // 2), title)
        for column, (cell, score) in enumerate(zip(cells[row], strip.scores, strict=True)):
            badged = with_badge(cell, label(score), score.band)
            sheet.paste(badged, (gap + column * (width + gap), top + head))
    return sheet


def histogram(rows: Sequence[tuple[str, Sequence[float]]], size: tuple[int, int] = (720, 420)) -> Image.Image:
    """How many images have which cost, row by row on one scale; right of the line at 0 is harmful.

    Args:
        rows: title and costs (log-odds) of each; at least one cost in all.
        size: (width, height), pixels.
    """
    width, height = size
    costs = [cost for _, values in rows for cost in values]
    low, high = min(-4.0, min(costs) - 0.5), max(4.0, max(costs) + 0.5)
    low, high = float(int(low - 1)), float(int(high + 1))
    bins = 2 * round(high - low)
    counts = [_binned(values, low, high, bins) for _, values in rows]
    tallest = max(1, max(max(row) for row in counts))
    letter = max(11, height // 30)
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    left, right, bottom = letter, width - letter, height - 2 * letter

    def x(cost: float) -> float:
        return left + (right - left) * (cost - low) / (high - low)

    draw.rectangle((x(0), letter, right, bottom), fill=_HARM)
    for bound in (REVIEW_FROM, UNSAFE_FROM):
        draw.line((x(bound), letter, x(bound), bottom), fill=_FAINT)
    draw.line((x(0), letter // 2, x(0), bottom), fill=_INK, width=2)
    _write(image, "harmful", (x(0) + letter / 2, letter // 3), letter, BAND_COLOURS["unsafe"])
    band = (bottom - 2 * letter) / len(rows)
    for number, ((title, _), row) in enumerate(zip(rows, counts, strict=True)):
        base = 2 * letter + band * (number + 1)
        colour = SERIES[number % len(SERIES)]
        for k, count in enumerate(row):
            if count:
                edge = low + k * (high - low) / bins
                tall = (band - 1.8 * letter) * count / tallest
                draw.rectangle((x(edge) + 1, base - tall, x(edge + 0.5) - 1, base - 1), fill=colour)
        draw.line((left, base, right, base), fill=_INK)
        _write(image, title, (left, base - band + letter / 4), letter, colour)
    for cost in range(int(low), int(high) + 1, 2):
        _write(image, str(cost), (x(cost), bottom + letter / 3), letter, _INK, centred=True)
    return image


def _binned(values: Sequence[float], low: float, high: float, bins: int) -> list[int]:
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / (high - low) * bins)))] += 1
    return counts


def _fitted(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Small drawings keep their hard pixels.
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return image.convert("RGB").resize(size, how)


def _write(
    image: Image.Image,
    text: str,
    place: tuple[float, float],
    height: int,
    colour: Colour,
    centred: bool = False,
) -> None:
    written = lettered(text, height)
    left = place[0] - written.width / 2 if centred else place[0]
    image.paste(colour, (max(0, round(left)), round(place[1])), written)
