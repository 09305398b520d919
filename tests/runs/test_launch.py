"""Trainers as processes: started, found again, stopped, killed, resumed, and their last words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scdpo_core.run_store import folder as names
from scdpo_core.run_store.events import EventLog, Failed, Started, Warned
from scdpo_core.run_store.file_lock import is_locked
from scdpo_core.run_store.process import ProcessId, alive, end, look
from scdpo_core.run_store.run_lock import RunLock
from scdpo_core.run_store.state import last_words, process_of, state_of
from scdpo_core.runs.follow import Follower
from scdpo_core.runs.interpreter import Interpreter
from scdpo_core.runs.launch import attach, start
from scdpo_core.types import ScdpoError
from tests.support.runs_helpers import FAKE, PYTHON, ROOT, begin, make_run, trained, until

LONG = {"steps": 10_000, "pause": 0.02}
HOST = """
import sys, time
from pathlib import Path
from scdpo_core.runs.launch import start
from scdpo_core.runs.interpreter import Interpreter
start(Path(sys.argv[1]), Interpreter(Path(sys.executable)), trainer=Path(sys.argv[2]))
print("started", flush=True)
time.sleep(60)
"""


def test_from_waiting_to_finished(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    assert state_of(folder) == "queued"
    child = begin(folder, PYTHON)
    assert child.wait(every=0.02) == "finished"
    assert child.last_words == "" and child.process is None
    assert "the fake trainer wakes up" in (folder / "child.log").read_text("utf-8")
    assert Follower(folder).view().result == folder / "my run.safetensors"


def test_a_run_in_work_cannot_be_started_again(tmp_path: Path) -> None:
    child = begin(make_run(tmp_path, **LONG), PYTHON)  # type: ignore[arg-type]
    with pytest.raises(ScdpoError, match="'my run' is already running"):
        begin(child.folder, PYTHON)
    child.kill()
    assert child.state == "interrupted"


def test_stop_saves_and_resume_goes_on(tmp_path: Path) -> None:
    child = begin(make_run(tmp_path, steps=40, pause=0.05), PYTHON)
    until(lambda: trained(child.folder) >= 2)
    assert child.state == "running"
    child.stop()
    assert child.state in ("stopping", "stopped")
    assert child.wait(every=0.02) == "stopped"
    step = trained(child.folder)
    assert 2 <= step < 40
    # What asked the earlier process to leave must not end this one.
    (child.folder / "stop").touch()
    assert begin(child.folder, PYTHON, resume=True).wait(every=0.02) == "finished"
    started = [
        json.loads(line)["first_step"]
        for line in (child.folder / "events.jsonl").read_text("utf-8").splitlines()
        if '"started"' in line
    ]
    assert started == [0, step]


def test_waiting_hosts_stop_it_when_they_are_interrupted(tmp_path: Path) -> None:
    child, looks = begin(make_run(tmp_path, **LONG), PYTHON), []  # type: ignore[arg-type]
    state = child.wait(lambda: trained(child.folder) >= 1, tick=lambda: looks.append(1), every=0.02)
    assert state == "stopped" and len(looks) > 1


def test_ctrl_c_of_the_host_does_not_reach_it(tmp_path: Path) -> None:
    child = begin(make_run(tmp_path, **LONG), PYTHON)  # type: ignore[arg-type]
    process = child.process
    assert process is not None
    if os.name != "nt":
        assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
        assert os.getsid(process.pid) == process.pid
    child.kill()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_it_outlives_a_killed_host_and_is_found_again(tmp_path: Path) -> None:
    folder = make_run(tmp_path, **LONG)  # type: ignore[arg-type]
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(folder), str(FAKE)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert host.stdout is not None and host.stdout.readline() == "started\n"
    os.killpg(host.pid, signal.SIGKILL)
    host.wait()
    host.stdout.close()
    seen = trained(folder)
    child = attach(folder)
    until(lambda: trained(folder) > seen)
    assert child.state == "running"
    child.stop()
    assert child.wait(every=0.02) == "stopped"


@pytest.mark.parametrize(
    ("end", "state", "words"),
    [
        ("fail", "failed", "The disk is full."),
        ("raise", "failed", "ValueError: seven is no number"),
        ("lacks", "failed", r"lacks a package.*No module named 'peft'.*install.py --trainer"),
        ("vanish", "interrupted", r"(?s)without an error message.*Resume it.*the fake trainer wakes up"),
    ],
)
def test_last_words(tmp_path: Path, end: str, state: str, words: str) -> None:
    child = begin(make_run(tmp_path, end=end), PYTHON)
    assert child.wait(every=0.02) == state
    import re

    assert re.search(words, child.last_words)


def test_last_words_may_be_long(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    message = "3000 problems:\n" + "\n".join(
        f"    chosen/weapon/image {number}.png" for number in range(9000)
    )
    for event in (Warned("before it"), Failed(message)):
        EventLog(folder / "events.jsonl")(event)
    assert (folder / "events.jsonl").stat().st_size > 4 * 65536
    assert (state_of(folder), last_words(folder)) == ("failed", message)


def test_words_of_an_earlier_process_are_not_those_of_this_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path, end="fail")
    assert begin(folder, PYTHON).wait(every=0.02) == "failed"
    job = folder / "job.toml"
    job.write_text(job.read_text("utf-8").replace("fail", "vanish"), "utf-8")
    child = begin(folder, PYTHON)
    assert child.wait(every=0.02) == "interrupted" and "disk is full" not in child.last_words


def test_a_used_pid_is_not_taken_for_ours(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    us = look(os.getpid())
    assert us is not None and alive(us[0]) and time.time() - 3600 * 24 < us[1] <= time.time()
    names.write_launch(folder, names.Launch(ProcessId(os.getpid(), "another"), 0, 0))
    assert process_of(folder) is None and state_of(folder) == "interrupted"
    names.write_launch(folder, names.Launch(us[0], 0, 0))
    assert process_of(folder) == us[0] and state_of(folder) == "running"


def test_a_run_of_the_command_line_is_known_by_its_log(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    EventLog(folder / "events.jsonl")(Started("my run", os.getpid(), 0, 5, 3, "cpu", ""))
    assert state_of(folder) == "running"
    # The same pid, but the log is older than the process that has it now.
    log = folder / "events.jsonl"
    line = json.loads(log.read_text("utf-8"))
    log.write_text(json.dumps({**line, "time": 1000.0}) + "\n", "utf-8")
    assert state_of(folder) == "interrupted"
    EventLog(log)(Failed("No pairs."))
    assert state_of(folder) == "failed" and attach(folder).last_words == "No pairs."


@pytest.mark.parametrize("pid", [1, os.getpid()], ids=["init", "ours"])
def test_a_dead_run_is_not_running_because_its_pid_is_used(tmp_path: Path, pid: int) -> None:
    folder = make_run(tmp_path)
    with RunLock(folder) as hold:
        hold.take()
        # As the process writes it: it is older than the line, as is whoever has its number later.
        EventLog(folder / "events.jsonl")(Started("my run", pid, 0, 5, 3, "cpu", ""))
        assert state_of(folder) == "running"
    assert process_of(folder) is None and state_of(folder) == "interrupted"


def test_looking_at_a_run_keeps_nobody_out(tmp_path: Path) -> None:
    folder, done = make_run(tmp_path), threading.Event()
    (folder / "run.lock").touch()

    def look_on() -> None:
        while not done.is_set():
            is_locked(folder / "run.lock")

    lookers = [threading.Thread(target=look_on) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(20):
            with RunLock(folder) as hold:
                hold.take()
                assert is_locked(folder / "run.lock") is True
    finally:
        done.set()
        for looker in lookers:
            looker.join()
    assert is_locked(folder / "run.lock") is False and is_locked(folder / "none") is None


def test_ending_a_process_that_is_gone_ends_no_other() -> None:
    us = look(os.getpid())
    assert us is not None
    end(ProcessId(us[0].pid, "another"))
    assert look(2**22 + 1) is None and look(0) is None and look(-1) is None


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ScdpoError, match="There is no training run in"):
        attach(tmp_path)
    with pytest.raises(ScdpoError, match=r"job\.toml is missing"):
        start(tmp_path, PYTHON)
    folder = make_run(tmp_path)
    with pytest.raises(ScdpoError, match=r"cannot be started \(No such file.*install\.py --trainer"):
        begin(folder, Interpreter(tmp_path / "no python"))
    assert state_of(folder) == "queued"


@pytest.mark.skipif(sys.platform == "win32", reason="its locks cannot be shared")
def test_who_looks_for_long_on_a_busy_machine_keeps_nobody_out(tmp_path: Path) -> None:
    import fcntl

    folder = make_run(tmp_path)
    (folder / "run.lock").touch()
    looker = os.open(folder / "run.lock", os.O_RDONLY)
    fcntl.flock(looker, fcntl.LOCK_SH)
    threading.Timer(0.5, lambda: os.close(looker)).start()
    with RunLock(folder) as hold:
        hold.take()
        with pytest.raises(ScdpoError, match="is working in"), RunLock(folder) as second:
            second.take()
