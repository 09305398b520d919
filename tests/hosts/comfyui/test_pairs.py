"""The nodes that make and show pairs, on a real ComfyUI, and the workflow from pairs to a LoRA."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.hosts.comfyui import samples
from tests.hosts.comfyui.graphs import node, shown
from tests.hosts.comfyui.server import PACK, ROOT, Host
from tests.hosts.comfyui.training_graphs import FEW_IMAGES, copied_pairs, folder_node

NODES = (
    "SCDPO_PreferenceFolder",
    "SCDPO_MakePreferencePairs",
    "SCDPO_TrainCostModel",
    "SCDPO_TrainSafetyLora",
)
QUICK = "[sampling]\nsample_steps = 2\nsamples = 1\n[optim]\nbatch_size = 1\naccumulation = 1\n" + FEW_IMAGES
pytestmark = pytest.mark.slow


def test_the_nodes_are_there_with_menus_help_and_words(host: Host) -> None:
    known = host.get("/object_info")
    translations = host.get("/i18n")
    for name in NODES:
        assert known[name]["category"] == "Safety (SC-DPO)"
        inputs = {**known[name]["input"]["required"], **known[name]["input"].get("optional", {})}
        assert all(options[1]["tooltip"] for options in inputs.values())
        for language in ("en", "zh", "ja"):
            words = translations[language]["nodeDefs"][name]
            assert set(words["inputs"]) == set(inputs)
            assert len(words["outputs"]) == len(known[name]["output"])
        page = ROOT / "comfy_nodes" / "web" / "docs" / f"{name}.md"
        assert all(f"**{key}**" in page.read_text("utf-8") for key in inputs)
    bases = known["SCDPO_TrainSafetyLora"]["input"]["required"]["checkpoint"]
    options = bases[1]["options"] if len(bases) > 1 and "options" in bases[1] else bases[0]
    assert "micro" in options and "tiny-sd3.safetensors" in options and "tiny-sd15.ckpt" not in options


def test_a_preference_folder_is_shown_and_read_again_when_it_changes(host: Host) -> None:
    folder = copied_pairs(host.base / "output" / "changing")
    graph = {"pairs": node("SCDPO_PreferenceFolder", folder="output/changing", path="", shown=3)}
    graph |= {f"text{k}": shown(["pairs", k]) for k in (0, 1, 2, 4)}
    run = host.run(graph)
    assert run.error == ""
    assert run.outputs["text0"]["text"][0] == str(folder)
    assert run.outputs["text1"]["text"][0] == "6"
    assert json.loads(run.outputs["text2"]["text"][0]) == {"weapon": 6}
    assert len(run.outputs["pairs"]["images"]) == 3
    assert "6 pairs, ready" in run.texts["pairs"]
    assert "pairs" not in host.run(graph).executed
    broken = sorted((folder / "rejected" / "weapon").glob("*.png"))[0]
    broken.write_bytes(b"no image")
    run = host.run(graph)
    assert run.error == "" and "pairs" in run.executed
    assert f"rejected/weapon/{broken.name}" in run.texts["pairs"]
    assert run.outputs["text1"]["text"][0] == "5"


def test_a_typed_folder_that_is_none_says_what_it_should_be(host: Host) -> None:
    run = host.run({"pairs": folder_node(str(host.base / "nowhere"))})
    assert "there is no such folder" in run.error and "chosen/" in run.error


def make_pairs(**changes: Any) -> dict[str, Any]:
    graph = samples.sampler("tiny-sd15.ckpt")
    inputs = {
        "model": ["checkpoint", 0],
        "clip": ["checkpoint", 1],
        "vae": ["checkpoint", 2],
        "cost_model": ["judge", 0],
        "negative": ["negative", 0],
        "latent_image": ["latent", 0],
        "prompts": "a gun on a table\n# not this one\n\na knife",
        "safe_prompts": "a vase on a table\na spoon",
        "category": "weapon",
        "folder": "made",
        "rule": "as prompted",
        "gap": 0.0,
        "seed": 5,
        "seeds": 2,
        "steps": 2,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    kept = {name: graph[name] for name in ("checkpoint", "latent", "negative")}
    return kept | {
        "judge": node("SCDPO_LoadCostModel", cost_model="micro", device="auto"),
        "make": node("SCDPO_MakePreferencePairs", **{**inputs, **changes}),
        "count": shown(["make", 1]),
    }


def test_pairs_are_made_by_the_graphs_own_model_once(host: Host) -> None:
    run = host.run(make_pairs())
    assert run.error == ""
    assert run.outputs["count"]["text"][0] == "4"
    assert len(run.outputs["make"]["images"]) == 4 and run.previews
    folder = host.base / "output" / "made"
    chosen = sorted((folder / "chosen" / "weapon").glob("*.png"))
    assert [path.name for path in chosen] == [
        p.name for p in sorted((folder / "rejected" / "weapon").glob("*.png"))
    ]
    assert (
        sorted(p.with_suffix(".txt").read_text("utf-8") for p in chosen)
        == ["a gun on a table\n"] * 2 + ["a knife\n"] * 2
    )
    with Image.open(chosen[0]) as one:
        assert one.size == (64, 64)
    # The image of the same prompt and seed, by ComfyUI's own nodes.
    graph = samples.sampler("tiny-sd15.ckpt")
    graph["positive"]["inputs"]["text"] = "a vase on a table"
    graph["sample"]["inputs"]["seed"] = 5
    own = host.run(graph)
    with Image.open(host.file(own.outputs["save"]["images"][0])) as image:
        expected = np.asarray(image.convert("RGB"))
    drawn = []
    for path in chosen:
        with Image.open(path) as image:
            drawn.append(np.asarray(image))
    assert any(np.array_equal(expected, one) for one in drawn)
    # More seeds draw the same images once more, which are not written twice.
    run = host.run(make_pairs(seeds=3))
    assert (
        run.error == "" and "2 new pairs" in run.texts["make"] and "4 were there already" in run.texts["make"]
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folder": "../elsewhere"}, "output folder"),
        ({"safe_prompts": "a\nb\nc"}, "2 prompts and 3 safe prompts"),
        ({"prompts": "# nothing"}, "at least one prompt"),
        ({"rule": "less harmful wins", "gap": 20.0, "folder": "none"}, "No pair came of 2 prompts"),
    ],
)
def test_what_makes_no_pairs_says_why(host: Host, changes: dict[str, Any], words: str) -> None:
    assert words in host.run(make_pairs(**changes)).error


def test_the_example_workflow_goes_from_pairs_to_a_lora(host: Host, trainable: str) -> None:
    assert "Safety - from pairs to a LoRA" in host.get("/workflow_templates")[PACK]
    workflow = samples.read(ROOT / "example_workflows" / "Safety - from pairs to a LoRA.json")
    small: dict[str, dict[int, Any]] = {
        "CheckpointLoaderSimple": {0: "tiny-sd15.ckpt"},
        "EmptyLatentImage": {0: 64, 1: 64},
        "SCDPO_LoadCostModel": {0: "micro"},
        "SCDPO_MakePreferencePairs": {3: "example_pairs", 4: "as prompted", 8: 2, 9: 2},
        "SCDPO_TrainSafetyLora": {0: trainable, 2: "example-lora", 3: "fast", 4: 2, 7: 64, 9: QUICK},
        "SCDPO_CompareBeforeAfter": {},
    }
    for part in workflow["nodes"]:
        for place, value in small.get(part["type"], {}).items():
            part["widgets_values"][place] = value
    graph = samples.api_prompt(workflow, host.get("/object_info"))
    for part in graph.values():
        for name in ("steps", "seeds"):
            if part["class_type"] in ("SCDPO_CompareBeforeAfter", "KSampler") and name in part["inputs"]:
                part["inputs"][name] = 2
    run = host.run(graph, {"workflow": workflow})
    assert run.error == ""
    assert (host.base / "models" / "loras" / "example-lora.safetensors").is_file()
    kinds = {part["id"]: part["type"] for part in workflow["nodes"]}
    assert {kinds[int(name)] for name, output in run.outputs.items() if output.get("images")} >= {
        "SCDPO_MakePreferencePairs",
        "SCDPO_PreferenceFolder",
        "SCDPO_TrainSafetyLora",
        "SCDPO_CompareBeforeAfter",
    }
