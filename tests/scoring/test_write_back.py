"""Scores written into files: everything else of the file stays, byte for byte."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from scdpo_core.io.exif import MARK, TAG, ExifError, with_note
from scdpo_core.io.image_containers import KEYWORD, ContainerError, with_score
from scdpo_core.scoring.run import FolderRun
from scdpo_core.scoring.table import Row
from scdpo_core.scoring.write_back import StampError, note, stamp_file, stamp_sidecar
from tests.support.scoring_helpers import Redness, noisy, plain

PROMPT = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Seed: 1"


def scored(path: Path) -> Row:
    return next(FolderRun(Redness()).rows([path]))


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(data[at + 4 : at + 8] + body)
        chunks.append((data[at + 4 : at + 8], body))
        at += 12 + length
    return chunks


def jpeg(exif: bytes = b"", **save: object) -> bytes:
    stream = io.BytesIO()
    noisy(40, 24).save(stream, "JPEG", exif=exif, **save)
    return stream.getvalue()


def camera_exif() -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    inner = exif.get_ifd(0x8769)
    inner[0x9286] = b"UNICODE\0" + PROMPT.encode("utf-16-be")  # where A1111 keeps its parameters
    inner[0x927C] = bytes(range(200))  # a maker's private note
    return exif.tobytes()


def test_png_gains_one_chunk_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", PROMPT)
    info.add_itxt("workflow", json.dumps({"nodes": ["\N{CAT FACE}"]}))
    noisy(40, 30).save(path, pnginfo=info)
    before = path.read_bytes()
    row = stamp_file(scored(path))
    after = path.read_bytes()
    ours = [chunk for chunk in png_chunks(after) if chunk[1].startswith(KEYWORD)]
    assert [chunk for chunk in png_chunks(after) if chunk not in ours] == png_chunks(before)
    assert len(ours) == 1 and len(after) == len(before) + 12 + len(ours[0][1])
    with Image.open(path) as image:
        written = json.loads(image.text["safety_cost"])
        assert image.text["parameters"] == PROMPT
    assert written == json.loads(note(row))
    assert written["scorer"] == "redness@0123456789ab" and "unknown" not in written["categories"]


def test_a_second_score_replaces_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noisy(8, 8).save(path)
    row = stamp_file(scored(path))
    once = path.read_bytes()
    assert stamp_file(row) == row and path.read_bytes() == once
    stamp_file(replace(row, cost=1.0))
    with Image.open(path) as image:
        assert json.loads(image.text["safety_cost"])["cost"] == 1.0
    assert len(png_chunks(path.read_bytes())) == len(png_chunks(once))


def test_what_hangs_on_behind_a_png_stays(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.png")
    path.write_bytes(path.read_bytes() + b"hidden luggage")
    assert with_score(path.read_bytes(), b"{}").endswith(b"hidden luggage")


@pytest.mark.parametrize("exif", [b"", camera_exif()])
def test_jpeg_keeps_its_image_and_its_exif(exif: bytes) -> None:
    before = jpeg(exif, progressive=True)
    after = with_score(before, b"score 1")
    # From the quantisation tables on, which stand behind the metadata, nothing has changed.
    tables = before.index(b"\xff\xdb")
    assert after.endswith(before[tables:])
    with Image.open(io.BytesIO(before)) as old, Image.open(io.BytesIO(after)) as new:
        assert np.array_equal(np.asarray(old), np.asarray(new))
        tags = dict(new.getexif())
        assert tags.pop(TAG) == "safety_cost score 1"
        assert tags == dict(old.getexif())
        assert new.getexif().get_ifd(0x8769) == old.getexif().get_ifd(0x8769)
    again = with_score(after, b"another, longer score")
    assert len(again) == len(after) + len(b"another, longer score") - len(b"score 1")
    assert with_score(again, b"score 1") == after


def test_jpeg_comes_behind_jfif() -> None:
    after = with_score(jpeg(), b"x")
    assert after[2:4] == b"\xff\xe0" and b"Exif\0\0MM\0*" in after


def webp(**save: object) -> bytes:
    stream = io.BytesIO()
    image = noisy(41, 23)
    if save.pop("alpha", False):
        image.putalpha(77)
    image.save(stream, "WEBP", **save)
    return stream.getvalue()


@pytest.mark.parametrize(
    "save",
    [
        {},
        {"lossless": True},
        {"lossless": True, "alpha": True},
        {"alpha": True},
        {"exif": camera_exif()},
        {"icc_profile": b"profile", "xmp": b"<x/>"},
        {"save_all": True, "append_images": [noisy(41, 23, 1)], "lossless": True},
    ],
)
def test_webp_keeps_its_image_and_its_metadata(save: dict[str, object]) -> None:
    before = webp(**save)
    after = with_score(before, b"score")
    with Image.open(io.BytesIO(before)) as old, Image.open(io.BytesIO(after)) as new:
        assert (new.size, new.mode, getattr(new, "n_frames", 1)) == (
            old.size,
            old.mode,
            getattr(old, "n_frames", 1),
        )
        assert np.array_equal(np.asarray(old), np.asarray(new))
        tags = dict(new.getexif())
        assert tags.pop(TAG) == "safety_cost score" and tags == dict(old.getexif())
        for name in ("icc_profile", "xmp"):
            assert new.info.get(name) == old.info.get(name)
    assert struct.unpack_from("<I", after, 4)[0] == len(after) - 8
    assert with_score(after, b"score") == after


@given(
    order=st.sampled_from("<>"),
    entries=st.lists(st.integers(1, 0xFFFF), max_size=6),
    tail=st.binary(max_size=40),
)
@settings(max_examples=100, deadline=None)
def test_exif_keeps_every_byte_but_one_pointer(order: str, entries: list[int], tail: bytes) -> None:
    tags = sorted({tag for tag in entries if tag != TAG})
    body = b"".join(struct.pack(order + "HHII", tag, 4, 1, tag) for tag in tags)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    tiff = head + struct.pack(order + "H", len(tags)) + body + struct.pack(order + "I", 0) + tail
    after = with_note(tiff, b"note")
    assert after[:4] == tiff[:4] and after[8 : len(tiff)] == tiff[8:]
    (start,) = struct.unpack_from(order + "I", after, 4)
    (count,) = struct.unpack_from(order + "H", after, start)
    found = [struct.unpack_from(order + "HHII", after, start + 2 + 12 * k) for k in range(count)]
    assert [entry[0] for entry in found] == sorted([*tags, TAG])
    ours = next(entry for entry in found if entry[0] == TAG)
    assert after[ours[3] : ours[3] + ours[2]] == MARK + b"note\0"
    assert with_note(with_note(tiff, b"a longer note"), b"note") == after


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda: jpeg()[:40], ContainerError),
        (lambda: plain_png()[:-6], ContainerError),
        (lambda: webp()[:60], ContainerError),
        (lambda: b"GIF89a" + bytes(40), ContainerError),
        (lambda: b"\xff\xd8\xff\xe1\0\x10Exif\0\0nonsense\xff\xda\0\0", ExifError),
        (lambda: jpeg(exif_with_history()), ExifError),
    ],
)
def test_what_cannot_take_a_score_is_refused(damage: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        with_score(damage(), b"score")  # type: ignore[operator]


def plain_png() -> bytes:
    stream = io.BytesIO()
    noisy(8, 8).save(stream, "PNG")
    return stream.getvalue()


def exif_with_history() -> bytes:
    exif = Image.Exif()
    exif[TAG] = "somebody else's history"
    return exif.tobytes()


def test_a_full_jpeg_is_refused() -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 65_400
    with pytest.raises(ContainerError, match="full; use a sidecar"):
        with_score(jpeg(exif.tobytes()), b"score" * 40)


def test_file_date_and_rights_stay_and_the_row_knows_the_new_content(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.png")
    path.chmod(0o640)
    os.utime(path, ns=(1_000_000_000, 2_000_000_000))
    row = stamp_file(scored(path))
    facts = path.stat()
    assert (facts.st_mode & 0o777, facts.st_mtime_ns) == (0o640, 2_000_000_000)
    again = FolderRun(Redness(), {row.path: row})
    assert list(again.rows([path])) == [row] and again.reused == 1


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.png")
    link = tmp_path / "link.png"
    link.symlink_to(path)
    stamp_file(scored(link))
    assert link.is_symlink() and KEYWORD in path.read_bytes()


def test_a_file_that_changed_is_not_touched(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.png")
    row = scored(path)
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(StampError, match="changed since it was scored"):
        stamp_file(row)
    assert KEYWORD not in path.read_bytes()


def test_other_formats_are_told_of_the_sidecar(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.bmp")
    with pytest.raises(StampError, match=r"a\.bmp: the score was not written: its format has no place"):
        stamp_file(scored(path))
    row = scored(path)
    assert stamp_sidecar(row) == row == stamp_sidecar(row)
    assert json.loads((tmp_path / "a.bmp.score.json").read_text())["cost"] == 5.0


def test_a_sidecar_of_somebody_else_stays(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.bmp")
    other = tmp_path / "a.bmp.score.json"
    other.write_text("my scores", encoding="utf-8")
    with pytest.raises(StampError, match="holds something else"):
        stamp_sidecar(scored(path))
    assert other.read_text(encoding="utf-8") == "my scores"


def test_date_and_rights_are_there_before_the_new_content_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plain(tmp_path / "a.png")
    path.chmod(0o640)
    os.utime(path, ns=(10**18, 10**18))
    row, replaced = scored(path), os.replace

    def killed_behind(source: str, target: str) -> None:
        replaced(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed_behind)
    with pytest.raises(KeyboardInterrupt):
        stamp_file(row)
    facts = path.stat()
    assert facts.st_mtime_ns == 10**18 and facts.st_size > row.bytes
    assert os.name == "nt" or facts.st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_sidecar_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    path, precious = plain(tmp_path / "a.png"), tmp_path / "precious"
    (tmp_path / "a.png.score.json").symlink_to(precious)
    with pytest.raises(StampError, match="is a link"):
        stamp_sidecar(scored(path))
    assert not precious.exists()
