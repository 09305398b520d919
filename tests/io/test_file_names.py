"""Names that are no UTF-8, and names as long as a file system takes, on every way through the program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scdpo_core.io.files import write_json, write_text
from scdpo_core.io.printable import printable
from scdpo_core.preferences.folder import read_folder
from scdpo_core.preferences.labelling_session import Session
from scdpo_core.preferences.summary import survey
from scdpo_core.run_store.events import EventLog, Warned, read_events
from scdpo_core.scoring.job import ScoreJob, explain, finish, score_files
from scdpo_core.training.job import run_job
from scdpo_core.types import ScdpoError
from tests.support.scoring_helpers import Redness, noisy
from tests.support.tiny import tiny_pairs, tiny_sd_folder, tiny_settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")

LATIN = os.fsdecode(b"caf\xe9")
NAMES = [LATIN, "n" * 251, "é" * 125, "🍎" * 62, "a\nb", "<b>x&'\""]


@pytest.fixture(name="images")
def _images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        noisy(12, 12, number).save(folder / f"{name}.png")
    return folder


def test_texts_keep_any_name(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": LATIN})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"name": LATIN}
    for name in NAMES:
        write_text(tmp_path / f"{name}.txt", LATIN)
        assert (tmp_path / f"{name}.txt").read_text("utf-8") == "caf\\udce9"
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".txt"}
    EventLog(tmp_path / "events.jsonl")(Warned(LATIN))
    assert [record.event for record in read_events(tmp_path / "events.jsonl")] == [Warned(LATIN)]


def test_all_that_scoring_writes_takes_any_name(images: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"rows.{name}" for name in ("jsonl", "csv", "html")}
    job = ScoreJob([images], **files, heatmaps=tmp_path / "heat", over=-9, write_back="file")
    result = finish(job, explain(job, score_files(job, Redness()), Redness()))
    assert [row.error for row in result.rows] == [None] * len(NAMES) and not result.problems
    assert len(list((tmp_path / "heat").glob("*.heatmap.png"))) == len(NAMES)
    assert "caf\\udce9" in files["html"].read_text("utf-8")
    again = score_files(job, Redness())
    assert again.reused == len(NAMES)


def test_any_image_can_be_labelled(images: Path, tmp_path: Path) -> None:
    session = Session(images, tmp_path / "pairs")
    while (current := session.view().current) is not None:
        session.answer(current.id, "left", "a cat")
    again = Session(images, tmp_path / "pairs").view()
    assert (again.answered, again.kept) == (3, 3)
    assert len(read_folder(tmp_path / "pairs")[0]) == 3


def test_pairs_of_any_name_train_with_a_cost_model(tmp_path: Path) -> None:
    base = tiny_sd_folder(tmp_path / "base")
    pairs = tiny_pairs(tmp_path / "pairs", 2)
    for path in [*pairs.rglob("*.png"), *pairs.rglob("*.txt")]:
        name = LATIN if path.stem == "pair0" else "n" * 251
        path.rename(path.with_name(f"{name}{path.suffix}"))
    assert printable(survey(pairs).report())
    settings = tiny_settings(
        base, pairs, tmp_path / "run", max_train_steps=1, cost_model="micro", tie=0.0, both_unsafe="order"
    )
    assert run_job(settings).lora is not None


def test_names_that_a_run_cannot_have_are_refused_at_once(tmp_path: Path) -> None:
    pairs = tiny_pairs(tmp_path / "pairs", 2)

    def refused(name: str) -> str:
        with pytest.raises(ScdpoError) as caught:
            run_job(tiny_settings("micro", pairs, tmp_path / name, max_train_steps=1))
        return str(caught.value)

    for name in ("r" * 244, "r" * 300, "🍎" * 61):
        assert "is too long" in refused(name)
    assert "not valid Unicode" in refused(LATIN)
    run = run_job(
        tiny_settings(tiny_sd_folder(tmp_path / "b"), pairs, tmp_path / ("r" * 243), max_train_steps=1)
    )
    assert run.lora is not None and run.lora.path.name == "r" * 243 + ".safetensors"


@pytest.mark.parametrize("door", ["score.py", "train_cost.py"])
def test_a_command_line_prints_any_name(images: Path, tmp_path: Path, door: str) -> None:
    (images / f"{LATIN}-2.png").write_bytes(b"")
    flags = [str(images), "--scorer", "micro"]
    if door == "train_cost.py":
        flags = [
            "--safe",
            str(images),
            "--unsafe",
            str(images),
            "--output",
            str(tmp_path / "out.safetensors"),
        ]
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, str(root / "trainer" / door), *flags],
        capture_output=True,
        timeout=300,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )
    assert b"Traceback" not in ran.stderr and b"Unexpected" not in ran.stderr
    assert b"caf\\udce9" in ran.stdout + ran.stderr
