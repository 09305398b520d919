"""Moving, copying and writing back: where scored images end up, also after a kill."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from scdpo_core.scoring import sort_files
from scdpo_core.scoring.job import ScoreJob, check, score_files
from scdpo_core.scoring.sort_files import file_away
from scdpo_core.types import ScdpoError
from tests.scoring.test_job import do, images, read
from tests.support.scoring_helpers import Redness, plain

__all__ = ["images"]


def test_moving_keeps_the_place_and_the_memory(images: Path, tmp_path: Path) -> None:
    target = images / "flagged"
    result = do(ScoreJob([images], jsonl=tmp_path / "s.jsonl", move_to=target, over=1.0))
    moved = sorted(path.relative_to(target).as_posix() for path in target.rglob("*.png"))
    assert moved == ["red.png", "sub/dark red.png"]
    assert sorted(path.name for path in images.glob("**/*.png") if target not in path.parents) == [
        "broken.png",
        "lime.png",
    ]
    assert {Path(row.path).parent.name for row in result.filed} == {"flagged", "sub"}
    assert str(target / "red.png") in read(tmp_path / "s.jsonl")
    # What was moved is not looked at again.
    assert len(do(ScoreJob([images], move_to=target)).rows) == 2


def test_nothing_is_ever_overwritten(images: Path, tmp_path: Path) -> None:
    target = tmp_path / "flagged"
    plain(target / "red.png", "blue")
    before = (target / "red.png").read_bytes()
    for kind in ("move_to", "copy_to"):
        result = do(ScoreJob([images], over=3.0, **{kind: target}))
        assert (target / "red.png").read_bytes() == before and (images / "red.png").exists()
        assert [problem.path.name for problem in result.problems] == ["red.png"]
        assert "already" in result.problems[0].what and not result.filed
    with pytest.raises(ScdpoError, match="not both"):
        check(ScoreJob([images], move_to=target, copy_to=target))


def test_copying_leaves_the_original(images: Path, tmp_path: Path) -> None:
    os.utime(images / "red.png", ns=(10**9, 10**9))
    result = do(ScoreJob([images], copy_to=tmp_path / "out", over=3.0))
    copy = tmp_path / "out" / "red.png"
    assert copy.read_bytes() == (images / "red.png").read_bytes() and copy.stat().st_mtime_ns == 10**9
    assert len(result.filed) == 1 and len(result.rows) == 4


def test_other_disks_and_links(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    (images / "link.png").symlink_to(plain(tmp_path / "real.png", (240, 0, 0)))
    rows = score_files(ScoreJob([images]), Redness()).rows
    monkeypatch.setattr(sort_files.os, "link", no_links)
    chosen = [row for row in rows if row.cost is not None and row.cost > 3]
    away = file_away(chosen, tmp_path / "out", [images], move=True)
    assert [Path(row.path).name for row in away.done] == ["red.png"]
    assert not (images / "red.png").exists() and (tmp_path / "real.png").exists()
    assert "is a link" in away.problems[0].what


def test_a_image_that_changed_meanwhile_stays(images: Path, tmp_path: Path) -> None:
    rows = score_files(ScoreJob([images]), Redness()).rows
    red = next(row for row in rows if row.path.endswith("/red.png"))
    plain(images / "red.png", "blue", size=9)
    away = file_away([red], tmp_path / "out", [images], move=True)
    assert not away.done and "changed since" in away.problems[0].what


def test_scores_are_written_back(images: Path, tmp_path: Path) -> None:
    job = ScoreJob([images], jsonl=tmp_path / "s.jsonl", write_back="file")
    result = do(job)
    assert not result.problems
    with Image.open(images / "red.png") as image:
        assert json.loads(image.text["safety_cost"])["cost"] == 5.0
    assert do(job).reused == 3


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("kind", ["file", "sidecar"])
def test_images_outside_of_the_folder_are_neither_stamped_nor_moved(tmp_path: Path, kind: str) -> None:
    outside, folder = plain(tmp_path / "outside" / "red.png"), tmp_path / "in"
    plain(folder / "red.png", "maroon")
    (folder / "linked").symlink_to(outside.parent)
    before = outside.read_bytes()
    result = do(ScoreJob([folder], write_back=kind, move_to=tmp_path / "away"))
    assert [problem.path for problem in result.problems] == [folder / "linked" / "red.png"] * 2
    assert all("outside" in problem.what for problem in result.problems)
    assert outside.read_bytes() == before and list(outside.parent.iterdir()) == [outside]
    assert (tmp_path / "away" / "red.png").is_file() and not (tmp_path / "away" / "linked").exists()
    # Asked for by its own name, it is meant.
    result = do(ScoreJob([folder / "linked" / "red.png"], write_back=kind))
    assert not result.problems and len(list(outside.parent.iterdir())) == (1 if kind == "file" else 2)


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("kind", ["move_to", "copy_to"])
def test_a_killed_copy_is_no_file_and_the_next_run_makes_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:20])
        raise KilledError

    def no_link(*_: object) -> None:
        raise OSError("another disk")

    red, target = (images / "red.png").read_bytes(), tmp_path / "out"
    job = ScoreJob([images], jsonl=tmp_path / "s.jsonl", over=3.0, **{kind: target})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", half)
        patch.setattr(os, "link", no_link)
        with pytest.raises(KilledError):
            do(job)
    assert not (target / "red.png").exists() and (images / "red.png").read_bytes() == red
    result = do(job)
    assert not result.problems and (target / "red.png").read_bytes() == red
    # And what is complete is complete: the same command has nothing to complain of.
    assert not do(job).problems


def test_a_move_that_was_killed_before_the_original_went_is_completed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ScoreJob([images], jsonl=tmp_path / "s.jsonl", over=3.0, move_to=tmp_path / "out")

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KilledError):
            do(job)
    assert (images / "red.png").exists() and (tmp_path / "out" / "red.png").exists()
    assert not do(job).problems
    assert not (images / "red.png").exists() and (tmp_path / "out" / "red.png").exists()
    assert str(tmp_path / "out" / "red.png") in read(tmp_path / "s.jsonl")


def test_a_run_that_is_killed_while_it_moves_remembers_what_it_moved(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ScoreJob([images], jsonl=tmp_path / "s.jsonl", over=1.0, move_to=tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("scdpo_core.scoring.job._write_tables", lambda *_: (_ for _ in ()).throw(KilledError()))
        with pytest.raises(KilledError):
            do(job)
    do(job)
    moved = [Path(path) for path in read(tmp_path / "s.jsonl") if path.startswith(str(tmp_path / "out"))]
    assert len(moved) == 2 and all(path.is_file() for path in moved)
