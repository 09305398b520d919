"""Runs of the fake trainer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scdpo_core.runs.follow import Follower
from scdpo_core.runs.interpreter import Interpreter
from scdpo_core.runs.launch import start

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests" / "support" / "fake_trainer.py"
PYTHON = Interpreter(Path(sys.executable))
begin = partial(start, trainer=FAKE)


def make_run(
    root: Path, name: str = "my run", *, steps: int = 2, pause: float = 0.01, end: str = "finish"
) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "job.toml").write_text(f'steps = {steps}\npause = {pause}\nend = "{end}"\n', "utf-8")
    return folder


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def trained(folder: Path) -> int:
    return Follower(folder).view().trained
