"""Runs that accelerate launches in two processes, one after the other and spread by FSDP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scdpo_core.config.settings import to_toml
from scdpo_core.io.files import read_tensors
from scdpo_core.run_store.events import Failed, Progress, Sample, Started, read_events
from scdpo_core.run_store.run_lock import RunLock
from scdpo_core.training.job import run_job
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_pairs, tiny_sd_folder, tiny_settings
from tests.support.tiny_families import tiny_folder
from tests.trainer.test_train_lora import PROGRAM


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


def launch(*options: str, job: Path, extra: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("accelerate")
    return subprocess.run(
        [str(program), "launch", *options, "--num_processes=2", str(PROGRAM), "--config", str(job), *extra],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(job.parent / "no settings of this user")},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def figures(folder: Path) -> list[float]:
    seen = [record.event for record in read_events(folder / "events.jsonl")]
    return [
        event.metrics["preference_loss"]  # type: ignore[misc]
        for event in seen
        if isinstance(event, Progress) and event.phase == "train"
    ]


def close(one: Path, other: Path) -> bool:
    mine, theirs = read_tensors(one)[0], read_tensors(other)[0]
    # AdamW turns the sign of a gradient near zero, which rounding decides, into a whole step.
    apart = torch.cat([(mine[key].float() - theirs[key].float()).abs().flatten() for key in mine])
    return mine.keys() == theirs.keys() and float((apart > 1e-4).float().mean()) < 0.02


@pytest.mark.slow
def test_accelerate_trains_what_one_process_with_the_double_batch_trains(base: Path, tmp_path: Path) -> None:
    pairs = tiny_pairs(tmp_path / "pairs")
    # Nothing in it may depend on how many steps a run is planned for.
    level = {"schedule": "constant", "warmup": 0.0, "dfm_warmup": 0.0}
    kept = {"log_every": 1, "save_dtype": "fp32", "reference_draws": 2, "samples": 1}
    changes: dict[str, Any] = kept | level
    alone = run_job(tiny_settings(base, pairs, tmp_path / "one" / "lora", batch_size=4, **changes)).folder
    folder = tmp_path / "two" / "lora"
    settings = tiny_settings(base, pairs, folder, batch_size=2, **changes)
    job = tmp_path / "job.toml"
    job.write_text(to_toml(settings), "utf-8")
    gpus = ("--config_file", str(PROGRAM.parent / "accelerate" / "gpus.yaml"))
    half = launch(*gpus, job=job, extra=("--max-train-steps", "3"))
    assert half.returncode == 0, half.stderr
    assert half.stdout.count("The LoRA is") == 1
    assert figures(folder) == pytest.approx(figures(alone)[:3], rel=1e-4)

    log = (folder / "events.jsonl").read_bytes()
    with RunLock(folder) as hold:
        hold.take()
        refused = launch(*gpus, job=job, extra=("--resume",))
    assert refused.returncode != 0 and f"is working in {folder}" in refused.stderr
    assert (folder / "events.jsonl").read_bytes() == log

    whole = launch(*gpus, job=job, extra=("--resume",))
    assert whole.returncode == 0, whole.stderr
    assert figures(folder) == pytest.approx(figures(alone), rel=1e-3)
    seen = [record.event for record in read_events(folder / "events.jsonl")]
    assert [event.device for event in seen if isinstance(event, Started)] == ["2 x cpu"] * 2
    assert [event.step for event in seen if isinstance(event, Sample)] == [0, 3, 6]
    assert close(folder / "lora.safetensors", alone / "lora.safetensors")

    # SingleProcess, each batch would be half of what it was.
    with pytest.raises(ScdpoError, match="processes: 2 -> not set"):
        run_job(settings, resume=True)
    missing = launch(*gpus, job=job, extra=("--output", str(tmp_path / "x"), "--pairs", "none"))
    assert missing.returncode != 0
    assert "none" in missing.stderr
    assert not (tmp_path / "x").exists()
    assert not any(isinstance(event, Failed) for event in seen)


@pytest.mark.slow
def test_fsdp_spreads_the_frozen_weights_and_trains_the_same(tmp_path: Path) -> None:
    base = tiny_folder("flux", tmp_path / "flux")
    pairs = tiny_pairs(tmp_path / "pairs")
    size = {"width": 32, "height": 32}
    # FLUX's own preset lies under the settings file, and what is not set there would come from it.
    kept = {"log_every": 1, "save_dtype": "fp32", "reference_draws": 1}
    changes: dict[str, Any] = kept | {"max_train_steps": 3, "beta": 2000.0}
    alone = run_job(tiny_settings(base, pairs, tmp_path / "one" / "lora", batch_size=4, **size, **changes))
    job, folder = tmp_path / "job.toml", tmp_path / "two" / "lora"
    job.write_text(to_toml(tiny_settings(base, pairs, folder, batch_size=2, **size, **changes)), "utf-8")
    done = launch("--config_file", str(PROGRAM.parent / "accelerate" / "fsdp.yaml"), job=job)
    assert done.returncode == 0, done.stderr
    assert figures(folder) == pytest.approx(figures(alone.folder), rel=1e-3)
    assert close(folder / "lora.safetensors", alone.folder / "lora.safetensors")


@pytest.mark.slow
def test_a_stopped_fsdp_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    base, pairs = tiny_folder("flux", tmp_path / "flux"), tiny_pairs(tmp_path / "pairs")
    changes: dict[str, Any] = {
        "width": 32,
        "height": 32,
        "max_train_steps": 4,
        "log_every": 1,
        # Nothing may depend on how many steps are planned. What remembers earlier ones must come back.
        "schedule": "constant",
        "warmup": 0.0,
        "dfm_warmup": 0.0,
        "dropout": 0.1,
        "ema": 0.5,
    }
    folders = {name: tmp_path / name / "lora" for name in ("whole", "parts")}
    for name, folder in folders.items():
        (tmp_path / f"{name}.toml").write_text(
            to_toml(tiny_settings(base, pairs, folder, **changes)), "utf-8"
        )

    def fsdp(name: str, *extra: str) -> None:
        config = str(PROGRAM.parent / "accelerate" / "fsdp.yaml")
        done = launch("--config_file", config, job=tmp_path / f"{name}.toml", extra=extra)
        assert done.returncode == 0, done.stderr

    fsdp("whole")
    fsdp("parts", "--max-train-steps", "2")
    halfway = read_tensors(folders["parts"] / "lora.safetensors")[0]
    fsdp("parts", "--resume")
    seen = [record.event for record in read_events(folders["parts"] / "events.jsonl")]
    assert [event.first_step for event in seen if isinstance(event, Started)] == [0, 2]
    assert figures(folders["parts"]) == figures(folders["whole"])
    # Two processes add their gradients in one order only, and the base's weights are gathered, not summed.
    whole, parts = (folder / "lora.safetensors" for folder in folders.values())
    assert parts.read_bytes() == whole.read_bytes()
    finished = read_tensors(whole)[0]
    assert any(not torch.equal(finished[key], halfway[key]) for key in finished)
