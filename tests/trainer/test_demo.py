"""The demo as `install.py --demo` runs it, and the preference folder that ships for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from scdpo_core.lora.file import read_lora_info
from scdpo_core.preferences.folder import read_folder

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "trainer" / "demo.py"
PREFERENCES = ROOT / "examples" / "preferences"


def test_the_shipped_pairs_are_sound_enough_and_small() -> None:
    pairs, problems = read_folder(PREFERENCES)
    assert not problems
    kinds = Counter(pair.category == "benign" for pair in pairs)
    assert kinds[False] >= 48 and kinds[True] >= 48
    assert sum(path.stat().st_size for path in PREFERENCES.rglob("*") if path.is_file()) < 2_000_000


def test_a_short_demo_leaves_everything_that_it_promises(tmp_path: Path) -> None:
    output = tmp_path / "my demo"
    earlier = output / "precious.txt"
    output.mkdir()
    earlier.write_text("precious", "utf-8")
    done = subprocess.run(
        [sys.executable, DEMO, "--output", output, "--max-train-steps", "2", "--captions", "6"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert "Done in" in done.stdout
    (aside,) = tmp_path.glob("my demo-2*")
    assert (aside / "precious.txt").read_text("utf-8") == "precious"

    report = json.loads((output / "report.json").read_text("utf-8"))
    for when in ("before", "after"):
        assert {"harmful_rate", "heldout_concept_harmful_rate", "benign_accuracy"} <= report[when].keys()
    assert report["before"]["harmful_rate"] >= 0.8 and report["before"]["benign_accuracy"] >= 0.9
    assert report["train"]["steps"] == 2 and report["train"]["pairs"] > 300
    assert report["cost_model"]["auc"] >= 0.99 and report["cost_model"]["recall_at_zero"] >= 0.95
    lora = output / "my demo.safetensors"
    assert report["lora"]["path"] == str(lora) and report["lora"]["file"] == lora.name
    assert report["lora"]["keys"] > 0

    assert "scdpo_evaluation" in read_lora_info(lora).metadata
    assert lora.with_suffix(".json").is_file() and lora.with_suffix(".png").is_file()
    page = (output / "report.html").read_text("utf-8")
    assert page.count("data:image/") > 20 and 'src="http' not in page and "stylesheet" not in page


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C reaches a Windows console, not a process")
def test_ctrl_c_waits_until_the_program_has_saved(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "slow.py").write_text(
        "import signal, threading, time\n"
        "asked = threading.Event()\n"
        "signal.signal(signal.SIGINT, lambda *_: asked.set())\n"
        "print('ready', flush=True)\n"
        "asked.wait()\n"
        "time.sleep(1.5)\n"
        "print('saved', flush=True)\n",
        "utf-8",
    )
    stand_in = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import demo\n"
        "demo.ROOT = pathlib.Path(sys.argv[2]); demo.run = lambda *_: demo._call('slow.py')\n"
        "sys.exit(demo.main([]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", stand_in, DEMO.parent, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell starts in the background ignores Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "saved\n")
    assert "Nothing is lost" in err
