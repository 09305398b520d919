"""Nothing leaves the machine: neither our own code nor a package's look up a name or reach an address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from scdpo_core import telemetry
from tests.support.outside import Outside, can_watch

ROOT = Path(__file__).resolve().parents[1]
TRAINER = ROOT / "trainer"
# Packages send late: a process that has done its work waits for them.
LINGER = """
import runpy, sys, time
seconds, sys.argv = float(sys.argv[1]), sys.argv[2:]
sys.path[0] = str(__import__("pathlib").Path(sys.argv[0]).parent)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    time.sleep(seconds)
"""

watched = pytest.mark.skipif(not can_watch(), reason="needs Linux and a C compiler")


def run(outside: Outside, *command: object, seconds: float = 8) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", LINGER, str(seconds), *map(str, command)]
    return subprocess.run(
        words, cwd=ROOT, env=outside.environment, capture_output=True, text=True, timeout=600
    )


def images(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 10, 10)).save(folder / f"{number}.png")
    return folder


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    telemetry.decline()
    assert (os.environ["DO_NOT_TRACK"], os.environ["GRADIO_ANALYTICS_ENABLED"]) == ("0", "False")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


@watched
def test_scoring_leaves_nothing_in_the_users_home(tmp_path: Path) -> None:
    outside = Outside(tmp_path)
    done = run(outside, TRAINER / "score.py", images(tmp_path / "images"), seconds=0)
    assert done.returncode == 0, done.stderr
    assert (outside.files, outside.attempts) == ([], [])


@watched
def test_an_attempt_of_compiled_code_would_be_seen(tmp_path: Path) -> None:
    outside = Outside(tmp_path)
    code = "import ctypes; ctypes.CDLL(None).gethostbyname(b'example.invalid')"
    subprocess.run([sys.executable, "-c", code], env=outside.environment, check=False)
    assert outside.attempts == ["name example.invalid"]
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    subprocess.run([sys.executable, "-c", code], env=outside.environment, capture_output=True, check=False)
    assert outside.attempts[1:] == ["address 192.0.2.1"]


@pytest.mark.slow
@watched
@pytest.mark.parametrize(
    "command",
    [
        "score.py {images} --html {out}/g.html --csv {out}/s.csv",
        "score.py {images} --scorer micro --heatmaps {out}/heat --over -99",
        "train_lora.py --base micro --max-train-steps 2 --pairs {pairs} --output {out}/lora",
        "train_cost.py --encoder embedded --pairs {pairs} --views 1 --output {out}/c.safetensors",
    ],
    ids=["score", "micro", "train_lora", "train_cost"],
)
def test_the_commands_reach_nothing_outside(command: str, tmp_path: Path) -> None:
    outside = Outside(tmp_path)
    values = {
        "images": images(tmp_path / "images"),
        "pairs": ROOT / "examples" / "preferences",
        "out": tmp_path / "out",
    }
    (tmp_path / "out").mkdir()
    script, *words = command.split()
    done = run(outside, TRAINER / script, *(word.format(**values) for word in words))
    assert done.returncode == 0, done.stderr
    assert outside.attempts == []
    assert not [name for name in outside.files if "Microsoft" in name]


@pytest.mark.slow
@watched
def test_the_page_reaches_nothing_outside(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    outside = Outside(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "a1111_extension", "--port", str(port), "--data", str(tmp_path / "data")]
    page = subprocess.Popen(
        command, cwd=ROOT, env=outside.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                    assert answer.status == 200
                break
            except urllib.error.HTTPError as error:
                assert error.code in (401, 403)
                break
            except OSError:
                assert page.poll() is None
                time.sleep(0.5)
        time.sleep(8)
    finally:
        page.send_signal(signal.SIGTERM)
        page.communicate(timeout=60)
    assert outside.attempts == []
