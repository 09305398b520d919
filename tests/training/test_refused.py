"""Attempts that are refused: a run folder that is not rightfully entered stays as it was, to the byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scdpo_core.config.settings import TrainSettings
from scdpo_core.io.files import read_tensors
from scdpo_core.io.safetensors_header import read_header
from scdpo_core.run_store import folder as names
from scdpo_core.run_store.events import Done, Event, Failed, Warned, read_events
from scdpo_core.run_store.process import look
from scdpo_core.run_store.state import outcome, state_of
from scdpo_core.runs.log import Reporter
from scdpo_core.training.checks import epochs_of, many_epochs
from scdpo_core.training.job import run_job
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_pairs, tiny_sd_folder, tiny_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "my pairs")


@pytest.fixture(scope="module", name="finished")
def _finished(base: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "lora"
    run_job(tiny_settings(base, pairs, folder))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Everything but the cache, which is found by content and harms nobody."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "cache" not in path.relative_to(folder).parts
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 5}, r"optim\.seed: 0 -> 5"),
        ({"lr": -1.0}, "optim.lr must be above 0"),
        ({"max_train_steps": 4}, r"has 6 steps behind it, and --max-train-steps 4 is fewer"),
        ({"pairs": "other"}, "pairs have changed"),
        ({"pairs": "none"}, "no such folder"),
    ],
)
def test_a_refused_resume_leaves_a_finished_run_as_it_was(
    finished: Path, base: Path, pairs: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    if "pairs" in changes:
        pairs = tiny_pairs(tmp_path / "other", 4) if changes["pairs"] == "other" else tmp_path / "none"
        changes = {}
    before = content(finished)
    with pytest.raises(ScdpoError, match=said):
        run_job(tiny_settings(base, pairs, finished, **changes), resume=True)
    assert content(finished) == before
    last = outcome(finished)
    assert isinstance(last, Done) and last.reason == "finished"


def test_a_door_is_told_why_its_process_was_refused(finished: Path, base: Path, pairs: Path) -> None:
    us = look(os.getpid())
    assert us is not None
    events = finished / "events.jsonl"
    before = events.read_bytes()
    names.write_launch(finished, names.Launch(us[0], len(before), 0))
    try:
        with pytest.raises(ScdpoError, match=r"optim\.lr"):
            run_job(tiny_settings(base, pairs, finished, lr=-1.0), resume=True)
        assert isinstance([record.event for record in read_events(events)][-1], Failed)
    finally:
        (finished / names.LAUNCH).unlink()
        events.write_bytes(before)


def test_other_kinds_of_work_do_not_write_into_a_runs_folder(
    finished: Path, base: Path, pairs: Path, tmp_path: Path
) -> None:
    before = content(finished)
    for kind in ("compare", "cost"):
        with (
            pytest.raises(ScdpoError, match="is the run folder of a safety LoRA"),
            Reporter(
                finished,
                kind,  # type: ignore[arg-type]
            ).last_words(),
        ):
            raise AssertionError("nobody comes here")
    assert content(finished) == before
    names.write_kind(tmp_path, "cost")
    with pytest.raises(ScdpoError, match=r"is the run folder of a cost model\. Give another --output"):
        run_job(tiny_settings(base, pairs, tmp_path))
    # What the same kind has left may be gone on with.
    with Reporter(tmp_path, "cost").last_words():
        pass


def test_comparing_with_the_settings_of_a_training_says_what_to_do(finished: Path) -> None:
    before = content(finished)
    command = [sys.executable, str(ROOT / "trainer" / "compare.py"), "--config", str(finished / "job.toml")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 2
    assert f"To compare its LoRA: --lora {finished}" in process.stderr
    assert content(finished) == before


def test_a_lora_is_compared_by_flags(finished: Path, tmp_path: Path) -> None:
    output, prompts = tmp_path / "looked at", tmp_path / "prompts.txt"
    prompts.write_text("a thing\n\nanother thing\n", "utf-8")
    # fmt: off
    command = [sys.executable, ROOT / "trainer" / "compare.py", "--lora", finished, "--weights", "0,1",
               "--prompts", prompts, "a third", "--steps", 2, "--output", output]
    # fmt: on

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)

    process = run()
    assert process.returncode == 0, process.stderr
    assert "without the LoRA  cost above zero" in process.stdout
    assert str(output / "report.html") in process.stdout
    assert len(list((output / "samples").glob("*.png"))) == 3 * 2
    assert state_of(output) == "finished"
    process = run()
    assert process.returncode == 2 and "A run 'looked at' already exists" in process.stderr


def test_a_base_that_has_moved_is_the_same_and_another_one_is_not(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    moved, folder = tmp_path / "moved" / "base", tmp_path / "run"
    shutil.copytree(base, moved)
    run_job(tiny_settings(base, pairs, folder, max_train_steps=2))
    more = {"max_train_steps": 3, "save_dtype": "fp32", "validation_every": 7}
    assert run_job(tiny_settings(moved, pairs, folder, **more), resume=True).outcome.step == 3
    other = moved / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(other)
    save_file({name: weight * 1.5 for name, weight in weights.items()}, str(other), {"format": "pt"})
    before = content(folder)
    with pytest.raises(ScdpoError, match="--base is another model than it was begun with"):
        run_job(tiny_settings(moved, pairs, folder, max_train_steps=4), resume=True)
    assert content(folder) == before


def test_epochs_are_counted_and_many_are_warned_of(base: Path, pairs: Path, tmp_path: Path) -> None:
    # 24 pairs, 700 steps of 4 * 4: 11,200 of 24, in two processes twice as many.
    settings = TrainSettings()
    assert epochs_of(settings, 1, 24) == pytest.approx(466.67, abs=0.01)
    assert epochs_of(settings, 2, 24) == pytest.approx(933.33, abs=0.01)
    assert ["comes 467 times" in sentence for sentence in many_epochs(466.67, 24)] == [True]
    assert list(many_epochs(100, 112)) == []
    heard: list[Event] = []
    settings = tiny_settings(base, pairs, tmp_path / "run", max_train_steps=1, width=32, height=32)
    run_job(settings, listen=heard.append)
    said = "\n".join(event.message for event in heard if isinstance(event, Warned))
    assert "6 of 6 pairs have an image smaller than the training size" in said
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        read_tensors(tmp_path / "model.safetensors")
    with pytest.raises(ScdpoError, match="Git LFS pointer"):
        read_header(tmp_path / "model.safetensors")


def test_compiling_where_the_linker_would_fail_is_refused_at_once(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The project may itself lie in a folder with a space.
    monkeypatch.setattr(torch, "__file__", "/project/torch/__init__.py")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "my cache"))
    with pytest.raises(ScdpoError, match="Set TORCHINDUCTOR_CACHE_DIR to a folder without one"):
        run_job(tiny_settings(base, pairs, tmp_path / "run", compile="blocks", device="cpu"))
    monkeypatch.setattr(torch, "__file__", "/my project/torch/__init__.py")
    with pytest.raises(ScdpoError, match="torch lies in /my project/torch"):
        run_job(tiny_settings(base, pairs, tmp_path / "run", compile="blocks", device="cpu"))
