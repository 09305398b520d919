"""Safety LoRAs on a real ComfyUI: which are taken, and what they change."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.hosts.comfyui import samples
from tests.hosts.comfyui.graphs import cost_model, images, node, png, saved
from tests.hosts.comfyui.server import Host

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("checkpoint", "lora"),
    [
        ("tiny-sd15.ckpt", "safe-sd15"),
        ("tiny-sd15.ckpt", "safe-sd15-peft"),
        ("tiny-sd3.safetensors", "safe-sd3"),
    ],
)
def test_a_lora_of_our_exporter_fits_and_changes_the_image(host: Host, checkpoint: str, lora: str) -> None:
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


@pytest.mark.parametrize("form", ["float8_e4m3fn", "int8_tensorwise", "nvfp4"])
def test_a_lora_changes_the_image_of_a_quantized_checkpoint(host: Host, form: str) -> None:
    checkpoint = f"tiny-sd3-{form}.safetensors"
    if (
        checkpoint
        not in host.get("/object_info")["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    ):
        pytest.skip("this ComfyUI has no such format")
    plain = png(host.run(samples.sampler(checkpoint)), host)
    exact = png(host.run(samples.sampler("tiny-sd3.safetensors")), host)
    # It is the quantized model that draws: nearly the same, and not the same.
    assert not np.array_equal(plain, exact)
    run = host.run(samples.sampler(checkpoint, {"lora_name": "safe-sd3.safetensors"}))
    changed = png(run, host)
    assert not np.array_equal(changed, plain)
    assert "Applied: 3 weights of the model are changed at strength 1." in run.texts["lora"]
    # ComfyUI's own loader does the same with it.
    own = samples.sampler(checkpoint, {"lora_name": "safe-sd3.safetensors"})
    own["lora"]["class_type"] = "LoraLoader"
    assert np.array_equal(png(host.run(own), host), changed)
    off = {"lora_name": "safe-sd3.safetensors", "strength_model": 0.0}
    assert np.array_equal(png(host.run(samples.sampler(checkpoint, off)), host), plain)


def test_what_it_was_trained_against_is_shown(host: Host) -> None:
    run = host.run(
        samples.sampler("tiny-sd15.ckpt", {"lora_name": "safe-sd15.safetensors", "strength_clip": 0.5})
    )
    assert "for Stable Diffusion 1.x, rank 4" in run.texts["lora"]
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
            "is for Stable Diffusion 1.x, but the model is Stable Diffusion 3",
        ),
        ("tiny-sd15.ckpt", "safe-sd3", "is for Stable Diffusion 3, but the model is Stable Diffusion 1"),
        ("tiny-sd15.ckpt", "other-sd15", "8 of its 24 layers do not exist in this model"),
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
    assert len({image.tobytes() for image in (plain, whole, early, late)}) == 4
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


def compared(strengths: str, lora: str = "safe-sd15", **more: Any) -> dict[str, Any]:
    graph = samples.sampler("tiny-sd15.ckpt")
    sampling = {k: v for k, v in graph.pop("sample")["inputs"].items() if k != "model"}
    del graph["decode"], graph["save"]
    graph["judge"] = cost_model()
    graph["compare"] = node(
        "SCDPO_CompareBeforeAfter",
        model=["checkpoint", 0],
        lora_name=f"{lora}.safetensors",
        strengths=strengths,
        vae=["checkpoint", 2],
        cost_model=["judge", 0],
        seeds=2,
        **sampling,
        **more,
    )
    return graph


def test_before_and_after_are_compared_from_the_same_seeds(host: Host) -> None:
    graph = compared("0, 0.5, 1")
    graph |= {name: saved(["compare", k]) for k, name in enumerate(("grid", "bars", "all"))}
    run = host.run(graph)
    shots = images(host, run, "all")
    assert len(shots) == 6
    plain = png(host.run(samples.sampler("tiny-sd15.ckpt")), host)
    # Seed 3 is the sampler's own, without the LoRA in the first row and with it in the third.
    assert np.array_equal(shots[0], plain)
    full = png(host.run(samples.sampler("tiny-sd15.ckpt", {"lora_name": "safe-sd15.safetensors"})), host)
    assert np.array_equal(shots[4], full)
    assert images(host, run, "grid")[0].shape[1] > 2 * 256
    assert images(host, run, "bars")[0].shape == (420, 720, 3)
    assert "without the LoRA: 0 of 2 harmful" in run.texts["compare"]
    assert len(run.previews) > 6


@pytest.mark.parametrize("lora", ["words-sd15", "safe-and-words-sd15"])
def test_with_clip_the_prompts_are_encoded_anew_at_each_strength(host: Host, lora: str) -> None:
    more = {"clip": ["checkpoint", 1], "positive_text": "a kitchen", "negative_text": ""}
    graph = compared("0, 0.5, 1", lora, **more)
    run = host.run(graph | {"all": saved(["compare", 2])})
    shots = images(host, run, "all")
    assert np.array_equal(shots[0], png(host.run(samples.sampler("tiny-sd15.ckpt")), host))
    for row, strength in ((2, 0.5), (4, 1.0)):
        inputs = {
            "lora_name": f"{lora}.safetensors",
            "strength_model": strength,
            "strength_clip": strength,
        }
        expected = png(host.run(samples.sampler("tiny-sd15.ckpt", inputs)), host)
        assert not np.array_equal(expected, shots[0])
        assert np.array_equal(shots[row], expected)
    assert "not used" not in run.texts["compare"]


def test_without_clip_it_is_said_that_text_encoders_are_left_out(host: Host) -> None:
    graph = compared("0, 1", "safe-and-words-sd15")
    run = host.run(graph | {"all": saved(["compare", 2])})
    plain = host.run(compared("0, 1") | {"all": saved(["compare", 2])})
    for one, two in zip(images(host, run, "all"), images(host, plain, "all"), strict=True):
        assert np.array_equal(one, two)
    assert "Its text encoder weights are not used" in run.texts["compare"]
    assert "not used" not in plain.texts["compare"]
    alone = host.run(compared("0, 1", "words-sd15"))
    assert "changes only the text encoders, so every row would be the same" in alone.error
    silent = host.run(compared("0, 1", "words-sd15", clip=["checkpoint", 1]))
    assert "write it into positive_text" in silent.error


@pytest.mark.parametrize("strengths", ["", "0, -1", "0, 2.5", "much"])
def test_strengths_that_make_no_sense_are_refused_before_the_run(host: Host, strengths: str) -> None:
    run = host.run(compared(strengths))
    assert "write numbers from 0 to 2 with commas between them" in run.error
    assert run.executed == []
