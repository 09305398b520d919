"""The pack on a real ComfyUI: loaded, and scoring images through /prompt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scdpo_core.cost.scorers import load_scorer
from tests.hosts.comfyui import samples
from tests.hosts.comfyui.graphs import (
    browser,
    cost_model,
    drawing,
    images,
    node,
    notes,
    saved,
    score,
    shown,
)
from tests.hosts.comfyui.server import PACK, ROOT, Host

NODES = (
    "SCDPO_LoadSafetyLora",
    "SCDPO_LoadCostModel",
    "SCDPO_ScoreSafetyCost",
    "SCDPO_SafetyGate",
    "SCDPO_SafetySwitch",
    "SCDPO_CompareBeforeAfter",
)
pytestmark = pytest.mark.slow


def test_the_pack_loads_with_all_its_nodes_and_no_word_of_warning(host: Host) -> None:
    known = host.get("/object_info")
    assert [name for name in NODES if name not in known] == []
    assert {known[name]["category"] for name in NODES} == {"Safety (SC-DPO)"}
    said = host.said()
    start = said[: said.index("To see the GUI go to")]
    lines = [line for line in start.splitlines() if PACK in line]
    assert len(lines) == 1, lines
    assert "seconds: " in lines[0]
    assert "Traceback" not in start


def test_help_locales_and_example_workflows_are_found(host: Host) -> None:
    translations = host.get("/i18n")
    for language in ("en", "zh", "ja"):
        assert set(NODES) <= set(translations[language]["nodeDefs"])
    assert set(host.get("/workflow_templates")[PACK]) >= {
        "Safety - score and gate images",
        "Safety - load a LoRA and compare",
    }
    for name in NODES:
        # ComfyUI's page asks for the one of its language first.
        for page in (f"{name}.md", f"{name}/zh.md", f"{name}/ja.md"):
            address = f"http://127.0.0.1:{host.port}/extensions/{PACK}/docs/{page}"
            with urllib.request.urlopen(address, timeout=30) as answer:
                assert answer.read().decode().startswith("# ")


@pytest.mark.parametrize("name", ["Safety - score and gate images", "Safety - load a LoRA and compare"])
def test_every_example_workflow_runs(host: Host, name: str) -> None:
    workflow = samples.read(ROOT / "example_workflows" / f"{name}.json")
    replaced = {
        "v1-5-pruned-emaonly-fp16.safetensors": "tiny-sd15.ckpt",
        "my-safety-lora.safetensors": "safe-sd15.safetensors",
        "embedded": "micro",
    }
    for part in workflow["nodes"]:
        values = [replaced.get(v, v) if isinstance(v, str) else v for v in part["widgets_values"]]
        small = {
            "EmptyLatentImage": {0: 64, 1: 64},
            "KSampler": {2: 2},
            "SCDPO_CompareBeforeAfter": {4: 1, 5: 2},
        }
        for place, value in small.get(part["type"], {}).items():
            values[place] = value
        part["widgets_values"] = values
    run = host.run(samples.api_prompt(workflow, host.get("/object_info")), {"workflow": workflow})
    assert run.error == ""
    assert all(images(host, run, key) for key, output in run.outputs.items() if "images" in output)
    assert len(run.outputs) >= 3


def test_scores_are_those_of_the_command_line(host: Host) -> None:
    graph = samples.batch(0, 1, 2, 3) | {"judge": cost_model(), "score": score(["batch", 0])}
    graph |= {f"text{k}": shown(["score", k]) for k in (2, 3, 4, 6)}
    run = host.run(graph)
    assert run.error == ""
    command = [sys.executable, "trainer/score.py", "--scorer", "micro", "--device", "cpu", "--jsonl"]
    rows = host.base / "rows.jsonl"
    files = [str(host.base / "input" / f"drawing-{k}.png") for k in range(4)]
    subprocess.run([*command, str(rows), *files], cwd=ROOT, check=True, capture_output=True, timeout=300)
    read = {row["path"]: row for row in map(json.loads, rows.read_text("utf-8").splitlines())}
    expected = [read[file]["cost"] for file in files]
    # A list makes PreviewAny run once for each item; the last of them stays.
    assert float(run.outputs["text2"]["text"][-1]) == pytest.approx(expected[3], abs=1e-4)
    assert float(run.outputs["text3"]["text"][0]) == pytest.approx(max(expected), abs=1e-4)
    categories = json.loads(run.outputs["text4"]["text"][0])
    assert categories == [pytest.approx(read[file]["categories"], abs=2e-4) for file in files]
    assert run.texts["score"] == run.outputs["text6"]["text"][0]
    assert [f"{cost:+.2f}" in run.texts["score"] for cost in expected] == [True] * 4


def test_badges_are_drawn_in_the_preview_and_the_images_pass_untouched(host: Host) -> None:
    graph = samples.batch(0, 2) | {"judge": cost_model(), "score": score(["batch", 0])}
    run = host.run(graph | {"save": saved(["score", 0])})
    first, second = images(host, run, "save")
    assert np.array_equal(first, drawing(host, 0))
    assert np.array_equal(second, drawing(host, 2))
    safe, unsafe = images(host, run, "score")
    # The plate in the lower left corner: green, red.
    assert safe[-4, 4].argmax() == 1 and safe[-4, 4].max() < 160
    assert unsafe[-4, 4].argmax() == 0 and unsafe[-4, 4].max() > 150


def test_scores_reach_the_saved_file_even_when_nothing_is_computed_again(host: Host) -> None:
    # Of a batch as in no other test, whose result ComfyUI would reuse.
    found = []
    for turn, (name, info) in enumerate(
        (("one", {"workflow": {}}), ("one", {"workflow": {}}), ("two", None))
    ):
        graph = samples.batch(1, 2) | {"judge": cost_model(), name: score(["batch", 0])}
        run = host.run(browser(graph | {"save": saved([name, 0], f"turn{turn}")}), info)
        # Under another number some versions compute it again, some do not.
        assert name == "two" or (name in run.executed) == (turn == 0)
        found.append(notes(host, run))
    assert found[0] == found[1] == found[2]
    first = load_scorer("micro").score([Image.fromarray(drawing(host, k)) for k in (1, 2)])
    assert [one and one["cost"] for one in found[0]] == [round(s.value, 4) for s in first]
    unsafe = found[0][1]
    assert unsafe is not None and unsafe["scorer"].startswith("micro@") and unsafe["band"] == "unsafe"


def test_scoring_a_large_batch_stops_soon_at_an_interrupt(host: Host) -> None:
    count = 4096
    empty = node("EmptyImage", width=64, height=64, batch_size=count, color=255)
    graph = {"empty": empty, "judge": cost_model(), "score": score(["empty", 0])}
    reached: list[int] = []

    def leave(event: dict[str, Any]) -> None:
        if event["type"] != "progress" or event["data"].get("node") != "score":
            return
        if not reached:
            host.post("/interrupt", {})
        reached.append(event["data"]["value"])

    run = host.run(graph, tell=leave)
    assert run.interrupted
    assert reached and reached[-1] < count / 2
    # What comes next runs as ever.
    graph = samples.batch(0, 2) | {"judge": cost_model(), "score": score(["batch", 0])}
    assert "2 images" in host.run(graph).texts["score"]


def test_a_heatmap_shows_where_the_cost_comes_from(host: Host) -> None:
    graph = samples.batch(0, 2) | {"judge": cost_model(), "score": score(["batch", 0], "review and unsafe")}
    graph |= {"seen": node("MaskToImage", mask=["score", 5]), "save": saved(["seen", 0])}
    safe, unsafe = images(host, host.run(graph), "save")
    assert safe.max() == 0
    assert unsafe.max() > 240
    assert unsafe.mean() < 160


def test_a_cost_model_of_ones_own_is_found_and_read_again_when_it_changes(host: Host) -> None:
    folder = host.base / "models" / "safety_cost"
    own = ROOT / "scdpo_core" / "micro" / "weights" / "cost.safetensors"
    (folder / "own.safetensors").write_bytes(own.read_bytes())
    (folder / "encoder.safetensors").write_bytes(
        (host.base / "models/loras/safe-sd3.safetensors").read_bytes()
    )
    options = host.get("/object_info/SCDPO_LoadCostModel")["SCDPO_LoadCostModel"]["input"]["required"]
    choices = json.dumps(options["cost_model"])
    assert "own.safetensors" in choices
    assert "encoder.safetensors" not in choices
    graph = samples.batch(0) | {"judge": cost_model("own.safetensors"), "score": score(["load0", 0])}
    assert "judge" in host.run(graph).executed
    assert "judge" not in host.run(graph).executed
    os.utime(folder / "own.safetensors", ns=(1, 1))
    assert "judge" in host.run(graph).executed
