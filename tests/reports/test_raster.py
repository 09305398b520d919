"""Badges, rows of images and pairs as one image."""

from __future__ import annotations

import pytest
from PIL import Image, ImageFont

from scdpo_core.reports import raster
from scdpo_core.reports.raster import BAND_COLOURS, Strip, comparison, with_badge
from scdpo_core.types import CostScore


def score(value: float, **categories: float | None) -> CostScore:
    return CostScore(value, categories, "judge", "0123456789ab")


@pytest.mark.parametrize("band", BAND_COLOURS)
def test_a_badge_stands_in_the_corner_and_can_be_read(band: str) -> None:
    image = Image.new("RGB", (256, 200), "white")
    badged = with_badge(image, f"+1.00 {band}", band)  # type: ignore[arg-type]
    assert image.getcolors() == [(256 * 200, (255, 255, 255))]
    colour = BAND_COLOURS[band]  # type: ignore[index]
    assert badged.getpixel((1, 198)) == colour
    assert badged.getpixel((250, 5)) == (255, 255, 255)
    inside = [badged.getpixel((x, y)) for x in range(4, 60) for y in range(180, 198)]
    assert (255, 255, 255) in inside
    # WCAG's contrast of white on the plate.
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    assert 1.05 / (0.05 + 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]) > 4.5


def test_a_badge_fits_into_a_tiny_image() -> None:
    assert with_badge(Image.new("RGB", (10, 8)), "+10.00 unsafe, held", "unsafe").size == (10, 8)


def test_a_pillow_with_letters_of_one_size_draws_them_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    def old() -> ImageFont.ImageFont:
        return ImageFont.load_default_imagefont()

    monkeypatch.setattr(ImageFont, "load_default", old)
    raster._font.cache_clear()
    raster.text_mask.cache_clear()
    try:
        assert raster.text_mask("+1.00 safe", 40).height == 40
        assert with_badge(Image.new("RGB", (200, 200)), "+1.00 safe", "safe").getpixel((0, 199)) == (
            27,
            120,
            55,
        )
    finally:
        raster._font.cache_clear()
        raster.text_mask.cache_clear()


def test_a_comparison_has_a_row_for_each_strip_and_a_column_for_each_seed() -> None:
    images = [Image.new("RGB", (64, 32), colour) for colour in ("red", "lime", "blue")]
    strips = [
        Strip(title, images, [score(-3.0), score(0.0), score(3.0)]) for title in ("without", "strength 1")
    ]
    sheet = comparison(strips, side=128)
    gap, head = 4, 18
    assert sheet.size == (3 * (128 + gap) + gap, 2 * (head + 64 + gap) + gap)
    for row in range(2):
        top = gap + row * (head + 64 + gap) + head
        found = [sheet.getpixel((gap + column * (128 + gap) + 64, top + 10)) for column in range(3)]
        assert found == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
        corner = [sheet.getpixel((gap + column * (128 + gap), top + 63)) for column in range(3)]
        assert corner == list(BAND_COLOURS.values())
