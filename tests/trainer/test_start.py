"""Ctrl-C at the programs of `trainer/` before they have begun: a sentence and code 130, never a traceback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

TRAINER = Path(__file__).resolve().parents[2] / "trainer"
PROGRAMS = sorted(path.name for path in TRAINER.glob("*.py") if "def main(" in path.read_text("utf-8"))

# Python imports this of itself before it runs a program: Ctrl-C in the middle of importing a module. What a
# shell started in its background ignores Ctrl-C, so that this ends first.
INTERRUPTER = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            signal.raise_signal(signal.SIGINT)
        return None

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupter())
"""


def interrupted(folder: Path, program: str, module: str, *arguments: object) -> tuple[int, str, str]:
    """Run a program that gets Ctrl-C where it imports a module."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(INTERRUPTER, "utf-8")
    done = subprocess.run(
        [sys.executable, str(TRAINER / program), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "site"), "INTERRUPT_AT": module},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name != "demo.py"])
@pytest.mark.parametrize("module", ["torch", "scdpo_core.types"])
def test_ctrl_c_while_python_imports_is_a_sentence(tmp_path: Path, program: str, module: str) -> None:
    code, out, err = interrupted(tmp_path, program, module, "--help")
    assert (code, out, err) == (130, "", "Stopped; nothing was begun.\n")


@pytest.mark.parametrize("module", ["scdpo_core.training.job", "scdpo_core.cost.scorers"])
def test_ctrl_c_while_the_training_is_imported_is_one_too(tmp_path: Path, module: str) -> None:
    code, out, err = interrupted(tmp_path, "train_lora.py", module, "--output", "run")
    assert (code, out, err) == (130, "", "Stopped; nothing was begun.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C reaches a Windows console, not a process")
def test_ctrl_c_while_the_images_are_looked_at_leaves_nothing(tmp_path: Path) -> None:
    for side in ("chosen", "rejected"):
        (tmp_path / "pairs" / side).mkdir(parents=True)
    Image.effect_noise((1500, 1500), 80).convert("RGB").save(tmp_path / "big.png", compress_level=1)
    for number in range(60):
        for side in ("chosen", "rejected"):
            shutil.copyfile(tmp_path / "big.png", tmp_path / "pairs" / side / f"{number}.png")
    process = subprocess.Popen(
        [sys.executable, str(TRAINER / "train_lora.py"), "--pairs", "pairs", "--output", "run"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "checking the images 1/120\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Stopped; nothing was begun." in out and "120/120" not in out and err == ""
    assert not (tmp_path / "run").exists()
