"""A run folder where a process is working: nobody else comes in, and nothing there is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scdpo_core.run_store import folder as names
from scdpo_core.run_store.events import Progress, Started, read_events
from scdpo_core.run_store.folder import RunFolder
from scdpo_core.run_store.process import look
from scdpo_core.run_store.run_lock import RunLock
from scdpo_core.run_store.state import outcome, process_of, state_of
from scdpo_core.run_store.stop_request import StopRequest
from scdpo_core.runs.log import Reporter
from scdpo_core.training.job import run_job
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_pairs, tiny_sd_folder, tiny_settings
from tests.trainer.test_train_lora import flags, run, start, wait_for_step

ROOT = Path(__file__).resolve().parents[2]
# Holds a run folder as a run does that still looks at its images: it has written nothing down.
HOLDER = """
import sys, time
from pathlib import Path
from scdpo_core.run_store.run_lock import RunLock
with RunLock(Path(sys.argv[1])) as hold:
    hold.take()
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "my pairs")


@pytest.fixture(name="training")
def _training(base: Path, pairs: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run of the command line in tmp_path/lora that goes on for as long as the test."""
    settings = tiny_settings(
        base, pairs, tmp_path / "lora", max_train_steps=100_000, log_every=1, checkpoint_every=1000
    )
    process = start(*flags(settings, tmp_path), cwd=tmp_path)
    try:
        wait_for_step(tmp_path / "lora", 2, process)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(name="hold")
def _hold() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def starts(folder: Path) -> list[int]:
    events = (record.event for record in read_events(folder / "events.jsonl"))
    return [event.pid for event in events if isinstance(event, Started)]


def test_a_second_process_is_refused_and_the_first_one_is_not_disturbed(
    training: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = tmp_path / "lora"
    wrong = ["--resume", "--pairs", tmp_path / "no such folder"]
    for options in (wrong, ["--resume"], []):
        code, _, err = run("--config", folder / "job.toml", *options, cwd=tmp_path)
        assert code == 2
        assert f"Another process (process {training.pid}) is working in {folder}" in err
        assert "give another --output" in err and "no such folder" not in err
    assert state_of(folder) == "running" and outcome(folder) is None
    assert starts(folder) == [training.pid]
    seen = [record.event for record in read_events(folder / "events.jsonl")]
    steps = [event.step for event in seen if isinstance(event, Progress) and event.phase == "train"]
    assert steps == sorted(set(steps))


def test_a_stop_that_asked_the_first_process_is_heard_by_it_alone(
    training: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = tmp_path / "lora"
    # It must not hear it before the second one has come.
    training.send_signal(signal.SIGSTOP)
    (folder / "stop").touch()
    before = kept(folder)
    with pytest.raises(ScdpoError, match=f"process {training.pid}"):
        run_job(tiny_settings("none", tmp_path, folder), resume=True, should_stop=lambda: True)
    assert kept(folder) == before and "stop" in before
    training.send_signal(signal.SIGCONT)
    assert training.wait(timeout=600) == 0
    assert state_of(folder) == "stopped" and not (folder / "stop").exists()


def test_a_killed_run_is_resumed_at_once(
    training: subprocess.Popen[str], base: Path, pairs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "lora"
    training.kill()
    training.wait()
    settings = tiny_settings(base, pairs, folder, max_train_steps=4)
    assert run_job(settings, resume=True).outcome.step == 4
    assert starts(folder) == [training.pid, os.getpid()]
    # Our process lives on, but its run has ended, and another may go on with it.
    assert process_of(folder) is None
    more = flags(tiny_settings(base, pairs, folder, max_train_steps=6), tmp_path)
    code, _, err = run(*more, "--resume", cwd=tmp_path)
    assert code == 0, err
    assert len(starts(folder)) == 3


def test_one_that_has_written_nothing_down_yet_keeps_others_out_until_it_dies(
    hold: Callable[[Path], subprocess.Popen[str]], base: Path, pairs: Path, tmp_path: Path
) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    process = hold(run_folder)
    settings = tiny_settings(base, pairs, run_folder, max_train_steps=2)
    with pytest.raises(ScdpoError, match="Another process is working"):
        run_job(settings)
    assert kept(run_folder) == {"run.lock": b""}
    process.kill()
    process.wait()
    assert run_job(settings).outcome.step == 2


def test_one_that_comes_while_another_looks_at_its_images_keeps_it_out(
    hold: Callable[[Path], subprocess.Popen[str]], base: Path, pairs: Path, tmp_path: Path
) -> None:
    run_folder = tmp_path / "run"

    def come(event: object) -> None:
        if isinstance(event, Progress) and event.phase == "check" and not run_folder.exists():
            run_folder.mkdir()
            hold(run_folder)

    with pytest.raises(ScdpoError, match="Another process is working"):
        run_job(tiny_settings(base, pairs, run_folder), listen=come)
    assert kept(run_folder) == {"run.lock": b""}


def test_a_process_that_a_door_started_is_known_from_its_birth(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    settings = tiny_settings(base, pairs, run_folder, max_train_steps=2)
    try:
        found, us = look(sleeper.pid), look(os.getpid())
        assert found is not None and us is not None
        names.write_launch(run_folder, names.Launch(found[0], 0, 0))
        with pytest.raises(ScdpoError, match=rf"process {sleeper.pid}\b"):
            run_job(settings)
        assert set(kept(run_folder)) == {"child.json"}
    finally:
        sleeper.kill()
        sleeper.wait()
    # The door's own process, also where an environment's python.exe comes between.
    names.write_launch(run_folder, names.Launch(us[0], 0, 0))
    code, _, err = run(*flags(settings, tmp_path), cwd=tmp_path)
    assert code == 0, err


def test_a_cost_model_and_a_comparison_keep_others_out_too(
    hold: Callable[[Path], subprocess.Popen[str]], tmp_path: Path
) -> None:
    hold(tmp_path)
    (tmp_path / "stop").touch()
    before = kept(tmp_path)
    reporter = Reporter(tmp_path, "cost")
    with pytest.raises(ScdpoError, match="give another run folder"), reporter.last_words():
        reporter.progress("check", 0, 1)
    assert kept(tmp_path) == before
    # Another folder is free.
    with RunLock(tmp_path.parent) as other:
        other.take()


def test_whoever_leaves_removes_only_the_file_that_asked_it(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    stop = StopRequest(RunFolder(tmp_path), True, lambda: False)
    stop.acknowledge()
    assert (tmp_path / "stop").exists() and not stop.asked()
    (tmp_path / "stop").unlink()
    # Some file systems count time in large steps.
    time.sleep(0.02)
    (tmp_path / "stop").touch()
    assert stop.asked()
    stop.acknowledge()
    assert not (tmp_path / "stop").exists()
