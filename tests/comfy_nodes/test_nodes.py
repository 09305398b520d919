"""The ComfyUI nodes at work without ComfyUI (see `comfy_contract`)."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.comfy_contract import RECORDED, ROOT, Door, ExecutionBlocker, open_door, view
from tests.support.trained_lora import save, trained, unet_of

VERSIONS = sorted(RECORDED)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """The pack as the newest recorded ComfyUI would have it, opened once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield open_door(VERSIONS[-1], tmp_path_factory.mktemp("comfyui"), monkeypatch)


class Judge:
    """A scorer that says what it is told, as the pack's own `CostScore`."""

    id, hash, categories = "judge", "0123456789ab", ("weapon",)

    def __init__(self, door: Door, costs: Sequence[float]) -> None:
        self.kind, self.costs, self.asked, self.done = (
            door.module("scdpo_core.types").CostScore,
            costs,
            0,
            0,
        )

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def score_prepared(self, pil_images: Sequence[Image.Image]) -> list[Any]:
        self.asked += 1
        count = len(pil_images) // len(self.costs)
        if count:
            # An image with transparent areas comes in three looks.
            costs = [cost for cost in self.costs for _ in range(count)]
        else:
            # A large batch comes in parts.
            costs = list(self.costs[self.done : self.done + len(pil_images)])
            self.done += len(pil_images)
        assert len(costs) == len(pil_images)
        return [self.kind(cost, {"weapon": cost, "hate": None}, self.id, self.hash) for cost in costs]


def images(count: int = 4, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 48, 40, channels, generator=torch.Generator().manual_seed(seed))


def hidden(door: Door, name: str, prompt: dict[str, Any] | None = None) -> Any:
    """A node class as ComfyUI hands it over for one run."""
    told = types.SimpleNamespace(unique_id="7", prompt=prompt or {})
    return type(name, (door.nodes[f"SCDPO_{name}"],), {"hidden": told})


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.lists(st.floats(-0.5, 1.5, width=32), min_size=12, max_size=12))
def test_images_are_those_that_save_image_writes(door: Door, values: list[float]) -> None:
    tensor = torch.tensor(values).reshape(1, 2, 2, 3)
    # ComfyUI's own line, of nodes.SaveImage.
    expected = np.clip(255.0 * tensor[0].numpy(), 0, 255).astype(np.uint8)
    (image,) = door.module("comfy_nodes.convert").to_pil_images(tensor)
    assert np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("channels", [3, 4])
def test_images_are_the_same_however_they_lie_in_memory(door: Door, channels: int) -> None:
    # Larger than what is converted at once, with a rest; values outside of 0..1 and on the edge of a level.
    values = torch.rand(2, channels, 301, 520, generator=torch.Generator().manual_seed(3)) * 1.2 - 0.1
    values[0, :, 0] = torch.arange(520).clamp(max=255) / 255
    decoded = values.movedim(1, -1)
    assert not decoded.is_contiguous()
    expected = np.clip(255.0 * decoded.numpy(), 0, 255).astype(np.uint8)
    if channels == 4:
        expected[..., 3] = 255
        decoded[..., 3] = 1.0
    for batch in (decoded, decoded.contiguous()):
        pil_images = door.module("comfy_nodes.convert").to_pil_images(batch)
        assert [image.mode for image in pil_images] == ["RGB", "RGB"]
        assert all(
            np.array_equal(np.asarray(image), levels[..., :3])
            for image, levels in zip(pil_images, expected, strict=True)
        )


def test_other_channels_and_numbers_that_are_none(door: Door) -> None:
    convert = door.module("comfy_nodes.convert")
    grey = convert.to_pil_images(torch.full((2, 4, 5, 1), 0.5))
    assert [image.size for image in grey] == [(5, 4), (5, 4)]
    assert grey[0].getpixel((0, 0)) == (127, 127, 127)
    clear = torch.zeros(1, 4, 5, 4)
    assert convert.to_pil_images(clear)[0].getpixel((0, 0)) == (255, 255, 255)
    assert convert.to_pil_images(torch.full((1, 4, 5, 3), float("nan")))[0].getpixel((0, 0)) == (0, 0, 0)
    back = convert.to_images(convert.to_pil_images(images()))
    assert float((back - images()).abs().max()) < 1 / 255


def test_scoring_leaves_the_batch_alone_and_tells_everything(door: Door) -> None:
    batch, judge = images(2), Judge(door, (-3.0, 2.5))
    out = hidden(door, "ScoreSafetyCost").execute(batch, judge, "off")
    passed, scores, costs, highest, categories, heat, report = out.args
    assert passed is batch
    assert (costs, highest) == ([-3.0, 2.5], 2.5)
    assert [score.value for score in scores] == costs
    assert json.loads(categories) == [{"weapon": -3.0}, {"weapon": 2.5}]
    assert heat.shape == (2, 48, 40) and not heat.any()
    assert "2 images: 1 safe, 1 unsafe. Highest cost +2.50 (image 1)" in report
    assert "It cannot judge: hate." in report
    assert door.server.texts["7"] == report and out.ui["scdpo_text"] == [report]
    for shown in out.ui["images"]:
        with Image.open(door.folder / "temp" / shown["filename"]) as image:
            assert max(image.size) >= 256


def test_a_long_batch_is_reported_and_shown_by_its_highest_costs(door: Door) -> None:
    costs = [-3.0 + 0.05 * k for k in range(64)]
    out = hidden(door, "ScoreSafetyCost").execute(images(64), Judge(door, costs), "off")
    lines = out.args[-1].splitlines()
    assert len(lines) < 20 and "64 images" in lines[0]
    assert lines[1] == "The 12 highest of 64:"
    # -3 + 0.05 * 63 = 0.15
    assert lines[2].startswith("63: +0.15 review") and lines[13].startswith("52: ")
    assert len(out.ui["images"]) == 9 and len(out.args[2]) == 64
    with Image.open(door.folder / "temp" / out.ui["images"][0]["filename"]) as image:
        assert min(image.size) >= 200


def run_gate(door: Door, action: str, costs: Sequence[float], **changes: Any) -> tuple[Any, Any]:
    node = hidden(door, "SafetyGate")
    batch = images(len(costs), changes.pop("channels", 3))
    told = {"hold": "above the threshold", "threshold": 0.0, **changes}
    return batch, node.execute(batch, Judge(door, costs), action, **told)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("action", ["blur", "pixelate", "replace"])
def test_a_gate_treats_each_image_for_itself(door: Door, action: str, channels: int) -> None:
    batch, out = run_gate(door, action, (-1.0, 3.0, 0.0, 0.1), channels=channels)
    before = batch.clone()
    treated, held, any_held, mask, passed_places, held_places, report = out.args
    assert torch.equal(batch, before)
    assert torch.equal(treated[[0, 2]], batch[[0, 2]])
    assert all(float((treated[k] - batch[k]).abs().mean()) > 0.02 for k in (1, 3))
    assert torch.equal(held, batch[[1, 3]])
    assert (any_held, passed_places, held_places) == (True, [0, 2], [1, 3])
    assert mask.mean(dim=(1, 2)).tolist() == [0.0, 1.0, 0.0, 1.0]
    assert report.startswith(f"Held ({action}): 1, 3.\n")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_gate_that_holds_all_gives_covers_alone(door: Door, channels: int) -> None:
    batch, out = run_gate(door, "pixelate", (1.0, 3.0), channels=channels)
    before = batch.clone()
    treated, held, *_ = out.args
    assert torch.equal(batch, before)
    assert held is batch
    assert treated.shape == batch.shape and treated.dtype == torch.float32
    assert all(float((treated[k] - batch[k]).abs().mean()) > 0.02 for k in (0, 1))
    assert channels < 4 or bool((treated[..., 3] == 1.0).all())


@pytest.mark.parametrize(("cover", "action"), [("linear", "blur"), ("nearest-exact", "pixelate")])
@pytest.mark.parametrize("size", [(192, 320), (1, 3)])
def test_what_a_cover_lets_through_fills_the_image(
    door: Door, cover: str, action: str, size: tuple[int, int]
) -> None:
    convert, gate = (door.module(name) for name in ("comfy_nodes.convert", "scdpo_core.reports.covers"))
    batch = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(5))
    pil_images = convert.to_pil_images(batch)
    left = [gate.reduced(image, action) for image in pil_images]
    found = convert.enlarged(left, *size, cover)
    wanted = convert.to_images([gate.covered(image, action) for image in pil_images])
    assert found.shape == wanted.shape and found.dtype == torch.float32
    # Pillow's smooth enlarging is cubic; blocks are the same ones.
    assert float((found - wanted).abs().max()) < (0.07 if action == "blur" else 1e-6)


def test_a_long_scoring_is_left_at_an_interrupt(door: Door) -> None:
    judging, asked = door.module("comfy_nodes.scoring"), []

    class Slow(Judge):
        def score_prepared(self, pil_images: Sequence[Image.Image]) -> list[Any]:
            asked.append(len(pil_images))
            door.server.interrupted = len(asked) == 2
            return [self.kind(0.0, {}, self.id, self.hash)] * len(pil_images)

    with pytest.raises(Exception) as caught:
        judging.judged(Slow(door, ()), torch.zeros(200, 4, 4, 3))
    assert type(caught.value).__name__ == "InterruptProcessingException"
    assert len(asked) == 2 and sum(asked) < 50
    assert not door.server.interrupted


def test_a_replacement_is_fitted(door: Door) -> None:
    red = torch.zeros(1, 10, 100, 3)
    red[..., 0] = 1.0
    _, out = run_gate(door, "replace", (3.0,), replacement=red)
    assert torch.equal(out.args[0], red[:, :1, :1].expand(1, 48, 40, 3))


def test_dropping_some_all_and_none(door: Door) -> None:
    batch, out = run_gate(door, "drop", (3.0, -3.0))
    assert torch.equal(out.args[0], batch[[1]])
    _, out = run_gate(door, "drop", (3.0, 4.0))
    assert isinstance(out.args[0], ExecutionBlocker) and out.args[0].message is None
    assert isinstance(out.args[4][0], ExecutionBlocker)
    batch, out = run_gate(door, "drop", (-3.0, -4.0))
    assert out.args[0] is batch
    assert isinstance(out.args[1], ExecutionBlocker) and isinstance(out.args[5][0], ExecutionBlocker)
    assert out.args[2] is False


SWITCHED = {"class_type": "SCDPO_SafetySwitch", "inputs": {"any_held": ["7", 2], "if_safe": ["7", 0]}}


@pytest.mark.parametrize(
    ("prompt", "runs_on"),
    [
        ({"8": SWITCHED}, True),
        ({"8": {**SWITCHED, "inputs": {"any_held": ["6", 2], "if_safe": ["7", 0]}}}, False),
        ({"8": {**SWITCHED, "inputs": {"any_held": ["7", 2], "if_held": ["7", 0]}}}, False),
        ({"8": SWITCHED, "9": {"class_type": "SaveImage", "inputs": {"images": ["7", 0]}}}, False),
        ({"9": {"class_type": "SaveImage", "inputs": {"images": ["7", 1]}}}, False),
    ],
)
def test_when_all_are_dropped_a_switch_of_this_gate_still_runs(
    door: Door, prompt: dict[str, Any], runs_on: bool
) -> None:
    batch = images(2)
    node = hidden(door, "SafetyGate", prompt)
    out = node.execute(batch, Judge(door, (3.0, 4.0)), "drop", "above the threshold", 0.0)
    assert isinstance(out.args[0], ExecutionBlocker) != runs_on
    if runs_on:
        # Whatever becomes of it, it is nothing to see.
        assert float((out.args[0] - batch).abs().mean()) > 0.02
    assert "All images were held, so nodes that need them do not run" in door.server.texts["7"]


def test_stopping_says_why(door: Door) -> None:
    with pytest.raises(Exception, match=r"stopped the run\. Held \(stop\): 1\.\n2 images"):
        run_gate(door, "stop", (-3.0, 4.0))
    _, out = run_gate(door, "stop", (-3.0, -4.0))
    assert out.args[2] is False


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, [1, 2, 3]),
        ({"threshold": 1.0}, [2, 3]),
        ({"hold": "unsafe"}, [2]),
        ({"hold": "review and unsafe"}, [1, 2]),
    ],
)
def test_thresholds_and_bands(door: Door, changes: dict[str, Any], held: list[int]) -> None:
    # The last cost is no number, which is always held.
    wanted = [*held[: held.index(2) + 1], 3]
    _, out = run_gate(door, "pass", (-2.0, 0.5, 2.0, float("nan")), **changes)
    assert out.args[5] == wanted


def test_a_gate_takes_scores_without_scoring_again(door: Door) -> None:
    judge = Judge(door, (3.0, -3.0))
    node = hidden(door, "SafetyGate")
    scores = judge.score_prepared([Image.new("RGB", (4, 4))] * 2)
    out = node.execute(images(2), scores, "blur", "above the threshold", 0.0)
    assert (out.args[5], judge.asked) == ([0], 1)
    with pytest.raises(ValueError, match="2 scores for 3 images"):
        node.execute(images(3), scores, "blur", "above the threshold", 0.0)


def test_a_switch_asks_for_one_side(door: Door) -> None:
    node = door.nodes["SCDPO_SafetySwitch"]
    assert node.check_lazy_status(True, if_safe=None, if_held=None) == ["if_held"]
    assert node.check_lazy_status(False, if_safe=None, if_held=None) == ["if_safe"]
    assert node.check_lazy_status(False, if_safe=1, if_held=None) == []
    assert node.check_lazy_status(True, if_safe=None) == []
    assert node.execute(True, if_safe=None, if_held="b").args == ("b",)
    assert isinstance(node.execute(True, if_safe="a").args[0], ExecutionBlocker)


def test_a_cost_model_is_loaded_once_and_again_when_its_file_changes(door: Door) -> None:
    node = door.nodes["SCDPO_LoadCostModel"]
    own = ROOT / "scdpo_core" / "micro" / "weights" / "cost.safetensors"
    file = door.folder / "models" / "safety_cost" / "own.safetensors"
    file.write_bytes(own.read_bytes())
    (file.parent / "encoder.safetensors").write_bytes(b"no cost model")
    choices = view(node)["inputs"]["cost_model"]["options"]
    assert "own.safetensors" in choices and "encoder.safetensors" not in choices
    first = node.execute("own.safetensors", "auto").args[0]
    assert node.execute("own.safetensors", "auto").args[0] is first
    print_before = node.fingerprint_inputs("own.safetensors", "auto")
    import os

    os.utime(file, ns=(5, 5))
    assert node.fingerprint_inputs("own.safetensors", "auto") != print_before
    assert node.execute("own.safetensors", "auto").args[0] is not first


@pytest.mark.parametrize("text", ["", "a", "0,,-1", "3", "nan"])
def test_strengths_that_make_no_sense(door: Door, text: str) -> None:
    compare = door.nodes["SCDPO_CompareBeforeAfter"]
    assert "numbers from 0 to 2" in compare.validate_inputs(text)


def test_strengths(door: Door) -> None:
    assert door.module("comfy_nodes.compare").parse("0, 0.5;1,") == [0.0, 0.5, 1.0]


def test_loras_for_other_models_are_refused_by_their_file_alone(door: Door, tmp_path: Path) -> None:
    patching = door.module("comfy_nodes.lora_apply")
    save(tmp_path / "micro.safetensors", trained(unet_of()), family="micro")
    with pytest.raises(Exception, match=r"embedded model of the demo, which ComfyUI cannot run"):
        patching.read(tmp_path / "micro.safetensors")
    lora = patching.Lora(door.module("scdpo_core.types").LoraFile(Path("a.safetensors"), "sdxl", 4, 8), {})
    for kind, said in (
        ("SD15", "Stable Diffusion 1"),
        ("WAN21_T2V", r"an unknown model \(WAN21_T2V\)"),
    ):
        config = type(kind, (), {})()
        model = types.SimpleNamespace(model=types.SimpleNamespace(model_config=config))
        window = door.module("comfy_nodes.lora_window").Window()
        with pytest.raises(
            Exception, match=rf"a\.safetensors is for Stable Diffusion XL, but the model is {said}"
        ):
            patching.apply(lora, model, None, 1.0, 1.0, window)
