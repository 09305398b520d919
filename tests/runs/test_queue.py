"""One training at a time, over threads and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scdpo_core.run_store.file_lock import exclusive
from scdpo_core.run_store.state import state_of
from scdpo_core.runs.interpreter import Interpreter
from scdpo_core.runs.launch import Child
from scdpo_core.runs.queue import BusyError, Queue
from scdpo_core.types import ScdpoError
from tests.support.runs_helpers import FAKE, PYTHON, ROOT, begin, make_run, until

LONG = {"steps": 10_000, "pause": 0.02}
DOOR = """
import sys
from functools import partial
from pathlib import Path
from scdpo_core.runs.launch import start
from scdpo_core.runs.interpreter import Interpreter
from scdpo_core.runs.queue import BusyError, Queue
root, fake = Path(sys.argv[1]), Path(sys.argv[2])
queue = Queue(root, partial(start, trainer=fake))
print("ready", flush=True)
sys.stdin.readline()
try:
    queue.start(root / sys.argv[3], Interpreter(Path(sys.executable)))
    print("started")
except BusyError as error:
    print("busy with", error.active.name)
"""


@pytest.fixture(name="queue")
def _queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path, begin)


def waiting(queue: Queue) -> list[str]:
    return [entry.folder.name for entry in queue.view().waiting]


def test_one_after_the_other(tmp_path: Path, queue: Queue) -> None:
    runs = [make_run(tmp_path, name) for name in ("a", "b", "c")]
    assert [queue.add(run) for run in runs] == [0, 1, 2]
    assert [state_of(run) for run in runs] == ["queued"] * 3
    ended = []
    for _ in runs:
        child = queue.pump(PYTHON)
        assert child is not None
        assert child.wait(every=0.02) == "finished"
        ended.append(child.name)
    assert ended == ["a", "b", "c"] and queue.pump(PYTHON) is None
    assert queue.view().active is None and waiting(queue) == []


def test_while_one_works_none_is_begun(tmp_path: Path, queue: Queue) -> None:
    first, second = make_run(tmp_path, "a", **LONG), make_run(tmp_path, "b")  # type: ignore[arg-type]
    child = queue.start(first, PYTHON)
    queue.add(second)
    assert queue.pump(PYTHON) is None and queue.view().active == first
    with pytest.raises(BusyError, match="'a' is running") as caught:
        queue.start(second, PYTHON)
    assert caught.value.active == first
    # A double click is answered with the run as it is.
    again = queue.start(first, PYTHON)
    assert again.process == child.process
    with pytest.raises(BusyError):
        queue.add(first)
    child.kill()
    # Of a process that is gone nothing remains locked.
    begun = queue.pump(PYTHON)
    assert begun is not None and begun.name == "b" and begun.wait(every=0.02) == "finished"


def test_a_deleted_folder_does_not_free_the_gpu(tmp_path: Path, queue: Queue) -> None:
    child = queue.start(make_run(tmp_path, "a", **LONG), PYTHON)  # type: ignore[arg-type]
    process = child.process
    until(lambda: (child.folder / "trained").exists())
    hidden = child.folder.rename(tmp_path / "elsewhere")
    assert queue.view().active == tmp_path / "a"
    Child(hidden).kill()
    assert process is not None and queue.view().active is None


def test_order_and_removal(tmp_path: Path, queue: Queue) -> None:
    a, b, c = (make_run(tmp_path, name) for name in "abc")
    for run in (a, b, c):
        queue.add(run)
    assert queue.add(b, resume=True) == 1, "it keeps its place"
    assert [entry.resume for entry in queue.view().waiting] == [False, True, False]
    assert queue.move(c, 0) and waiting(queue) == ["c", "a", "b"]
    assert queue.move(c, 99) and waiting(queue) == ["a", "b", "c"]
    assert queue.remove(b) and waiting(queue) == ["a", "c"]
    assert not queue.remove(b) and not queue.move(b, 0)
    assert not (b / "queued").exists()
    # Another door, or this one after a restart, sees the same.
    assert Queue(tmp_path).view() == queue.view()
    # Started by hand, it is out of the queue.
    assert queue.start(c, PYTHON).wait(every=0.02) == "finished"
    assert waiting(queue) == ["a"]


def test_a_resumed_run_waits_too(tmp_path: Path, queue: Queue) -> None:
    child = queue.start(make_run(tmp_path, "a", steps=40, pause=0.05), PYTHON)
    until(lambda: (child.folder / "trained").exists())
    child.stop()
    assert child.wait(every=0.02) == "stopped"
    queue.add(child.folder, resume=True)
    assert child.state == "queued"
    queue.remove(child.folder)
    assert child.state == "stopped"
    queue.add(child.folder, resume=True)
    resumed = queue.pump(PYTHON)
    assert resumed is not None and resumed.wait(every=0.02) == "finished"


def test_what_cannot_be_started_says_why_and_holds_nobody_up(tmp_path: Path) -> None:
    def broken(folder: Path, interpreter: Interpreter, *, resume: bool) -> Child:
        if folder.name == "a":
            raise ScdpoError("No Python.")
        return begin(folder, interpreter, resume=resume)

    queue = Queue(tmp_path, broken)
    a, b, gone = (make_run(tmp_path, name) for name in ("a", "b", "gone"))
    for run in (gone, a, b):
        queue.add(run)
    (gone / "job.toml").unlink()
    child = queue.pump(PYTHON)
    assert child is not None and child.name == "b" and child.wait(every=0.02) == "finished"
    assert state_of(a) == "failed" and Child(a).last_words == "No Python."


def test_many_clicks_start_one_run(tmp_path: Path, queue: Queue) -> None:
    runs = [make_run(tmp_path, str(number), **LONG) for number in range(6)]  # type: ignore[arg-type]
    started, busy = [], []

    def click(run: Path) -> None:
        try:
            started.append(queue.start(run, PYTHON))
        except BusyError as error:
            busy.append(error.active)

    threads = [threading.Thread(target=click, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 1 and busy == [started[0].folder] * 5
    started[0].kill()


def test_two_hosts_start_one_run(tmp_path: Path) -> None:
    doors = []
    for name in ("a", "b"):
        make_run(tmp_path, name, **LONG)  # type: ignore[arg-type]
        command = [sys.executable, "-c", DOOR, str(tmp_path), str(FAKE), name]
        doors.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    for door in doors:
        assert door.stdout is not None and door.stdout.readline() == "ready\n"
    for door in doors:
        assert door.stdin is not None
        door.stdin.write("go\n")
        door.stdin.flush()
    said = sorted(door.communicate(timeout=60)[0].strip() for door in doors)
    active = Queue(tmp_path).view().active
    assert active is not None and said == [f"busy with {active.name}", "started"]
    Child(active).kill()


def test_a_lock_of_a_dead_holder_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom scdpo_core.run_store.file_lock import exclusive\n"
        "with exclusive(Path(sys.argv[1])):\n    os._exit(1)"
    )
    path = tmp_path / "queue.lock"
    subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    began = time.monotonic()
    with exclusive(path):
        assert time.monotonic() - began < 1


def test_a_damaged_file_is_named(tmp_path: Path, queue: Queue) -> None:
    (tmp_path / "queue.json").write_text("{")
    with pytest.raises(ScdpoError, match=r"queue\.json is damaged"):
        queue.view()
    (tmp_path / "queue.json").write_text(json.dumps({"waiting": [{"run": 3}]}))
    with pytest.raises(ScdpoError, match=r"queue\.json is damaged"):
        queue.view()
    with pytest.raises(ScdpoError, match=r"job\.toml is missing"):
        queue.add(tmp_path / "nothing")
