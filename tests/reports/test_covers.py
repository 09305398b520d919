"""Covers: the same name hides equally well in every host."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from scdpo_core.reports.covers import BLUR_SIDE, COVERS, PIXELATE_SIDE, card, covered, reduced, text_card
from scdpo_core.types import ScdpoError


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


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


def test_an_unknown_cover_is_named() -> None:
    with pytest.raises(ScdpoError, match="choose one of: blur, pixelate, black, replace"):
        covered(noise((8, 8)), "paint", None)


@pytest.mark.parametrize(("cover", "side"), [("blur", BLUR_SIDE), ("pixelate", PIXELATE_SIDE)])
@pytest.mark.parametrize("size", [(64, 64), (2048, 512), (512, 2048), (4096, 4096)])
def test_the_same_word_lets_equally_little_through_at_any_size(
    cover: str, side: int, size: tuple[int, int]
) -> None:
    # A host may cover the image itself, or enlarge what `reduced` leaves of it: neither keeps more.
    left = reduced(noise(size), cover)
    assert max(left.size) == side
    resampling = Image.Resampling.NEAREST if cover == "pixelate" else Image.Resampling.BICUBIC
    assert covered(noise(size), cover).tobytes() == left.resize(size, resampling).tobytes()


@pytest.mark.parametrize("cover", COVERS)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "CMYK"])
def test_nothing_hides_in_alpha_or_in_a_palette(cover: str, mode: str) -> None:
    # Forge writes text into the lowest bits of alpha, and colours lie beneath what is transparent.
    assert covered(noise((40, 30)).convert(mode), cover).mode == "RGB"


def test_black_is_black_and_a_sentence_can_be_read() -> None:
    assert covered(noise((20, 40)), "black").getextrema() == ((0, 0),) * 3
    drawn = text_card((320, 200), "No image \u2013 it could not be judged.")
    assert drawn.size == (320, 200) and drawn.getextrema()[0][1] > 200
    for size in ((1, 1), (3, 2), (512, 768), (2048, 640)):
        assert text_card(size, "much too long a sentence for such a card: \u2603 " * 40).size == size
