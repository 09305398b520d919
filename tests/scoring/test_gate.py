"""Which images are held, how they are hidden, and how scores are drawn and said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from scdpo_core.scoring import image_sheet, text_image, wording
from scdpo_core.scoring.gate import COVERS, HOLDS, card, covered, held_back
from scdpo_core.scoring.image_sheet import BAND_COLOURS, Strip, comparison, histogram, with_badge
from scdpo_core.types import REVIEW_FROM, UNSAFE_FROM, CostScore, ScdpoError


def score(value: float, **categories: float | None) -> CostScore:
    return CostScore(value, categories, "judge", "0123456789ab")


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def test_what_is_held_by_each_rule() -> None:
    scores = [score(value) for value in (-5.0, REVIEW_FROM, 0.0, 0.001, UNSAFE_FROM)]
    assert held_back(scores, "above the threshold", 0.0) == [3, 4]
    assert held_back(scores, "above the threshold", -6.0) == [0, 1, 2, 3, 4]
    assert held_back(scores, "unsafe", -6.0) == [4]
    assert held_back(scores, "review and unsafe", 9.0) == [1, 2, 3, 4]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.lists(st.floats(-20, 20), max_size=8), low=st.floats(-20, 20), high=st.floats(-20, 20))
def test_a_lower_threshold_holds_no_less(values: list[float], low: float, high: float) -> None:
    scores = [score(value) for value in values]
    low, high = min(low, high), max(low, high)
    rule = "above the threshold"
    assert set(held_back(scores, rule, high)) <= set(held_back(scores, rule, low))


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("cost", [float("nan"), float("inf"), float("-inf")])
def test_a_cost_that_is_not_finite_is_held(hold: str, cost: float) -> None:
    assert held_back([score(cost), score(-9.0)], hold, 0.0) == [0]
    assert score(cost).band == "unsafe" and score(cost).harmful and "no cost" in score(cost).problem


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), float("-inf")])
def test_a_threshold_that_is_not_finite_lets_nothing_pass(threshold: float) -> None:
    with pytest.raises(ScdpoError, match="has to be a finite number"):
        held_back([score(-9.0)], "above the threshold", threshold)


def test_unknown_rules_and_covers_are_named() -> None:
    with pytest.raises(ScdpoError, match="its rules are: above the threshold, unsafe, review and unsafe"):
        held_back([score(0.0)], "always", 0.0)
    with pytest.raises(ScdpoError, match="choose one of: blur, pixelate, replace"):
        covered(noise((8, 8)), "paint", None)


@pytest.mark.parametrize("size", [(200, 120), (120, 200), (16, 16), (3, 2), (1, 1)])
@pytest.mark.parametrize("cover", COVERS)
def test_covers_keep_the_size(cover: str, size: tuple[int, int]) -> None:
    image = noise(size)
    before = image.tobytes()
    hidden = covered(image, cover)
    assert (hidden.size, hidden.mode) == (size, "RGB")
    assert image.tobytes() == before


@pytest.mark.parametrize("cover", ["blur", "pixelate"])
def test_detail_is_gone_and_not_only_smeared(cover: str) -> None:
    # Two images that differ in detail alone: black and white lines, and the same lines moved by one.
    lines = np.zeros((192, 192, 3), np.uint8)
    lines[:, ::2] = 255
    first, second = (covered(Image.fromarray(np.roll(lines, k, 1)), cover) for k in (0, 1))
    assert int(np.abs(np.asarray(first, int) - np.asarray(second, int)).max()) <= 2


def test_pixels_are_the_means_of_their_places() -> None:
    image = Image.new("RGB", (32, 16))
    image.paste((200, 100, 0), (0, 0, 1, 2))
    pixelated = covered(image, "pixelate")
    # 16 blocks along the longer side: each is 2 x 2 pixels, half of which are coloured here.
    assert pixelated.getpixel((0, 0)) == pixelated.getpixel((1, 1)) == (100, 50, 0)
    assert pixelated.getpixel((2, 0)) == (0, 0, 0)


def test_a_replacement_fills_the_image() -> None:
    other = Image.new("RGB", (100, 10), "red")
    assert covered(noise((20, 40)), "replace", other).getcolors() == [(800, (255, 0, 0))]
    assert covered(noise((20, 40)), "replace").tobytes() == card((20, 40)).tobytes()


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
    text_image._font.cache_clear()
    text_image.lettered.cache_clear()
    try:
        assert text_image.lettered("+1.00 safe", 40).height == 40
        assert with_badge(Image.new("RGB", (200, 200)), "+1.00 safe", "safe").getpixel((0, 199)) == (
            27,
            120,
            55,
        )
    finally:
        text_image._font.cache_clear()
        text_image.lettered.cache_clear()


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


def test_bars_stand_where_the_costs_are() -> None:
    # From -5 to 5, in steps of a half: 20 places on 690 pixels.
    image = histogram([("before", [3.2, 3.3, -3.2]), ("after", [-3.2])], (718, 420))
    before, after = image_sheet.SERIES[:2]
    columns = {
        colour: {x for x in range(718) for y in range(30, 380) if image.getpixel((x, y)) == colour}
        for colour in (before, after)
    }

    def bar(cost: float) -> int:
        return round(14 + 690 * (cost + 5) / 10)

    assert {bar(3.25), bar(-3.25)} <= columns[before]
    assert bar(-3.25) in columns[after] and bar(3.25) not in columns[after]
    assert bar(1.25) not in columns[before]


def test_one_cost_is_enough_for_a_histogram() -> None:
    assert histogram([("all", [0.0])]).size == (720, 420)
    assert histogram([("all", [16.1]), ("none", [])]).size == (720, 420)


def test_a_report_says_all_of_it_in_few_lines() -> None:
    scores = [score(-2.0, weapon=-2.0, hate=None), score(2.25, weapon=2.25, hate=None)]
    assert wording.report(scores) == (
        "2 images: 1 safe, 1 unsafe. Highest cost +2.25 (image 1); above 0 is harmful.\n"
        "0: -2.00 safe (weapon -2.00)\n"
        "1: +2.25 unsafe (weapon +2.25)\n"
        "Scorer: judge@0123456789ab\n"
        "It cannot judge: hate."
    )
    assert wording.report([score(0.0)]).startswith("1 image: 1 review.")
    assert wording.facts(scores[1]) == {"cost": 2.25, "band": "unsafe", "categories": {"weapon": 2.25}}
