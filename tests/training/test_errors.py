"""A job that fails or meets a full disk: a sentence, and nothing lost."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from scdpo_core.io.tensor_tree import save_tree
from scdpo_core.lora.file import read_lora_info
from scdpo_core.preferences.folder import read_folder
from scdpo_core.run_store.events import Event, EventLog, Failed, Warned
from scdpo_core.run_store.folder import checkpoint_steps
from scdpo_core.training import checkpoint, job, saving
from scdpo_core.training.job import run_job
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_settings
from tests.training.test_job import _base, _pairs, events_of

__all__ = ["_base", "_pairs"]


def test_resuming_what_never_came_to_a_checkpoint_begins_again(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    settings = tiny_settings(base, pairs, tmp_path / "run", max_train_steps=2)
    with pytest.raises(ScdpoError, match="no run in"):
        run_job(settings, resume=True)
    run_job(settings, should_stop=(tmp_path / "run" / "job.toml").exists)
    assert run_job(settings, resume=True).outcome.step == 2
    assert any(isinstance(event, Warned) for event in events_of(tmp_path / "run"))


def test_a_full_disk_in_the_middle_is_a_sentence_and_leaves_whole_files(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = save_tree
    calls: list[Path] = []

    def fills_up(path: Path, tree: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, tree)

    monkeypatch.setattr(checkpoint, "save_tree", fills_up)
    with pytest.raises(ScdpoError, match="disk is full"):
        run_job(tiny_settings(base, pairs, tmp_path / "run"))
    last = events_of(tmp_path / "run")[-1]
    assert isinstance(last, Failed)
    monkeypatch.undo()
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [2]
    assert run_job(tiny_settings(base, pairs, tmp_path / "run"), resume=True).outcome.step == 6


def test_a_log_that_cannot_be_written_does_not_hide_why_the_run_failed(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EventLog, "__call__", full)
    with pytest.raises(ScdpoError, match="disk is full"):
        run_job(tiny_settings(base, pairs, tmp_path / "run"), listen=heard.append)
    assert isinstance(heard[-1], Failed)


def test_a_bug_of_ours_is_logged_and_not_hidden(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(job, "encode", bug)
    with pytest.raises(ZeroDivisionError):
        run_job(tiny_settings(base, pairs, tmp_path / "run"))
    assert events_of(tmp_path / "run")[-1] == Failed("Unexpected error: ZeroDivisionError: oops")


def test_the_tiny_folder_is_a_preference_folder(pairs: Path) -> None:
    found, problems = read_folder(pairs)
    assert len(found) == 6
    assert problems == []
    assert {pair.category for pair in found} == {"weapon", "benign"}


def test_a_disk_that_fills_up_at_the_very_end_costs_no_training(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    settings = tiny_settings(base, pairs, tmp_path / "run", max_train_steps=2)

    def full(*_: object, **__: object) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "save_lora", full)
    with pytest.raises(ScdpoError, match="disk is full"):
        run_job(settings)
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert run_job(settings, resume=True).lora is not None
    assert read_lora_info(tmp_path / "run" / "run.safetensors").rank == 2
