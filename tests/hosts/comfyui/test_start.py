"""What the pack costs a ComfyUI that does not use it, and what happens where something is missing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.comfyui import samples
from tests.hosts.comfyui.server import PACK, ROOT, Host, python

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
RECORDED = ROOT / "tests" / "data" / "comfyui_api.json"


def inside(command: str, **changes: str) -> Any:
    line = [python(), str(HERE / "inside.py"), os.environ["COMFYUI_DIR"], command]
    result = subprocess.run(line, capture_output=True, text=True, timeout=300, env={**os.environ, **changes})
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_an_unused_pack_adds_little_to_the_start(tmp_path: Path) -> None:
    # Processor time, which other programs on the machine hardly lengthen; the better of two, for the first
    # has to compile. Whoever runs the tests may have told Python to keep nothing of that.
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    assert min(inside("start", **kept)["seconds"] for _ in range(2)) < 0.3


def test_the_recorded_api_and_schemas_are_those_of_this_comfyui() -> None:
    now = inside("record")
    recorded = json.loads(RECORDED.read_text("utf-8"))
    known = recorded.get(now["version"])
    if known is None:
        # Another version than those recorded: our nodes must still look the same.
        known = recorded[max(recorded, key=lambda version: [int(part) for part in version.split(".")])]
        assert list(now["nodes"]) == list(known["nodes"])
        return
    assert now == known


def test_without_onnxruntime_the_pack_stays_and_the_node_says_what_is_missing(
    base: Path, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError('not installed here')\n", "utf-8")
    host = Host.start(base, {"PYTHONPATH": str(tmp_path)})
    try:
        assert f"(IMPORT FAILED): {base / 'custom_nodes' / PACK}" not in host.said()
        graph = samples.batch(0)
        graph["judge"] = {
            "class_type": "SCDPO_LoadCostModel",
            "inputs": {"cost_model": "embedded", "device": "cpu"},
        }
        inputs = {"images": ["load0", 0], "cost_model": ["judge", 0], "heatmap": "off"}
        graph["score"] = {"class_type": "SCDPO_ScoreSafetyCost", "inputs": inputs}
        run = host.run(graph)
        assert (
            "The embedded scorer needs the package 'onnxruntime'. Install it with 'pip install" in run.error
        )
        graph["judge"]["inputs"]["cost_model"] = "micro"
        assert host.run(graph).error == ""
    finally:
        host.stop()


def test_our_requirements_change_no_package_of_a_comfyui(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [python(), "-m", "pip", "install", "--dry-run", "--quiet", "--report", str(report)]
    result = subprocess.run(
        [*command, "-r", str(ROOT / "requirements.txt")], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    listed = [python(), "-m", "pip", "list", "--format", "json"]
    installed = {
        package["name"].lower().replace("_", "-")
        for package in json.loads(subprocess.run(listed, capture_output=True, text=True, check=True).stdout)
    }
    planned = json.loads(report.read_text("utf-8"))["install"]
    names = {package["metadata"]["name"].lower().replace("_", "-") for package in planned}
    assert names & installed == set()
