"""Folders in whatever state: every file gets its row."""

from __future__ import annotations

import os
import random
import shutil
import struct
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from scdpo_core.cost.scorers import load_scorer
from scdpo_core.io.discover import find_images
from scdpo_core.scoring.run import FolderRun
from scdpo_core.scoring.table import Row
from scdpo_core.types import CostScore
from tests.support.scoring_helpers import Moody, Redness, noisy, plain


def run(*files: Path, **settings: object) -> dict[str, Row]:
    rows = list(FolderRun(Redness(), **settings).rows(files))
    assert len(rows) == len(files)
    return {Path(row.path).name: row for row in rows}


def bomb(path: Path, side: int = 60_000) -> Path:
    """A PNG of a few hundred bytes that says it has 3,600 megapixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100_000)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


def test_a_row_says_all(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.png", (255, 0, 0))
    row = run(path)["a.png"]
    assert row.cost == 5.0 and row.band == "unsafe" and row.error is None
    assert row.categories == {"red": 5.0, "green": 0.0, "unknown": None}
    assert row.scorer == "redness@0123456789ab"
    assert (row.path, row.bytes) == (str(path), path.stat().st_size) and len(row.sha256 or "") == 64


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("empty", "empty (0 bytes)"),
        ("text", "this is a text file"),
        ("cut off", "damaged, cut off or of an unusual kind"),
        ("bomb", "more than 150 megapixels"),
        ("large", "13000 x 13000 pixels"),
        ("noise", "not a kind of image"),
        ("gone", "not a file"),
        ("dangling", "points nowhere"),
        ("pipe", "not a file"),
        ("folder", "not a file"),
    ],
)
def test_what_cannot_be_scored_gives_a_reason_and_the_run_goes_on(
    tmp_path: Path, kind: str, says: str
) -> None:
    bad, good = tmp_path / "bad.png", plain(tmp_path / "good.png")
    if kind == "empty":
        bad.touch()
    elif kind == "text":
        bad.write_text("hello", encoding="utf-8")
    elif kind == "cut off":
        noisy(64, 64).save(bad)
        bad.write_bytes(bad.read_bytes()[:-3000])
    elif kind == "bomb":
        bomb(bad)
    elif kind == "large":
        bomb(bad, 13_000)
    elif kind == "noise":
        bad.write_bytes(random.Random(0).randbytes(2000))
    elif kind == "dangling":
        bad.symlink_to(tmp_path / "nowhere.png")
    elif kind == "pipe":
        os.mkfifo(bad)
    elif kind == "folder":
        bad.mkdir()
    rows = run(bad, good)
    assert says in (rows["bad.png"].error or "")
    assert rows["bad.png"].cost is None and rows["bad.png"].band is None
    assert rows["good.png"].cost == 5.0


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_gives_a_reason(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.png")
    path.chmod(0)
    assert "cannot be read" in (run(path)["a.png"].error or "")


def test_a_read_error_gives_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plain(tmp_path / "a.png")

    def broken(self: Path, *_: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", broken)
    assert run(path)["a.png"].error == "the file cannot be read (Permission denied)."


@pytest.mark.parametrize(
    "name",
    ["a.png", "a.jpg", "a.webp", "a.bmp", "a.gif", "a.tiff", "a.ppm", "a.tga", "a.ico", "a.pcx", "a.jp2"],
)
def test_formats(tmp_path: Path, name: str) -> None:
    row = run(plain(tmp_path / name, (250, 10, 10), size=16))[name]
    assert row.cost == pytest.approx(240 / 51, abs=0.15), row.error


def test_kinds_of_pixels(tmp_path: Path) -> None:
    plain(tmp_path / "cmyk.jpg", (250, 10, 10), "CMYK", 16, quality=95)
    plain(tmp_path / "one.png", (255, 0, 0), size=1)
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half.save(tmp_path / "clear.png")  # white to the eye, red once its alpha is dropped
    palette = Image.new("RGB", (8, 8), (255, 0, 0)).quantize(4)
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 255, 255, 255]))
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGB", (30_000, 20), (255, 0, 0)).save(tmp_path / "wide.png")
    rows = run(*sorted(tmp_path.iterdir()))
    assert {name: row.error for name, row in rows.items() if row.error} == {}
    assert rows["cmyk.jpg"].cost == pytest.approx(240 / 51, abs=0.2)
    assert rows["one.png"].cost == rows["wide.png"].cost == 5.0
    assert rows["clear.png"].cost == rows["palette.png"].cost == 5.0
    assert rows["deep.png"].cost == 0.0


def test_a_turned_image_scores_as_the_upright_one(tmp_path: Path) -> None:
    upright = noisy(40, 60)
    for tag in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = tag
        # What a camera held that way stores, so that turning it by the tag gives the upright image.
        stored = {
            1: upright,
            2: ImageOps.mirror(upright),
            3: upright.rotate(180),
            4: ImageOps.flip(upright),
            5: upright.transpose(Image.Transpose.TRANSPOSE),
            6: upright.transpose(Image.Transpose.ROTATE_90),
            7: upright.transpose(Image.Transpose.TRANSVERSE),
            8: upright.transpose(Image.Transpose.ROTATE_270),
        }[tag]
        stored.save(tmp_path / f"{tag}.png", exif=exif)
    rows = list(FolderRun(load_scorer("embedded")).rows(sorted(tmp_path.iterdir())))
    assert len({row.cost for row in rows}) == 1 and rows[0].cost is not None
    assert len({row.sha256 for row in rows}) == 8


def test_animations_count_by_their_worst_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "lime", "blue", "red", "blue", "red")]
    path = tmp_path / "a.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    first, all_, third = (run(path, every=every)["a.webp"] for every in (0, 1, 2))
    assert (first.frame, first.cost) == (0, -5.0)
    assert (all_.frame, all_.cost, all_.every) == (3, 5.0, 1)
    assert all_.categories == {"red": 5.0, "green": 5.0, "unknown": None}
    assert third.cost == -5.0  # frames 0, 2, 4 are blue


def test_batches_are_full(tmp_path: Path) -> None:
    scorer = Redness()
    files = [plain(tmp_path / f"{k}.png", (k, 0, 0)) for k in range(10)]
    list(FolderRun(scorer, batch=4).rows(files))
    assert scorer.batches == [4, 4, 2]


class Beside(Redness):
    """A scorer that several threads call at once."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()

    def one_thread(self) -> Beside:
        return self

    def score_prepared(self, prepared: Sequence[np.ndarray]) -> list[CostScore]:
        self.threads.add(threading.current_thread().name)
        return super().score_prepared(prepared)


def test_a_scorer_that_likes_company_is_called_from_the_decoders_threads(tmp_path: Path) -> None:
    scorer = Beside()
    files = [plain(tmp_path / f"{k:02}.png", (k, 0, 0)) for k in range(30)]
    files.append(plain(tmp_path / "copy.png", (7, 0, 0)))
    (tmp_path / "bad.png").touch()
    rows = list(FolderRun(scorer, workers=2).rows([*files, tmp_path / "bad.png"]))
    alone = list(FolderRun(Redness()).rows([*files, tmp_path / "bad.png"]))
    assert sorted(rows, key=lambda row: row.path) == sorted(alone, key=lambda row: row.path)
    assert all(name.startswith("decode") for name in scorer.threads)
    assert sorted(scorer.batches) == [2, *[4] * 7]


def test_same_content_is_scored_once(tmp_path: Path) -> None:
    files = [plain(tmp_path / f"{k}.png") for k in range(6)]
    scorer = Redness()
    folder_run = FolderRun(scorer, workers=4)
    rows = list(folder_run.rows(files))
    assert sorted(row.path for row in rows) == [str(path) for path in files]
    assert {row.cost for row in rows} == {5.0} and scorer.batches == [1] and folder_run.reused == 5


def test_copies_of_a_bad_file_all_get_the_reason(tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.png" for k in range(6)]
    for path in files:
        path.write_text("no image", encoding="utf-8")
    rows = list(FolderRun(Redness(), workers=4).rows(files))
    assert len(rows) == 6 and all("text file" in (row.error or "") for row in rows)


def test_only_new_and_changed_files_are_looked_at(tmp_path: Path) -> None:
    files = [plain(tmp_path / f"{k}.png", (k * 20, 0, 0)) for k in range(4)]
    known = {row.path: row for row in FolderRun(Redness()).rows(files)}
    plain(files[1], (0, 0, 255))
    moved = files[2].rename(tmp_path / "moved.png")
    scorer = Redness()
    again = FolderRun(scorer, known)
    rows = {row.path: row for row in again.rows([files[0], files[1], moved, files[3]])}
    assert scorer.batches == [1] and again.reused == 3
    assert rows[str(files[1])].cost == -5.0
    assert rows[str(moved)].cost == known[str(files[2])].cost
    # Other settings are another question.
    every = FolderRun(Redness(), known, every=2)
    list(every.rows([files[0]]))
    assert every.reused == 0


def test_a_image_that_upsets_the_scorer_costs_the_others_nothing(tmp_path: Path) -> None:
    files = [
        plain(tmp_path / "black.png", "black"),
        plain(tmp_path / "red.png"),
        plain(tmp_path / "lime.png", "lime"),
    ]
    rows = {Path(row.path).name: row for row in FolderRun(Moody()).rows(files)}
    assert rows["black.png"].error == "black upsets me" and rows["black.png"].cost is None
    assert rows["red.png"].cost == 5.0 and rows["lime.png"].cost == -5.0


def test_stopping_in_the_middle_leaves_no_thread(tmp_path: Path) -> None:
    files = [plain(tmp_path / f"{k}.png", (k, 0, 0)) for k in range(40)]
    rows = FolderRun(Redness(), batch=2).rows(files)
    next(rows)
    rows.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("decode", "score"))]


def test_images_of_unusual_names_get_a_row_too(tmp_path: Path) -> None:
    noisy(8, 8).save(tmp_path / "plain", "PNG")
    noisy(8, 8).save(tmp_path / "phone.mpo", "JPEG")
    (tmp_path / "new.jxl").write_bytes(b"\xff\x0a" + bytes(30))
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "Makefile").write_text("all:")
    found = find_images([tmp_path]).files
    assert [path.name for path in found] == ["drawing.svg", "new.jxl", "phone.mpo", "plain"]
    rows = run(*found)
    assert rows["plain"].cost is not None and rows["phone.mpo"].cost is not None
    assert "SVG" in str(rows["drawing.svg"].error) and "Save it as PNG" in str(rows["new.jxl"].error)


def test_folders_are_walked_to_the_bottom(tmp_path: Path) -> None:
    for name in ("b/c/1.png", "a.jpg", "b/2.PNG", ".hidden/3.png", "b/._4.png", "b/caption.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path])
    names = [path.relative_to(tmp_path).as_posix() for path in found.files]
    assert names == ["a.jpg", "b/2.PNG", "b/c/1.png"]
    assert find_images([tmp_path / "b" / "caption.txt"]).files == [tmp_path / "b" / "caption.txt"]
    assert find_images([tmp_path], skip=[tmp_path / "b" / "c"]).files == found.files[:2]


def test_loops_of_links_end_and_a_file_counts_once(tmp_path: Path) -> None:
    plain(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    (tmp_path / "again.png").symlink_to(tmp_path / "a" / "1.png")
    found = find_images([tmp_path, tmp_path / "a"])
    # Links to files are files: the first name wins.
    assert [path.name for path in found.files] == ["again.png"] and found.repeats == 1


def test_places_that_are_not_there_are_named(tmp_path: Path) -> None:
    found = find_images([tmp_path / "no", plain(tmp_path / "1.png")])
    assert [path.name for path in found.files] == ["1.png"]
    assert [problem.path for problem in found.problems] == [tmp_path / "no"]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png"))
    try:
        shutil.copy(plain(tmp_path / "a.png"), odd)
    except OSError:
        pytest.skip("this disk has no such names")
    row = next(FolderRun(Redness()).rows([odd]))
    assert Row.from_json(row.to_json()) == row and os.path.exists(row.path)
