"""Asking for the same run once more."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from scdpo_core.run_store.events import Done, EventLog, Failed
from scdpo_core.run_store.folder import RunFolder, has_results
from scdpo_core.runs.jobs import CostJob, LoraJob, problems, request
from scdpo_core.runs.queue import Queue
from scdpo_core.runs.rerun import prepare
from scdpo_core.types import ScdpoError
from tests.support.runs_helpers import ROOT

PAIRS = ROOT / "examples" / "preferences"


@pytest.fixture
def job(tmp_path: Path) -> LoraJob:
    return LoraJob(PAIRS, "micro", tmp_path / "runs", "my lora", choices={"optim": {"max_train_steps": 9}})


def finish(job: LoraJob | CostJob) -> Path:
    result = job.folder / f"{job.name}.safetensors"
    result.write_bytes(b"weights")
    EventLog(job.folder / "events.jsonl")(Done("finished", 9, result.name, 1.0))
    return result


def test_a_new_run_begins_and_so_does_one_that_came_to_nothing(job: LoraJob) -> None:
    assert prepare(request(job, "1")) == "begin"
    assert "max_train_steps = 9" in (job.folder / "job.toml").read_text("utf-8")
    assert prepare(request(job, "1")) == "begin"
    EventLog(job.folder / "events.jsonl")(Failed("No memory."))
    changed = dataclasses.replace(job, choices={"optim": {"max_train_steps": 8}})
    assert prepare(request(changed, "2")) == "begin"
    assert "max_train_steps = 8" in (job.folder / "job.toml").read_text("utf-8")


def test_a_stopped_run_goes_on_and_a_finished_one_is_done(job: LoraJob) -> None:
    prepare(request(job, "1"))
    # The trainer adds all other settings to it.
    (job.folder / "job.toml").write_text("[optim]\nlr = 1.0\n", "utf-8")
    (job.folder / "checkpoints").mkdir(parents=True)
    (job.folder / "checkpoints" / "step-000004.state.safetensors").write_bytes(b"state")
    EventLog(job.folder / "events.jsonl")(Done("stopped", 4, "", 1.0))
    assert prepare(request(job, "1")) == "go on"
    result = finish(job)
    assert prepare(request(job, "1")) == "done"
    result.unlink()
    with pytest.raises(ScdpoError, match="already"):
        # Its checkpoints are there, so that nothing may be begun over them.
        prepare(request(job, "1"))


@pytest.mark.parametrize("ended", ["stopped", "finished"])
def test_a_name_belongs_to_the_run_that_has_results(job: LoraJob, ended: str) -> None:
    prepare(request(job, "1"))
    (job.folder / "checkpoints").mkdir(parents=True)
    (job.folder / "checkpoints" / "step-000004.state.safetensors").write_bytes(b"state")
    EventLog(job.folder / "events.jsonl")(Done("stopped", 4, "", 1.0))
    if ended == "finished":
        finish(job)
    before = (job.folder / "job.toml").read_text("utf-8")
    changes = [
        (job, "2"),
        (dataclasses.replace(job, quality="best"), "1"),
        (dataclasses.replace(job, overrides="[optim]\nlr = 1.0\n"), "1"),
    ]
    for other, stamp in changes:
        with pytest.raises(ScdpoError, match="Choose another output name"):
            prepare(request(other, stamp))
    assert (job.folder / "job.toml").read_text("utf-8") == before


def test_a_run_that_waits_is_begun_by_whoever_asks(job: LoraJob) -> None:
    prepare(request(job, "1"))
    Queue(job.output).add(job.folder)
    assert prepare(request(job, "1")) == "begin"
    assert prepare(request(dataclasses.replace(job, quality="best"), "1")) == "begin"


def test_what_is_wrong_with_a_job_is_said(job: LoraJob) -> None:
    twice = dataclasses.replace(job, overrides="[optim]\nmax_train_steps = 3\n")
    with pytest.raises(ScdpoError, match=r"'optim\.max_train_steps' is chosen above"):
        prepare(request(twice, "1"))
    with pytest.raises(ScdpoError, match="not valid TOML"):
        prepare(request(dataclasses.replace(job, overrides="="), "1"))
    with pytest.raises(ScdpoError, match="choices"):
        prepare(request(dataclasses.replace(job, choices={"optim": {"max_steps": 3}}), "1"))
    assert not job.folder.exists()


def test_a_cost_model_is_begun_again_and_then_done(tmp_path: Path) -> None:
    cost = CostJob(tmp_path / "runs", "cost", pairs=PAIRS)
    assert prepare(request(cost, "1")) == "begin"
    EventLog(cost.folder / "events.jsonl")(Done("stopped", 0, "", 1.0))
    assert prepare(request(cost, "1")) == "begin"
    finish(cost)
    assert prepare(request(cost, "1")) == "done"


def test_what_a_kill_left_half_written_is_no_result_for_anybody(tmp_path: Path) -> None:
    """A kill while a checkpoint is written leaves a temporary file, which nothing can go on from."""
    job = LoraJob(PAIRS, "micro", tmp_path, "calm")
    run = job.folder
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / ".step-000010.state-abcdefgh.safetensors").write_bytes(b"half")
    (run / "checkpoints" / "lora.json").write_text("{}", "utf-8")
    refusals = [sentence for sentence in problems(job) if "trained run" in sentence]
    assert (has_results(run), RunFolder(run).has_results(), refusals) == (False, False, [])
    (run / "checkpoints" / "step-000010.state.safetensors").write_bytes(b"whole")
    refusals = [sentence for sentence in problems(job) if "trained run" in sentence]
    assert (has_results(run), RunFolder(run).has_results(), len(refusals)) == (True, True, 1)
