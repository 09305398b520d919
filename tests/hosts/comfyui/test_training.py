"""The nodes that make pairs and train, on a real ComfyUI with real trainings in processes of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from scdpo_core.lora.file import load_lora
from scdpo_core.runs.follow import Follower
from scdpo_core.runs.launch import Child
from tests.hosts.comfyui import samples
from tests.hosts.comfyui.graphs import node, shown
from tests.hosts.comfyui.server import ROOT, Host
from tests.hosts.comfyui.training_graphs import (
    FEW_IMAGES,
    copied_pairs,
    folder_node,
    in_background,
    in_background_quietly,
    lora_node,
)
from tests.support.original_files import write_full_sd15

pytestmark = pytest.mark.slow


def runs(host: Host) -> Path:
    return host.base / "output" / "safety_runs"


def until(true: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)


def test_a_lora_is_trained_shown_and_put_where_load_lora_finds_it(host: Host, trainable: str) -> None:
    graph = samples.sampler("tiny-sd15.ckpt")
    pairs = copied_pairs(host.base / "input" / "six")
    graph["pairs"] = folder_node(str(pairs))
    graph["train"] = lora_node("from-comfy", checkpoint=trainable, resolution=64, learning_rate=0.01)
    graph["path"] = shown(["train", 1])
    graph["report"] = shown(["train", 3])
    graph["plot"] = node("SaveImage", images=["train", 2], filename_prefix="plot")
    # ComfyUI's own loader and ours take the name by wire.
    own = node(
        "LoraLoader",
        model=["checkpoint", 0],
        clip=["checkpoint", 1],
        lora_name=["train", 0],
        strength_model=1.0,
        strength_clip=1.0,
    )
    ours = node(
        "SCDPO_LoadSafetyLora",
        model=["checkpoint", 0],
        lora_name=["train", 0],
        strength_model=1.0,
        strength_clip=1.0,
    )
    for name, loader in (("own", own), ("ours", ours)):
        graph[f"lora_{name}"] = loader
        for part in ("sample", "decode", "save"):
            graph[f"{part}_{name}"] = json.loads(json.dumps(graph[part]))
        graph[f"sample_{name}"]["inputs"]["model"] = [f"lora_{name}", 0]
        graph[f"decode_{name}"]["inputs"]["samples"] = [f"sample_{name}", 0]
        graph[f"save_{name}"]["inputs"]["images"] = [f"decode_{name}", 0]
    run = host.run(graph)
    assert run.error == ""
    file = host.base / "models" / "loras" / "from-comfy.safetensors"
    assert run.outputs["path"]["text"][0] == str(file)
    assert "from-comfy is finished" in run.outputs["report"]["text"][0]
    state, about = load_lora(file)
    assert about.family == "sd1" and about.rank == 4
    assert any(float(weight.abs().max()) > 0 for name, weight in state.items() if name.endswith("up"))
    with safe_open(str(file), framework="pt") as opened:
        assert all(key.startswith("lora_unet_") for key in opened.keys())  # noqa: SIM118 - the handle is no dict
    assert run.previews, "samples and curves on the node"
    assert run.outputs["train"]["images"]

    def image(name: str) -> np.ndarray[Any, Any]:
        with Image.open(host.file(run.outputs[name]["images"][0])) as opened:
            return np.asarray(opened.convert("RGB"))

    plain, by_comfy, by_us = (image(name) for name in ("save", "save_own", "save_ours"))
    assert not np.array_equal(plain, by_us)
    assert np.array_equal(by_comfy, by_us)
    assert image("plot").std() > 5
    # The menus have it at once.
    known = host.get("/object_info")
    for kind in ("LoraLoader", "SCDPO_LoadSafetyLora"):
        assert "from-comfy.safetensors" in json.dumps(known[kind]["input"]["required"]["lora_name"])
    # The same again trains nothing; the same name for something else is refused.
    began = len((runs(host) / "from-comfy" / "events.jsonl").read_text("utf-8").splitlines())
    host.post("/free", {"unload_models": True, "free_memory": True})
    again = host.run(graph)
    assert again.error == ""
    assert len((runs(host) / "from-comfy" / "events.jsonl").read_text("utf-8").splitlines()) == began
    graph["train"]["inputs"]["rank"] = 2
    assert "Choose another output name" in host.run(graph).error


def test_interrupt_saves_within_a_step_and_the_next_run_goes_on(host: Host) -> None:
    steps = 4000
    graph = {"pairs": folder_node(), "train": lora_node("stopped", steps=steps)}
    folder = runs(host) / "stopped"
    thread, ended = in_background(host, graph)
    until(lambda: (folder / "events.jsonl").exists() and Follower(folder).view().trained >= 2)
    before = Follower(folder).view().trained
    host.post("/interrupt", {})
    thread.join(120)
    assert ended and ended[0].interrupted
    assert Child(folder).state == "stopped" and Child(folder).process is None
    after = Follower(folder).view()
    # It was asked while it went on; what it was told of is the only thing that is known exactly.
    assert before <= after.trained < steps
    assert not (host.base / "models" / "loras" / "stopped.safetensors").exists()
    (newest,) = sorted((folder / "checkpoints").iterdir())[-1:]
    assert str(after.trained) in newest.name
    # The queue of ComfyUI is free at once, and the run goes on when asked again.
    thread, ended = in_background(host, graph)
    until(lambda: Follower(folder).view().trained > after.trained)
    starts = [
        line for line in (folder / "events.jsonl").read_text("utf-8").splitlines() if '"started"' in line
    ]
    assert [json.loads(line)["first_step"] for line in starts] == [0, after.trained]
    host.post("/interrupt", {})
    thread.join(120)
    assert ended and ended[0].interrupted
    assert "stopped" in ended[0].texts["train"] and "step" in "".join(ended[0].told["train"])


def test_a_second_run_waits_for_the_first_and_interrupt_leaves_the_queue(host: Host) -> None:
    graph = {"pairs": folder_node(), "train": lora_node("first", steps=4000)}
    thread, ended = in_background(host, graph)
    folder = runs(host) / "first"
    until(lambda: (folder / "events.jsonl").exists() and Follower(folder).view().trained >= 1)
    # Another ComfyUI, or the WebUI, with the same folder of runs.
    other = Host.start(host.base)
    try:
        second = {"pairs": folder_node(), "train": lora_node("second")}
        waiting, left = in_background(other, second)
        until(lambda: (runs(host) / "second" / "queued").exists())
        other.post("/interrupt", {})
        waiting.join(60)
        assert left[0].interrupted and "first is being trained" in left[0].texts["train"]
        assert not (runs(host) / "second" / "queued").exists()
        waiting, left = in_background(other, second)
        until(lambda: (runs(host) / "second" / "queued").exists())
        host.post("/interrupt", {})
        thread.join(120)
        assert ended[0].interrupted
        waiting.join(240)
        assert left and left[0].error == "" and "second is finished" in left[0].texts["train"]
        # What the other one trained is in this one's menu, too.
        assert "second.safetensors" in json.dumps(host.get("/object_info")["LoraLoader"])
    finally:
        other.stop()
        Child(folder).kill()


def test_a_training_outlives_comfyui_and_is_picked_up_by_the_next(host: Host) -> None:
    own = Host.start(host.base)
    graph = {"pairs": folder_node(), "train": lora_node("orphan", steps=60)}
    folder = runs(host) / "orphan"
    thread, _ = in_background_quietly(own, graph)
    try:
        until(lambda: (folder / "events.jsonl").exists() and Follower(folder).view().trained >= 1)
        own.process.kill()
        own.process.wait(30)
        thread.join(30)
        assert Child(folder).state in ("running", "finished")
        run = host.run(graph)
        assert run.error == "" and "orphan is finished" in run.texts["train"]
        starts = (folder / "events.jsonl").read_text("utf-8").count('"event": "started"')
        assert starts == 1
    finally:
        own.stop()
        Child(folder).kill()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs": ""}, "Connect Preference Folder"),
        ({"output_name": "a/b"}, "cannot be a file name"),
        ({"settings": "[optim]\nmax_train_steps = 7\n"}, "is chosen above"),
        ({"settings": "[optim]\nlearning = 7\n"}, "learning"),
        ({"output_name": "safe-sd15"}, "Choose another output name"),
    ],
)
def test_what_cannot_be_trained_says_why_before_anything_starts(
    host: Host, changes: dict[str, Any], words: str
) -> None:
    name = changes.get("output_name", "refused")
    run = host.run(
        {
            "pairs": folder_node(),
            "train": lora_node(name, **{k: v for k, v in changes.items() if k != "output_name"}),
        }
    )
    assert words in run.error
    assert not (runs(host) / "refused" / "child.json").exists()


def test_a_failing_training_brings_its_own_words(host: Host) -> None:
    """tiny-sd3.safetensors has no text encoders that the trainer could use."""
    run = host.run({"pairs": folder_node(), "train": lora_node("failing", checkpoint="tiny-sd3.safetensors")})
    assert "tiny-sd3" in run.error
    assert not (host.base / "models" / "loras" / "failing.safetensors").exists()


def test_a_cost_model_is_trained_and_scores(host: Host) -> None:
    images = ROOT / "examples" / "cost_pictures"
    train = node(
        "SCDPO_TrainCostModel",
        unsafe=str(images / "unsafe"),
        safe=str(images / "safe"),
        pairs="",
        output_name="drawings",
        encoder="micro",
        quality="fast",
        encoder_folder="",
        benign="",
        settings="steps = 50",
    )
    graph = samples.batch(0, 2) | {
        "train": train,
        "score": node("SCDPO_ScoreSafetyCost", images=["batch", 0], cost_model=["train", 0], heatmap="off"),
        "loaded": node("SCDPO_LoadCostModel", cost_model=["train", 1], device="cpu"),
        "score2": node("SCDPO_ScoreSafetyCost", images=["batch", 0], cost_model=["loaded", 0], heatmap="off"),
        "report": shown(["train", 4]),
    }
    run = host.run(graph)
    assert run.error == ""
    assert (host.base / "models" / "safety_cost" / "drawings.safetensors").is_file()
    assert "drawings is finished" in run.outputs["report"]["text"][0]
    assert "loss" in run.outputs["report"]["text"][0]
    assert run.texts["score"] == run.texts["score2"] and "drawings@" in run.texts["score"]
    assert "drawings.safetensors" in json.dumps(host.get("/object_info")["SCDPO_LoadCostModel"])


def test_a_checkpoint_of_full_size_is_trained_by_its_name(host: Host) -> None:
    """One step at 64x64 on a random Stable Diffusion 1.5 in one file, and its LoRA applied to it."""
    name = "full-sd15.safetensors"
    file = write_full_sd15(host.base / "models" / "checkpoints" / name)
    try:
        pairs = copied_pairs(host.base / "input" / "two", 2)
        settings = "[optim]\nbatch_size = 1\naccumulation = 1\n[sampling]\nsamples = 0\n" + FEW_IMAGES
        graph = {
            "pairs": folder_node(str(pairs)),
            "train": lora_node("full", checkpoint=name, steps=1, resolution=64, settings=settings),
            "checkpoint": node("CheckpointLoaderSimple", ckpt_name=name),
            "lora": node(
                "SCDPO_LoadSafetyLora",
                model=["checkpoint", 0],
                lora_name=["train", 0],
                strength_model=1.0,
                strength_clip=1.0,
            ),
            "info": shown(["lora", 2]),
        }
        run = host.run(graph)
        assert run.error == ""
        # 16 transformers with two attentions of four matrices each.
        assert "128 weights of the model are changed" in run.outputs["info"]["text"][0]
        assert "Stable Diffusion 1" in run.outputs["info"]["text"][0]
    finally:
        file.unlink()
