"""The job from folders to tables, its memory, and what it does to files."""

from __future__ import annotations

import csv
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scdpo_core.cost.scorers import load_scorer
from scdpo_core.scoring.gallery import write_gallery
from scdpo_core.scoring.job import JobResult, ScoreJob, check, explain, finish, gather, score_files
from scdpo_core.scoring.run import FolderRun
from scdpo_core.scoring.table import Row, RowFile
from scdpo_core.types import ScdpoError
from tests.support.scoring_helpers import Redness, noisy, plain

SCRIPT = Path(__file__).resolve().parents[2] / "trainer" / "score.py"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    plain(folder / "red.png", (255, 0, 0))
    plain(folder / "sub" / "lime.png", (0, 255, 0))
    plain(folder / "sub" / "dark red.png", (102, 0, 0))
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    return folder


def do(job: ScoreJob) -> JobResult:
    check(job)
    return finish(job, score_files(job, Redness()))


def read(path: Path) -> dict[str, Row]:
    file = RowFile.open(path)
    file.close()
    return file.rows


def test_tables(images: Path, tmp_path: Path) -> None:
    job = ScoreJob([images], *(tmp_path / f"s.{kind}" for kind in ("jsonl", "csv", "parquet", "html")))
    result = do(job)
    lines = (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [list(row)[:7] for row in rows] == [
        ["path", "sha256", "cost", "band", "categories", "scorer", "error"]
    ] * 4
    assert [Path(row["path"]).name for row in rows] == ["broken.png", "red.png", "dark red.png", "lime.png"]
    assert [row["cost"] for row in rows] == [None, 5.0, 2.0, -5.0]
    assert [row["band"] for row in rows] == [None, "unsafe", "unsafe", "safe"]
    table = list(csv.DictReader((tmp_path / "s.csv").open(encoding="utf-8", newline="")))
    assert [row["cost"] for row in table] == ["", "5.0", "2.0", "-5.0"]
    assert table[1]["cost of red"] == "5.0" and table[1]["cost of unknown"] == ""
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(tmp_path / "s.parquet").to_pydict()
    assert columns["cost"] == [None, 5.0, 2.0, -5.0]
    assert columns["path"] == [row["path"] for row in rows]
    assert columns["cost of unknown"] == [None] * 4
    assert len(result.rows) == 4 and result.reused == 0


def test_the_next_run_scores_only_what_is_new(images: Path, tmp_path: Path) -> None:
    job = ScoreJob([images], jsonl=tmp_path / "s.jsonl")
    do(job)
    plain(images / "new.png", "blue")
    (images / "red.png").unlink()
    result = do(job)
    assert result.reused == 2  # lime and dark red; the broken one is tried again
    names = sorted(Path(path).name for path in read(tmp_path / "s.jsonl"))
    assert names == ["broken.png", "dark red.png", "lime.png", "new.png"]
    assert do(ScoreJob([images], jsonl=tmp_path / "s.jsonl", rescore=True)).reused == 0


def test_one_memory_for_many_folders(images: Path, tmp_path: Path) -> None:
    memory = tmp_path / "s.jsonl"
    do(ScoreJob([images / "sub"], jsonl=memory))
    do(ScoreJob([images / "red.png"], jsonl=memory))
    assert len(read(memory)) == 3


def test_an_interrupted_run_goes_on(images: Path, tmp_path: Path) -> None:
    job = ScoreJob([images], jsonl=tmp_path / "s.jsonl", batch=1)

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_files(job, Redness(), stop)
    kept = read(tmp_path / "s.jsonl")
    assert len(kept) == 3
    # As if the power had failed in the middle of a line.
    whole = (tmp_path / "s.jsonl").read_text(encoding="utf-8")
    (tmp_path / "s.jsonl").write_text(whole[:-30], encoding="utf-8")
    result = do(job)
    assert len(result.rows) == 4 and result.reused >= 1
    assert len(read(tmp_path / "s.jsonl")) == 4


@pytest.mark.parametrize("content", ["my diary\nsecond day\nthird day\n", '{"a": 1}\n{"b": 2}\n{"c": 3}\n'])
def test_another_file_is_never_taken_for_the_memory(images: Path, tmp_path: Path, content: str) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(content, encoding="utf-8")
    with pytest.raises(ScdpoError, match="contains other things than scores"):
        do(ScoreJob([images], jsonl=other))
    assert other.read_text(encoding="utf-8") == content


def test_several_processes_make_one_result(images: Path, tmp_path: Path) -> None:
    jobs = [ScoreJob([images], jsonl=tmp_path / "s.jsonl", rank=k, processes=3) for k in range(3)]
    parts = [score_files(job, Redness()) for job in jobs]
    paths = sorted(row.path for part in parts for row in part.rows)
    assert paths == sorted(map(str, images.rglob("*.png")))  # each file exactly once
    result = finish(jobs[0], gather(jobs[0]))
    alone = do(ScoreJob([images], jsonl=tmp_path / "alone.jsonl"))
    assert result.rows == alone.rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.jsonl", "images", "s.jsonl"]
    assert sum(score_files(job, Redness()).reused for job in jobs) == 3
    with pytest.raises(ScdpoError, match="share one JSONL file"):
        check(ScoreJob([images], processes=2))


def test_the_number_of_processes_may_change_after_an_interruption(images: Path, tmp_path: Path) -> None:
    memory = tmp_path / "s.jsonl"
    for rank in range(3):
        score_files(ScoreJob([images], jsonl=memory, rank=rank, processes=3), Redness())
    (images / "red.png").unlink()  # and what is gone meanwhile has no row
    jobs = [ScoreJob([images], jsonl=memory, rank=k, processes=2) for k in range(2)]
    assert sum(score_files(job, Redness()).reused for job in jobs) == 2
    gathered = gather(jobs[0])
    assert [Path(row.path).name for row in gathered.rows] == ["broken.png", "dark red.png", "lime.png"]
    # Until the rows of all are written, those of each are kept.
    assert len(list(tmp_path.glob("*.part*"))) == 3
    assert do(ScoreJob([images], jsonl=memory)).reused == 2
    assert not list(tmp_path.glob("*.part*"))


def test_a_process_whose_rows_are_missing_is_named(images: Path, tmp_path: Path) -> None:
    job = ScoreJob([images], jsonl=tmp_path / "s.jsonl", processes=2)
    score_files(job, Redness())
    with pytest.raises(ScdpoError, match="is missing, and with it the scores of process 1"):
        gather(job)


@pytest.mark.skipif(os.name == "nt", reason="devices of POSIX")
def test_the_memory_must_be_a_file(images: Path) -> None:
    with pytest.raises(ScdpoError, match="device or a pipe"):
        do(ScoreJob([images], jsonl=Path(os.devnull)))


def test_heatmaps(images: Path, tmp_path: Path) -> None:
    job = ScoreJob([images], over=3.0, heatmaps=tmp_path / "heat")
    result = explain(job, score_files(job, Redness()), Redness())
    names = sorted(
        path.name.split("-")[0] + path.name[path.name.index(".") :] for path in job.heatmaps.iterdir()
    )
    assert names == ["red.heatmap.png", "red.mask.png"] and not result.problems
    (images / "red.png").unlink()
    job = ScoreJob([images], over=3.0, heatmaps=tmp_path / "heat2")
    assert explain(job, result, Redness()).problems[0].path.name == "red.png"


def test_another_way_to_explain(door: Callable[[list[str]], int], tmp_path: Path) -> None:
    plain(tmp_path / "p" / "red.png", size=64)
    heat = tmp_path / "heat"
    call = [
        str(tmp_path / "p"),
        "--scorer",
        "micro",
        "--device",
        "cpu",
        "--over",
        "-99",
        "--heatmaps",
        str(heat),
    ]
    assert door([*call, "--explain", "gradients"]) == 0 and len(list(heat.iterdir())) == 2
    assert door([*call, "--scorer", "embedded", "--explain", "tokens"]) == 2  # a sentence, not a crash


def test_the_gallery_shows_the_costliest_first(tmp_path: Path) -> None:
    folder = tmp_path / "a & b <c>"
    plain(folder / "lime.png", "lime")
    plain(folder / "red.png", "red")
    plain(folder / "red copy.png", "red")
    noisy(500, 300).save(folder / 'noise "loud".jpg')
    (folder / "text.png").write_text("no", encoding="utf-8")
    rows = score_files(ScoreJob([folder]), Redness()).rows
    page = tmp_path / "g.html"
    write_gallery(page, rows)
    text = page.read_text(encoding="utf-8")
    costs = [float(part.split('"')[0]) for part in text.split('data-cost="')[1:]]
    assert costs == sorted(costs, reverse=True) and len(costs) == 3  # the two red ones share a card
    assert text.count("data:image/") == 3
    assert "1 more with the same content" in text and "<h2>Not scored</h2>" in text
    assert "a &amp; b &lt;c&gt;" in text and "<c>" not in text
    assert 'id="veil" checked' in text and "$" not in text.replace("${", "")
    for word in ("http://", "https://", 'src="/'):
        assert word not in text


def test_a_gallery_of_nothing(tmp_path: Path) -> None:
    write_gallery(tmp_path / "g.html", [])
    assert "0 images of 0 above zero" in (tmp_path / "g.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def door() -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = runpy.run_path(str(SCRIPT))["main"]
    return main


def test_the_door(
    door: Callable[[list[str]], int], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door([str(images)]) == 0
    told = capsys.readouterr()
    assert "red.png" in told.out and "broken.png: the image is damaged" in told.out
    assert "3 scored" in told.err and "1 not scored" in told.err
    rows = tmp_path / "s.jsonl"
    assert door([str(images), "--jsonl", str(rows), "--html", str(tmp_path / "g.html")]) == 0
    first = json.loads(rows.read_text(encoding="utf-8").splitlines()[1])
    assert (
        first["scorer"] == "open-nsfw-1.0.0+nsfwjs-mid-4.4.0@8dc7d067bff2"
        and first["categories"]["violence"] is None
    )
    assert door([str(images), "--jsonl", str(rows)]) == 0
    assert "3 known already" in capsys.readouterr().err
    assert door([str(images), "--jsonl", str(rows), "--scorer", "open-nsfw"]) == 0
    told = capsys.readouterr()
    assert "3 of its scores are by another scorer, 'open-nsfw-1.0.0+nsfwjs-mid-4.4.0@" in told.err
    assert "known already" not in told.err


def test_what_was_asked_and_not_done_shows_in_the_exit_code(
    door: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain(tmp_path / "a" / "a.gif")
    arguments = [str(tmp_path / "a"), "--scorer", "micro", "--write-back"]
    assert door([*arguments, "file"]) == 1
    assert "0 written back" in capsys.readouterr().err
    assert door([*arguments, "sidecar"]) == 0
    assert "1 written back" in capsys.readouterr().err


def test_folders_of_systems_are_passed_over_with_a_note(
    door: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain(tmp_path / "a.png")
    for name in ("@eaDir", "#recycle", ".AppleDouble", "__MACOSX", ".thumbnails"):
        plain(tmp_path / name / "b.png")
    assert door([str(tmp_path), "--scorer", "micro"]) == 0
    told = capsys.readouterr()
    assert "1 scored" in told.err and told.err.count("Note: ") == 5 and "b.png" not in told.out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--scorer", "nobody"], "no scorer and no cost model file 'nobody'"),
        (["--jsonl", "."], "cannot be used"),
        (["--csv", "nowhere.png/s.csv"], "cannot be written"),
        (["--move-over", "a", "--copy-over", "b"], "not both"),
    ],
)
def test_what_goes_wrong_is_a_sentence(
    door: Callable[[list[str]], int],
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere.png").touch()
    assert door([str(images / "red.png"), *more]) == 2
    told = capsys.readouterr().err
    assert says in told and "Traceback" not in told


def test_scorers_are_listed(door: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert door(["--list-scorers"]) == 0
    told = capsys.readouterr().out
    assert "Freepik/nsfw_image_detector" in told and "MIT, 173 MB" in told
    with pytest.raises(SystemExit):
        door([])


@pytest.mark.slow
def test_accelerate_shares_the_work(images: Path, tmp_path: Path) -> None:
    for k in range(20):
        plain(images / f"{k}.png", (k * 10, 0, 0))
    rows = tmp_path / "s.jsonl"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command = [*launch, str(SCRIPT), str(images), "--jsonl", str(rows), "--device", "cpu"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert [path.name for path in tmp_path.glob("s.jsonl*")] == ["s.jsonl"]
    assert run.stderr.count("23 scored") == 1  # one process tells, of all of them
    shared = [(row.path, row.sha256, row.cost, row.error) for row in read(rows).values()]
    alone = list(FolderRun(load_scorer("embedded")).rows(sorted(images.rglob("*.png"))))
    assert len(shared) == 24 and sorted(path for path, *_ in shared) == [path for path, *_ in shared]
    costs = {path: cost for path, _, cost, _ in shared}
    assert {row.path: row.cost for row in alone} == pytest.approx(costs, abs=1e-3)
