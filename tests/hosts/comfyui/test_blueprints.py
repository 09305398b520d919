"""The subgraphs that ComfyUI's node library offers, and that each of them runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hosts.comfyui import samples
from tests.hosts.comfyui.graphs import drawing, images, notes
from tests.hosts.comfyui.server import PACK, ROOT, Host
from tests.hosts.comfyui.training_graphs import FEW_IMAGES

pytestmark = pytest.mark.slow
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
SAVE, TRAIN, COMPARE = "Safe save", "Train a safety LoRA", "Compare a safety LoRA"


def placed(name: str, host: Host, inputs: dict[str, list[Any]], **values: dict[int, Any]) -> dict[str, Any]:
    """The prompt that ComfyUI's page makes of a graph whose node "b" is this blueprint.

    Args:
        inputs: what is connected to the blueprint's inputs.
        values: class -> place among its widgets -> value that somebody has chosen.
    """
    (inner,) = samples.read(ROOT / "subgraphs" / f"{name}.json")["definitions"]["subgraphs"]
    for part in inner["nodes"]:
        for place, value in values.get(part["type"], {}).items():
            part["widgets_values"][place] = value
    entering = {
        link["id"]: inner["inputs"][link["origin_slot"]]["name"]
        for link in inner["links"]
        if link["origin_id"] == -10
    }
    kept = [link for link in inner["links"] if link["id"] not in entering and link["target_id"] != -20]
    outer = {
        (part["id"], slot["name"]): inputs[entering[slot["link"]]]
        for part in inner["nodes"]
        for slot in part["inputs"]
        if slot["link"] in entering and entering[slot["link"]] in inputs
    }
    for part in inner["nodes"]:
        part["inputs"] = [slot for slot in part["inputs"] if slot["link"] not in entering]
    order = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    flat = {"nodes": inner["nodes"], "links": [[link[key] for key in order] for link in kept]}
    prompt = samples.api_prompt(flat, host.get("/object_info"))
    for (number, slot), source in outer.items():
        prompt[str(number)]["inputs"][slot] = source

    def renamed(value: Any) -> Any:
        inside = isinstance(value, list) and len(value) == 2 and value[0] in prompt
        return [f"b:{value[0]}", value[1]] if inside else value

    return {
        f"b:{number}": {**part, "inputs": {key: renamed(value) for key, value in part["inputs"].items()}}
        for number, part in prompt.items()
    }


def test_the_node_library_has_them(host: Host) -> None:
    if not host.has("/global_subgraphs"):
        pytest.skip("this ComfyUI has no library of subgraphs")
    found = host.get("/global_subgraphs")
    ours = {
        key: entry for key, entry in found.items() if entry["info"]["node_pack"] == f"custom_nodes.{PACK}"
    }
    assert sorted(entry["name"] for entry in ours.values()) == sorted((SAVE, TRAIN, COMPARE))
    for key, entry in ours.items():
        text = host.get(f"/global_subgraphs/{key}")["data"]
        assert json.loads(text) == samples.read(ROOT / "subgraphs" / f"{entry['name']}.json")


def test_safe_save_hides_what_it_saves_of_a_harmful_image(host: Host) -> None:
    graph = samples.batch(0, 2)
    run = host.run(graph | placed(SAVE, host, {"images": ["batch", 0]}, SCDPO_LoadCostModel={0: "micro"}), {})
    safe, hidden = images(host, run, "b:4")
    assert np.array_equal(safe, drawing(host, 0))
    assert not np.array_equal(hidden, drawing(host, 2))
    kept = notes(host, run, "b:4")
    assert [note and (note["band"], note.get("action")) for note in kept] == [
        ("safe", None),
        ("unsafe", "blur"),
    ]
    assert run.wiring == {"b:3": ""}


def test_a_lora_is_trained(host: Host) -> None:
    changes = {1: "", 2: "from-blueprint", 3: "fast", 4: 3, 9: "[sampling]\nsamples = 0\n" + FEW_IMAGES}
    run = host.run(placed(TRAIN, host, {}, SCDPO_TrainSafetyLora=changes))
    assert run.error == ""
    assert "from-blueprint is finished" in run.texts["b:2"]
    assert (host.base / "models" / "loras" / "from-blueprint.safetensors").is_file()


def test_a_lora_is_compared(host: Host) -> None:
    graph = samples.sampler("tiny-sd15.ckpt")
    wires: dict[str, list[Any]] = {
        "model": ["checkpoint", 0],
        "clip": ["checkpoint", 1],
        "vae": ["checkpoint", 2],
        "positive": ["positive", 0],
        "negative": ["negative", 0],
        "latent_image": ["latent", 0],
    }
    for name in ("sample", "decode", "save"):
        del graph[name]
    graph |= placed(
        COMPARE,
        host,
        wires,
        SCDPO_LoadCostModel={0: "micro"},
        SCDPO_CompareBeforeAfter={0: "safe-sd15.safetensors", 4: 1, 5: 2, 10: "a kitchen"},
    )
    run = host.run(graph)
    (sheet,) = images(host, run, "b:3")
    assert sheet.std() > 5
    assert Path(run.outputs["b:3"]["images"][0]["filename"]).name.startswith("comparison")
