"""The nodes on a real ComfyUI: loaded, executed through /prompt, judged by what comes out."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scdpo_core.cost.scorers import load_scorer
from scdpo_core.types import UNSAFE_FROM
from tests.hosts.comfyui import samples
from tests.hosts.comfyui.server import PACK, ROOT, Host, Run

NODES = (
    "SCDPO_LoadSafetyLora",
    "SCDPO_LoadCostModel",
    "SCDPO_ScoreSafetyCost",
    "SCDPO_SafetyGate",
    "SCDPO_SafetySwitch",
    "SCDPO_CompareBeforeAfter",
)
pytestmark = pytest.mark.slow


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def cost_model(name: str = "micro") -> dict[str, Any]:
    return node("SCDPO_LoadCostModel", cost_model=name, device="auto")


def score(images: list[Any], heatmap: str = "off") -> dict[str, Any]:
    return node("SCDPO_ScoreSafetyCost", images=images, cost_model=["judge", 0], heatmap=heatmap)


def gate(images: list[Any], action: str, judge: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
    inputs = {"hold": "above the threshold", "threshold": 0.0, **changes}
    return node("SCDPO_SafetyGate", images=images, judge=judge or ["judge", 0], action=action, **inputs)


def saved(images: list[Any], prefix: str = "test") -> dict[str, Any]:
    return node("SaveImage", images=images, filename_prefix=prefix)


def shown(source: list[Any]) -> dict[str, Any]:
    """A node of ComfyUI that shows whatever it is given as text."""
    return node("PreviewAny", source=source)


def pictures(host: Host, run: Run, name: str) -> list[np.ndarray[Any, Any]]:
    assert run.error == ""
    found = []
    for entry in run.outputs[name]["images"]:
        with Image.open(host.file(entry)) as picture:
            found.append(np.asarray(picture.convert("RGB")))
    return found


def drawing(host: Host, number: int) -> np.ndarray[Any, Any]:
    with Image.open(host.base / "input" / f"drawing-{number}.png") as picture:
        return np.asarray(picture.convert("RGB"))


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
    assert set(host.get("/workflow_templates")[PACK]) >= {"score-and-gate", "load-and-compare"}
    import urllib.request

    for name in NODES:
        address = f"http://127.0.0.1:{host.port}/extensions/{PACK}/docs/{name}.md"
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.read().decode().startswith("# ")


@pytest.mark.parametrize("name", ["score-and-gate", "load-and-compare"])
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
    assert all(pictures(host, run, key) for key, output in run.outputs.items() if "images" in output)
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
    assert [
        np.array_equal(p, drawing(host, k)) for p, k in zip(pictures(host, run, "save"), (0, 2), strict=True)
    ]
    safe, unsafe = pictures(host, run, "score")
    # The plate in the lower left corner: green, red.
    assert safe[-4, 4].argmax() == 1 and safe[-4, 4].max() < 160
    assert unsafe[-4, 4].argmax() == 0 and unsafe[-4, 4].max() > 150


def test_scores_reach_the_saved_file_even_when_nothing_is_computed_again(host: Host) -> None:
    # Of a batch as in no other test, whose result ComfyUI would reuse.
    notes = []
    for turn, (name, info) in enumerate(
        (("one", {"workflow": {}}), ("one", {"workflow": {}}), ("two", None))
    ):
        graph = samples.batch(1, 2) | {"judge": cost_model(), name: score(["batch", 0])}
        run = host.run(graph | {"save": saved([name, 0], f"turn{turn}")}, info)
        assert run.error == ""
        with Image.open(host.file(run.outputs["save"]["images"][1])) as picture:
            notes.append(json.loads(picture.text["safety_cost"]))  # type: ignore[attr-defined]
        assert (name in run.executed) == (turn == 0)
        assert notes[-1].pop("node") == name
    assert notes[0] == notes[1] == notes[2]
    first = load_scorer("micro").score([Image.fromarray(drawing(host, k)) for k in (1, 2)])
    assert [image["cost"] for image in notes[0]["images"]] == [round(s.value, 4) for s in first]
    assert notes[0]["cost"] == round(first[1].value, 4)
    assert notes[0]["scorer"].startswith("micro@")
    assert notes[0]["band"] == "unsafe"


def test_a_heatmap_shows_where_the_cost_comes_from(host: Host) -> None:
    graph = samples.batch(0, 2) | {"judge": cost_model(), "score": score(["batch", 0], "review and unsafe")}
    graph |= {"seen": node("MaskToImage", mask=["score", 5]), "save": saved(["seen", 0])}
    safe, unsafe = pictures(host, host.run(graph), "save")
    assert safe.max() == 0
    assert unsafe.max() > 240
    assert unsafe.mean() < 160


@pytest.mark.parametrize("action", ["blur", "pixelate", "replace"])
def test_a_gate_hides_what_is_held_and_nothing_else(host: Host, action: str) -> None:
    graph = samples.batch(0, 2, 1, 3) | {"judge": cost_model(), "gate": gate(["batch", 0], action)}
    graph |= {"save": saved(["gate", 0]), "held": saved(["gate", 1]), "any": shown(["gate", 2])}
    graph |= {"mask": node("MaskToImage", mask=["gate", 3]), "masks": saved(["mask", 0])}
    run = host.run(graph)
    out = pictures(host, run, "save")
    assert [np.array_equal(out[place], drawing(host, k)) for place, k in enumerate((0, 2, 1, 3))] == [
        True,
        False,
        True,
        False,
    ]
    held = pictures(host, run, "held")
    assert [np.array_equal(p, drawing(host, k)) for p, k in zip(held, (2, 3), strict=True)] == [True, True]
    assert [int(mask.min()) for mask in pictures(host, run, "masks")] == [0, 255, 0, 255]
    assert run.outputs["any"]["text"] == ["True"]
    assert f"Held ({action}): 1, 3." in run.texts["gate"]
    # Neither does the preview show it: what is left is far from the drawing.
    preview = pictures(host, run, "gate")[1][:-40]
    original = np.asarray(Image.fromarray(drawing(host, 2)).resize(preview.shape[1::-1]))[: len(preview)]
    assert np.abs(preview[:200].astype(int) - original[:200].astype(int)).mean() > 5


def test_a_gate_drops_held_images_and_notes_those_that_are_left(host: Host) -> None:
    graph = samples.batch(2, 0, 3) | {"judge": cost_model(), "score": score(["batch", 0])}
    graph |= {"gate": gate(["score", 0], "drop", ["score", 1]), "save": saved(["gate", 0])}
    graph |= {"passed": shown(["gate", 4]), "held": shown(["gate", 5])}
    run = host.run(graph, {})
    assert [np.array_equal(p, drawing(host, 0)) for p in pictures(host, run, "save")] == [True]
    assert run.outputs["passed"]["text"] == ["1"]
    with Image.open(host.file(run.outputs["save"]["images"][0])) as picture:
        texts = dict(picture.text)  # type: ignore[attr-defined]
    assert len(json.loads(texts["safety_cost"])["images"]) == 3
    assert len(json.loads(texts["safety_cost_gate"])["images"]) == 1


def test_a_gate_that_drops_all_runs_nothing_behind_it(host: Host) -> None:
    graph = samples.batch(2, 3) | {"judge": cost_model(), "gate": gate(["batch", 0], "drop")}
    run = host.run(graph | {"save": saved(["gate", 0]), "held": saved(["gate", 1])})
    assert run.error == ""
    assert "save" not in run.outputs
    assert len(run.outputs["held"]["images"]) == 2


def test_a_gate_stops_the_run_and_says_why(host: Host) -> None:
    graph = samples.batch(0, 2) | {"judge": cost_model(), "gate": gate(["batch", 0], "stop")}
    run = host.run(graph | {"save": saved(["gate", 0])})
    assert "The Safety Gate stopped the run. Held (stop): 1." in run.error
    assert "save" not in run.outputs


def test_a_lenient_threshold_and_a_band_let_more_pass(host: Host) -> None:
    assert UNSAFE_FROM < 3
    for changes, held in (
        ({"threshold": 20.0}, "Nothing"),
        ({"hold": "unsafe", "threshold": 20.0}, "Held (pass): 1."),
    ):
        graph = samples.batch(0, 2) | {"judge": cost_model(), "gate": gate(["batch", 0], "pass", **changes)}
        run = host.run(graph | {"save": saved(["gate", 0])})
        assert held in run.texts["gate"]
        assert np.array_equal(pictures(host, run, "save")[1], drawing(host, 2))


def test_scores_of_another_batch_are_refused(host: Host) -> None:
    graph = samples.batch(0, 2) | {"judge": cost_model(), "score": score(["load0", 0])}
    run = host.run(graph | {"gate": gate(["batch", 0], "blur", ["score", 1]), "save": saved(["gate", 0])})
    assert "1 scores for 2 images" in run.error


@pytest.mark.parametrize(("number", "taken"), [(0, "safe"), (2, "held")])
def test_a_switch_computes_only_the_branch_that_is_needed(host: Host, number: int, taken: str) -> None:
    graph = samples.batch(number) | {"judge": cost_model(), "gate": gate([f"load{number}", 0], "pass")}
    graph["safe"] = node("ImageInvert", image=[f"load{number}", 0])
    graph["held"] = node("ImageBlur", image=[f"load{number}", 0], blur_radius=3, sigma=1.0 + number)
    graph["switch"] = node(
        "SCDPO_SafetySwitch", any_held=["gate", 2], if_safe=["safe", 0], if_held=["held", 0]
    )
    run = host.run(graph | {"save": saved(["switch", 0])})
    assert len(pictures(host, run, "save")) == 1
    assert {"safe", "held"} & set(run.executed) == {taken}


def test_a_switch_ends_where_nothing_is_connected(host: Host) -> None:
    graph = samples.batch(2)
    graph["switch"] = node("SCDPO_SafetySwitch", any_held=True, if_safe=["load2", 0])
    run = host.run(graph | {"save": saved(["switch", 0])})
    assert run.error == ""
    assert "save" not in run.outputs


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
    import os

    os.utime(folder / "own.safetensors", ns=(1, 1))
    assert "judge" in host.run(graph).executed


def png(run: Run, host: Host) -> np.ndarray[Any, Any]:
    return pictures(host, run, "save")[0]


@pytest.mark.parametrize(
    ("checkpoint", "lora"),
    [
        ("tiny-sd15.ckpt", "safe-sd15"),
        ("tiny-sd15.ckpt", "safe-sd15-peft"),
        ("tiny-sd3.safetensors", "safe-sd3"),
    ],
)
def test_a_lora_of_our_exporter_fits_and_changes_the_picture(host: Host, checkpoint: str, lora: str) -> None:
    inputs = {"lora_name": f"{lora}.safetensors"}
    plain = png(host.run(samples.sampler(checkpoint)), host)
    run = host.run(samples.sampler(checkpoint, inputs))
    with_lora = png(run, host)
    assert not np.array_equal(with_lora, plain)
    assert run.previews and Image.open(io.BytesIO(run.previews[0])).size
    # Queries, keys and values share a weight in SD 3.
    count = {"safe-sd3": 3}.get(lora, 24)
    assert f"Applied: {count} weights of the model are changed at strength 1." in run.texts["lora"]
    off = png(host.run(samples.sampler(checkpoint, {**inputs, "strength_model": 0.0})), host)
    assert np.array_equal(off, plain)
    assert host.said().count("lora key not loaded") == 0


def test_what_it_was_trained_against_is_shown(host: Host) -> None:
    run = host.run(
        samples.sampler("tiny-sd15.ckpt", {"lora_name": "safe-sd15.safetensors", "strength_clip": 0.5})
    )
    assert "for Stable Diffusion 1, rank 4" in run.texts["lora"]
    assert "Trained against: benign (40), weapon (40)." in run.texts["lora"]
    assert "Harmful rate: 0.92 before, 0.05 after." in run.texts["lora"]


def test_peft_and_kohya_files_draw_the_same(host: Host) -> None:
    first, second = (
        png(host.run(samples.sampler("tiny-sd15.ckpt", {"lora_name": f"{name}.safetensors"})), host)
        for name in ("safe-sd15", "safe-sd15-peft")
    )
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("checkpoint", "lora", "why"),
    [
        (
            "tiny-sd3.safetensors",
            "safe-sd15",
            "is for Stable Diffusion 1, but the model is Stable Diffusion 3",
        ),
        ("tiny-sd15.ckpt", "safe-sd3", "is for Stable Diffusion 3, but the model is Stable Diffusion 1"),
        ("tiny-sd15.ckpt", "other-sd15", "8 of its 24 layers have no place in this model"),
        ("tiny-sd15.ckpt", "narrow-sd15", "does not fit: 'lora_unet_down_blocks_0_attentions_0"),
    ],
)
def test_a_lora_that_would_not_work_is_refused(host: Host, checkpoint: str, lora: str, why: str) -> None:
    run = host.run(samples.sampler(checkpoint, {"lora_name": f"{lora}.safetensors"}))
    assert why in run.error
    assert "save" not in run.outputs


def test_a_lora_works_in_its_part_of_sampling_alone(host: Host) -> None:
    def drawn(lora: dict[str, Any] | None, denoise: float = 1.0) -> np.ndarray[Any, Any]:
        inputs = None if lora is None else {"lora_name": "safe-sd15.safetensors", **lora}
        graph = samples.sampler("tiny-sd15.ckpt", inputs, steps=4)
        graph["sample"]["inputs"]["denoise"] = denoise
        return png(host.run(graph), host)

    plain, whole = drawn(None), drawn({})
    early, late = drawn({"end_percent": 0.5}), drawn({"start_percent": 0.5})
    assert len({picture.tobytes() for picture in (plain, whole, early, late)}) == 4
    # No step falls into this window, so nothing changes.
    assert np.array_equal(drawn({"start_percent": 0.98, "end_percent": 0.99}), plain)
    # With less noise, sampling begins later: all of it lies in this window, as in none at all.
    windowed, usual = drawn({"start_percent": 0.01}, 0.6), drawn({}, 0.6)
    assert np.abs(windowed.astype(int) - usual).max() <= 1
    assert not np.array_equal(usual, drawn(None, 0.6))
    # And the model itself is as it was.
    assert np.array_equal(drawn(None), plain)


def test_a_window_that_ends_before_it_begins_is_refused(host: Host) -> None:
    window = {"lora_name": "safe-sd15.safetensors", "start_percent": 0.6, "end_percent": 0.4}
    run = host.run(samples.sampler("tiny-sd15.ckpt", window))
    assert "start_percent must be below end_percent" in run.error


def compared(strengths: str) -> dict[str, Any]:
    graph = samples.sampler("tiny-sd15.ckpt")
    sampling = {k: v for k, v in graph.pop("sample")["inputs"].items() if k != "model"}
    del graph["decode"], graph["save"]
    graph["judge"] = cost_model()
    graph["compare"] = node(
        "SCDPO_CompareBeforeAfter",
        model=["checkpoint", 0],
        lora_name="safe-sd15.safetensors",
        strengths=strengths,
        vae=["checkpoint", 2],
        cost_model=["judge", 0],
        seeds=2,
        **sampling,
    )
    return graph


def test_before_and_after_are_compared_from_the_same_seeds(host: Host) -> None:
    graph = compared("0, 0.5, 1")
    graph |= {name: saved(["compare", k]) for k, name in enumerate(("grid", "bars", "all"))}
    run = host.run(graph)
    shots = pictures(host, run, "all")
    assert len(shots) == 6
    plain = png(host.run(samples.sampler("tiny-sd15.ckpt")), host)
    # Seed 3 is the sampler's own, without the LoRA in the first row and with it in the third.
    assert np.array_equal(shots[0], plain)
    full = png(host.run(samples.sampler("tiny-sd15.ckpt", {"lora_name": "safe-sd15.safetensors"})), host)
    assert np.array_equal(shots[4], full)
    assert pictures(host, run, "grid")[0].shape[1] > 2 * 256
    assert pictures(host, run, "bars")[0].shape == (420, 720, 3)
    assert "without the LoRA: 0 of 2 harmful" in run.texts["compare"]
    assert len(run.previews) > 6


@pytest.mark.parametrize("strengths", ["", "0, -1", "0, 2.5", "much"])
def test_strengths_that_make_no_sense_are_refused_before_the_run(host: Host, strengths: str) -> None:
    run = host.run(compared(strengths))
    assert "write numbers from 0 to 2 with commas between them" in run.error
    assert run.executed == []


def test_the_base_directory_is_ours_alone(base: Path) -> None:
    assert (base / "custom_nodes" / PACK / "pyproject.toml").is_file()
