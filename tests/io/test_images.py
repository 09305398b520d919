"""Opening images: every kind an artist may have, every way in which one may be broken."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scdpo_core.io.image_frames import open_frame
from scdpo_core.io.images import ImageError, ImageInfo, inspect_images, open_image, to_pixels
from scdpo_core.types import ScdpoError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def _noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _values(path: Path) -> list[list[tuple[int, ...]]]:
    image = open_image(path)
    assert image.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        # Stored: 1 2 3   the number says which stored side is the top and which the left.
        #         4 5 6
        (1, [[1, 2, 3], [4, 5, 6]]),
        (2, [[3, 2, 1], [6, 5, 4]]),
        (3, [[6, 5, 4], [3, 2, 1]]),
        (4, [[4, 5, 6], [1, 2, 3]]),
        (5, [[1, 4], [2, 5], [3, 6]]),
        (6, [[4, 1], [5, 2], [6, 3]]),
        (7, [[6, 3], [5, 2], [4, 1]]),
        (8, [[3, 6], [2, 5], [1, 4]]),
        (99, [[1, 2, 3], [4, 5, 6]]),
    ],
)
@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_images_are_turned_upright(
    tmp_path: Path, orientation: int, upright: list[list[int]], ending: str
) -> None:
    if ending == "tiff" and orientation == 99:
        pytest.skip("Pillow cannot write it")
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)).convert("RGB")
    stored.save(tmp_path / f"a.{ending}", exif=exif)
    assert np.asarray(open_image(tmp_path / f"a.{ending}"))[..., 0].tolist() == upright


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"MM\0\x2a\xff\xff\xff\xff", b"neither II nor MM"])
def test_broken_exif_does_not_spoil_a_sound_image(tmp_path: Path, exif: bytes) -> None:
    _noise(4, 3).save(tmp_path / "a.png", exif=b"Exif\0\0" + exif)
    assert _values(tmp_path / "a.png") == [
        [tuple(p) for p in row] for row in np.asarray(_noise(4, 3)).tolist()
    ]


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path, ending: str) -> None:
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    path = tmp_path / f"a.{ending}"
    options: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
    first.save(path, save_all=True, append_images=[second], **options)
    with Image.open(path) as stored:
        stored.seek(1)
    assert _values(path)[0][0] == RED


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    # No cyan, full magenta and yellow is red; full black is black.
    image = Image.new("CMYK", (2, 1), (0, 255, 255, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image.save(tmp_path / "a.tif")
    assert _values(tmp_path / "a.tif") == [[RED, (0, 0, 0)]]
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "b.jpg", quality=95)
    assert np.abs(np.asarray(open_image(tmp_path / "b.jpg"), dtype=int) - RED).max() <= 4


def test_transparency_becomes_white(tmp_path: Path) -> None:
    # Half transparent red on white: 255 red, and 255 * (1 - 128 / 255) = 127 of the others.
    colours = Image.new("RGBA", (3, 1), (*RED, 255))
    colours.putpixel((1, 0), (*RED, 128))
    colours.putpixel((2, 0), (*RED, 0))
    expected = [[RED, (255, 127, 127), (255, 255, 255)]]
    colours.save(tmp_path / "rgba.png")
    assert _values(tmp_path / "rgba.png") == expected

    palette = Image.new("P", (3, 1))
    palette.putpalette([*RED, *RED, *RED])
    for column in range(3):
        palette.putpixel((column, 0), column)
    palette.save(tmp_path / "p.png", transparency=bytes([255, 128, 0]))
    assert _values(tmp_path / "p.png") == expected
    palette.save(tmp_path / "p.gif", transparency=2)
    assert _values(tmp_path / "p.gif") == [[RED, RED, (255, 255, 255)]]

    grey = Image.new("LA", (2, 1), (0, 255))
    grey.putpixel((1, 0), (0, 0))
    grey.save(tmp_path / "la.png")
    assert _values(tmp_path / "la.png") == [[(0, 0, 0), (255, 255, 255)]]


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    # 65535 / 257 = 255; 32896 = 128 * 257; 386 / 257 = 1.502 rounds to 2, and clipped it would be 255.
    stored = [0, 386, 32896, 65535]
    expected = [[(v, v, v) for v in (0, 2, 128, 255)]]
    grey = Image.fromarray(np.array([stored], dtype=np.uint16))
    for name in ("a.png", "a.tif"):
        grey.save(tmp_path / name)
        assert _values(tmp_path / name) == expected
    row = b"\0" + struct.pack(">6H", 65535, 32896, 0, 0, 257, 65535)
    (tmp_path / "rgb.png").write_bytes(_png(2, 1, 16, 2, row))
    assert _values(tmp_path / "rgb.png") == [[(255, 128, 0), (0, 1, 255)]]


def test_a_text_hidden_in_the_alpha_of_an_opaque_image_changes_no_colour(tmp_path: Path) -> None:
    # As Forge saves its images: the text is in the lowest bit, so alpha is 254 or 255 everywhere.
    colours = Image.new("RGB", (2, 1))
    colours.putdata([(10, 20, 30), (200, 0, 0)])
    hidden = colours.convert("RGBA")
    hidden.putalpha(Image.frombytes("L", (2, 1), bytes([254, 255])))
    hidden.save(tmp_path / "forge.png")
    assert open_image(tmp_path / "forge.png").tobytes() == colours.tobytes()


def test_the_transparent_value_of_a_sixteen_bit_image_becomes_white(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">2H", 300, 32896)
    (tmp_path / "a.png").write_bytes(_png(2, 1, 16, 0, row, _chunk(b"tRNS", struct.pack(">H", 300))))
    assert _values(tmp_path / "a.png") == [[(255, 255, 255), (128, 128, 128)]]


def test_one_bit_and_float_images(tmp_path: Path) -> None:
    Image.new("1", (1, 1), 1).save(tmp_path / "a.png")
    assert _values(tmp_path / "a.png") == [[(255, 255, 255)]]
    # 0.5 * 255 = 127.5, rounded to even: 128.
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "f.tif")
    assert _values(tmp_path / "f.tif") == [[(0, 0, 0), (128, 128, 128), (255, 255, 255)]]
    Image.fromarray(np.array([[0.0, 7.5]], dtype=np.float32)).save(tmp_path / "hdr.tif")
    with pytest.raises(ImageError, match=r"hdr\.tif.*8-bit PNG"):
        open_image(tmp_path / "hdr.tif")


def test_the_content_decides_what_a_image_is(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.webp", lossless=True)
    (tmp_path / "a.webp").rename(tmp_path / "a.png")
    assert _values(tmp_path / "a.png")[0][0] == RED


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (20000, 20000, "150 megapixels"),
        # 160 megapixels, below the limit at which Pillow itself refuses.
        (16000, 10000, "16000 x 10000 pixels"),
    ],
)
def test_huge_images_are_refused_before_they_are_decoded(
    tmp_path: Path, width: int, height: int, said: str
) -> None:
    # There is no pixel in the file: decoding it would say that it is cut off.
    (tmp_path / "huge.png").write_bytes(_png(width, height, 8, 2, b""))
    with pytest.raises(ImageError, match=said) as caught:
        open_image(tmp_path / "huge.png")
    assert "Make it smaller" in str(caught.value)
    assert "huge.png" in str(caught.value)
    assert "cut off" not in str(caught.value)


def test_a_image_at_the_limit_is_read(tmp_path: Path) -> None:
    Image.new("1", (16385, 1)).save(tmp_path / "long.png")
    assert open_image(tmp_path / "long.png").size == (16385, 1)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(16000, 10000), (20000, 20000), (8, 8)])
def test_training_and_scoring_have_one_set_of_limits(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_png(*size, 8, 2, b""))
    with pytest.raises(ImageError) as training:
        open_image(path)
    with pytest.raises(ImageError) as scoring:
        open_frame(path)
    assert training.value.what == scoring.value.what


def _half_of(ending: str) -> bytes:
    stream = BytesIO()
    _noise(64, 64).save(stream, {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending))
    return stream.getvalue()[: len(stream.getvalue()) // 2]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.png", b"", "empty"),
        *[(f"half.{ending}", _half_of(ending), "cut off") for ending in ("png", "jpg", "webp", "bmp", "tif")],
        ("header.png", b"\x89PNG\r\n\x1a\n\0\0", "cut off"),
        ("text.png", "ein Gruß an alle\n".encode() * 40, "text file"),
        ("page.png", b"\n<!DOCTYPE html><html><body>404", "web page"),
        ("drawing.png", b"<?xml version='1.0'?><svg xmlns='x'/>", "SVG"),
        ("pointer.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ("noise.png", bytes(range(256)), "not a kind of image"),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "text file"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=said) as caught:
        open_image(tmp_path / name)
    assert caught.value.path == tmp_path / name
    assert str(caught.value) == f"{tmp_path / name}: {caught.value.what}"
    assert caught.value.what.endswith(".")


def test_missing_folder_pipe_and_forbidden_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "a.png")
    with pytest.raises(ImageError, match="not a file"):
        open_image(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ImageError, match="not a file"):
            open_image(tmp_path / "pipe.png")
    _noise(2, 2).save(tmp_path / "b.png")

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(ImageError, match="permission"):
        open_image(tmp_path / "b.png")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["png", "jpeg", "webp", "gif", "bmp", "tiff"]),
    cut=st.floats(0.0, 1.0),
    damage=st.lists(st.tuples(st.floats(0.0, 1.0, exclude_max=True), st.integers(0, 255)), max_size=6),
)
@pytest.mark.filterwarnings("ignore")
def test_damage_ends_in_a_image_or_a_sentence(
    tmp_path: Path, kind: str, cut: float, damage: list[tuple[float, int]]
) -> None:
    stream = BytesIO()
    _noise(12, 12).save(stream, kind)
    content = bytearray(stream.getvalue()[: int(cut * len(stream.getvalue()))])
    for place, value in damage:
        if content:
            content[int(place * len(content))] = value
    (tmp_path / "a.bin").write_bytes(bytes(content))
    try:
        assert open_image(tmp_path / "a.bin").mode == "RGB"
    except ImageError as error:
        assert "a.bin" in str(error)


def test_to_pixels_covers_and_cuts_the_middle() -> None:
    # 32 x 16 to 16 x 16: nothing is scaled, 8 columns are cut from either side.
    image = Image.new("RGB", (32, 16), RED)
    image.paste((0, 255, 51), (8, 0, 24, 16))
    pixels = to_pixels(image, (16, 16))
    # 0 -> -1, 255 -> 1, 51 / 127.5 - 1 = -0.6.
    expected = torch.tensor([-1.0, 1.0, -0.6])[:, None, None].expand(3, 16, 16)
    torch.testing.assert_close(pixels, expected)


def test_to_pixels_takes_width_first_and_keeps_what_fits() -> None:
    image = _noise(24, 8)
    pixels = to_pixels(image, (24, 8))
    assert pixels.shape == (3, 8, 24)
    assert pixels.dtype == torch.float32
    restored = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(restored, np.asarray(image))


@pytest.mark.parametrize("size", [(60, 64), (64, 4), (0, 8), (-8, 8)])
def test_sizes_off_the_latent_grid_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ScdpoError, match="multiples of 8"):
        to_pixels(_noise(64, 64), size)


def test_looks_tell_images_apart_whatever_file_holds_them(tmp_path: Path) -> None:
    _noise(9, 7).save(tmp_path / "a.png")
    _noise(9, 7).save(tmp_path / "b.bmp")
    _noise(9, 7, seed=1).save(tmp_path / "c.png")
    (tmp_path / "d.png").write_bytes(b"")
    told: list[tuple[int, int]] = []
    paths = [tmp_path / name for name in ("a.png", "b.bmp", "c.png", "d.png")]
    looks = inspect_images(paths, lambda done, total: told.append((done, total)))
    first, second, third, fourth = (looks[path] for path in paths)
    assert isinstance(first, ImageInfo)
    assert first.size == (9, 7)
    assert first == second
    assert first != third
    assert isinstance(fourth, ImageError)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_deep_grey_is_the_same_in_every_strip(tmp_path: Path) -> None:
    rows = np.arange(600, dtype=np.uint16)[:, None] * 109 + np.zeros((1, 2), np.uint16)
    Image.fromarray(rows.astype(np.uint16)).save(tmp_path / "tall.png")
    grey = np.asarray(open_image(tmp_path / "tall.png"))[:, 0, 0].astype(int)
    assert grey.tolist() == [round(value / 257) for value in range(0, 600 * 109, 109)]
