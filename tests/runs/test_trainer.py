"""The real trainers on the embedded model, as doors start them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scdpo_core.io.files import sha256_of
from scdpo_core.runs.follow import Follower
from scdpo_core.runs.jobs import CostJob, LoraJob, write
from scdpo_core.runs.launch import Child, attach
from scdpo_core.runs.queue import Queue
from tests.support.runs_helpers import PYTHON, ROOT, until

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
SETTINGS = """
[optim]
max_train_steps = 8
batch_size = 4
[output]
log_every = 1
checkpoint_every = 4
[sampling]
samples = 1
sample_steps = 2
"""
HOST = """
import sys, time
from pathlib import Path
from scdpo_core.runs.interpreter import Interpreter
from scdpo_core.runs.queue import Queue
Queue(Path(sys.argv[1]).parent).start(Path(sys.argv[1]), Interpreter(Path(sys.executable)))
print("started", flush=True)
time.sleep(600)
"""


def job(root: Path, name: str) -> Path:
    return write(LoraJob(EXAMPLES / "preferences", "micro", root, name, overrides=SETTINGS))


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_lora_survives_its_host_is_stopped_and_resumed(tmp_path: Path) -> None:
    folder = job(tmp_path, "mine")
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(folder)],
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

    child, follower = attach(folder), Follower(folder)
    until(lambda: follower.view().trained >= 2 or child.state == "failed", 500)
    assert child.state == "running", child.last_words
    child.stop()
    assert child.wait() == "stopped"
    view = follower.view()
    assert 2 <= view.trained < 8 and view.result is not None and view.result.is_file()

    queue = Queue(tmp_path)
    queue.add(folder, resume=True)
    resumed = queue.pump(PYTHON)
    assert resumed is not None and resumed.wait() == "finished", resumed and resumed.last_words
    view = follower.view()
    assert (view.trained, view.steps, view.share) == (8, 8, 1.0)
    steps = [step for step, _ in view.curves["loss"]]
    assert steps == sorted(set(steps)) and steps[-1] == 8
    assert view.samples and all(Path(sample.path).is_file() for sample in view.samples)

    # On a CPU the same bytes as without the interruption.
    straight = queue.start(job(tmp_path / "straight", "mine"), PYTHON)
    assert straight.wait() == "finished"
    assert view.result is not None
    assert sha256_of(view.result) == sha256_of(straight.folder / "mine.safetensors")


def test_a_stop_before_the_trainer_is_awake_is_heard_when_resuming(tmp_path: Path) -> None:
    folder = job(tmp_path, "mine")
    child = Queue(tmp_path).start(folder, PYTHON)
    until(lambda: Follower(folder).view().trained >= 4 or child.process is None, 500)
    child.kill()
    assert child.state == "interrupted"
    resumed = Queue(tmp_path).start(folder, PYTHON, resume=True)
    resumed.stop()
    assert resumed.wait() == "stopped"


def test_a_job_that_cannot_work_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no model")
    base = str(tmp_path / "broken.safetensors")
    folder = write(LoraJob(EXAMPLES / "preferences", base, tmp_path, "mine"))
    child = Queue(tmp_path).start(folder, PYTHON)
    assert child.wait() == "failed"
    assert "broken.safetensors" in child.last_words and "Traceback" not in child.last_words


def test_a_cost_model(tmp_path: Path) -> None:
    images = EXAMPLES / "cost_pictures"
    folder = write(CostJob(tmp_path, "mine", unsafe=images / "unsafe", safe=images / "safe", quality="fast"))
    child: Child = Queue(tmp_path).start(folder, PYTHON)
    assert child.wait() == "finished", child.last_words
    view = Follower(folder).view()
    assert view.result == folder / "mine.safetensors" and view.result.is_file()
    assert view.files["report"].is_file()
