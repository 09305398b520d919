"""The LoRAs of a run: the result, the best one on held-out pairs, those kept on the way and exported ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from scdpo_core.lora.file import load_lora, read_lora_info
from scdpo_core.run_store.events import Event, Progress, Saved, Warned
from scdpo_core.run_store.folder import checkpoint_steps
from scdpo_core.training import saving
from scdpo_core.training.job import run_job
from scdpo_core.training.saving import JobResult, export
from scdpo_core.training.validation import Best, Validator
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_pairs, tiny_sd_folder, tiny_settings


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "my pairs")


def _looks(monkeypatch: pytest.MonkeyPatch, gaps: Sequence[float]) -> Iterator[float]:
    """Give the winner gaps of the looks: what falls apart is not the same on every processor."""
    left = iter(gaps)
    monkeypatch.setattr(Validator, "look", lambda _: {"winner_gap": next(left), "accuracy": 0.5})
    return left


def _run(base: Path, pairs: Path, folder: Path, heard: list[Event], **changes: Any) -> JobResult:
    options = {"validation": 0.3, "validation_every": 1, "save_every": 1, "max_train_steps": 6, "lr": 0.05}
    settings = tiny_settings(base, pairs, folder, **{**options, "keep": 9, "checkpoint_every": 2, **changes})
    return run_job(settings, listen=heard.append)


def _same(one: Path, other: Path) -> bool:
    mine, theirs = load_lora(one)[0], load_lora(other)[0]
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def _said(heard: Sequence[Event]) -> str:
    return "\n".join(event.message for event in heard if isinstance(event, Warned))


def test_the_lowest_gap_is_the_best_and_of_equals_the_latest() -> None:
    best = Best()
    for step, gap in enumerate((0.2, -0.1, 0.0, -0.1, 0.3), start=1):
        best.see(step, gap, lambda step=step: {"weight": torch.tensor(float(step))})  # type: ignore[misc]
    assert (best.step, best.winner_gap, float(best.adapter["weight"])) == (4, -0.1, 4.0)
    again = Best()
    again.load_state(best.state())
    assert again == best
    assert Best().state() is None


def test_an_early_stop_ends_with_the_best_lora_and_says_so(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The third and fourth look have risen above zero twice in a row: over at step 4.
    _looks(monkeypatch, (-0.1, -0.2, 0.1, 0.2))
    heard: list[Event] = []
    result = _run(base, pairs, tmp_path / "run", heard, patience=2)
    assert (result.outcome.reason, result.outcome.step) == ("finished", 4)
    kept = tmp_path / "run" / "loras"
    assert sorted(path.name for path in kept.glob("*.safetensors")) == [
        f"run-{step:06d}.safetensors" for step in (1, 2, 3, 4)
    ]
    assert result.lora is not None
    assert result.lora.metadata["scdpo_train_steps"] == "2"
    assert _same(result.lora.path, kept / "run-000002.safetensors")
    assert not _same(result.lora.path, kept / "run-000004.safetensors")
    assert "The result is the LoRA of step 2, the best one on the held-out pairs." in _said(heard)
    assert Saved(2, "run.safetensors", "lora") in heard


def test_without_an_early_stop_the_last_lora_is_the_result_and_the_best_is_kept(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _looks(monkeypatch, (0.1, -0.2, 0.1, 0.2, 0.3, 0.4))
    heard: list[Event] = []
    result = _run(base, pairs, tmp_path / "run", heard, save_every=0, ema=0.9)
    assert result.lora is not None
    assert result.lora.metadata["scdpo_train_steps"] == "6"
    kept = tmp_path / "run" / "loras" / "run-000002.safetensors"
    assert read_lora_info(kept).metadata["scdpo_train_steps"] == "2"
    assert "the LoRA of step 2 was better than the last one" in _said(heard)
    _looks(monkeypatch, (0.1, -0.2, 0.1, 0.2, 0.3, 0.4))
    wanted = _run(base, pairs, tmp_path / "other" / "run", [], save_every=0, ema=0.9, result="best")
    assert wanted.lora is not None and _same(wanted.lora.path, kept)


def test_a_run_that_is_resumed_knows_the_best_of_before(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps = (-0.1, -0.2, 0.1, 0.0, 0.1, 0.2)
    options: dict[str, Any] = {"result": "best", "save_every": 0}
    _looks(monkeypatch, gaps)
    whole = _run(base, pairs, tmp_path / "whole" / "lora", [], **options).folder
    left = _looks(monkeypatch, gaps)
    stop: list[bool] = []

    def listen(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "train" and event.step >= 3:
            stop.append(True)

    settings = tiny_settings(
        base, pairs, tmp_path / "parts" / "lora", validation=0.3, validation_every=1, max_train_steps=6,
        lr=0.05, keep=9, checkpoint_every=2, log_every=1, **options,
    )  # fmt: skip
    folder = run_job(settings, listen=listen, should_stop=lambda: bool(stop)).folder
    assert checkpoint_steps(folder / "checkpoints")[-1] == 4
    run_job(settings, resume=True)
    assert list(left) == []
    assert (folder / "lora.safetensors").read_bytes() == (whole / "lora.safetensors").read_bytes()


def test_any_checkpoint_becomes_a_lora(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _looks(monkeypatch, (0.1, 0.2, -0.1, 0.2, 0.3, 0.4))
    folder = tmp_path / "run"
    result = _run(base, pairs, folder, [], ema=0.9)
    kept = folder / "loras"
    for step in (2, 4):
        found = export(folder, step=step, output=tmp_path / f"{step}.safetensors")
        assert _same(found.path, kept / f"run-{step:06d}.safetensors")
        assert found.metadata["scdpo_train_steps"] == str(step)
        assert found.family == "sd1"
    best = export(folder, best=True, output=tmp_path / "best.safetensors")
    assert _same(best.path, kept / "run-000003.safetensors")
    assert result.lora is not None
    assert _same(export(folder, output=tmp_path / "last.safetensors").path, result.lora.path)
    with pytest.raises(ScdpoError, match="nothing is ever overwritten"):
        export(folder, step=2)
    with pytest.raises(ScdpoError, match="there are: 2, 4, 6"):
        export(folder, step=3)
    (folder / "checkpoints" / "step-000002.state.safetensors").write_bytes(b"x")
    with pytest.raises(ScdpoError, match="is damaged"):
        export(folder, step=2)
    (folder / "checkpoints" / "lora.json").unlink()
    with pytest.raises(ScdpoError, match=r"lora\.json is missing or damaged"):
        export(folder, step=4, output=tmp_path / "none.safetensors")
    with pytest.raises(ScdpoError, match="no checkpoint in"):
        export(tmp_path)


def test_the_file_can_have_the_names_of_another_program(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import safe_open

    result = run_job(tiny_settings(base, pairs, tmp_path / "run", max_train_steps=1, save_format="peft"))
    assert result.lora is not None
    with safe_open(result.lora.path, framework="pt") as handle:
        assert all(".lora_A." in name or ".lora_B." in name for name in handle.keys())  # noqa: SIM118
    exported = export(result.folder, output=tmp_path / "again.safetensors")
    assert _same(exported.path, result.lora.path)

    def refuse(*_: object) -> None:
        raise ScdpoError("no name for a weight")

    # Before the first step, not after the last one.
    monkeypatch.setattr(saving, "to_file", refuse)
    with pytest.raises(ScdpoError, match=r"--save-format comfyui cannot hold this LoRA \(no name for a"):
        run_job(tiny_settings(base, pairs, tmp_path / "no", save_format="comfyui"))
    assert checkpoint_steps(tmp_path / "no" / "checkpoints") == []
