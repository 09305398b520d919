"""The embedded scorer's second network gives what the package's own code gives, and how it was converted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from scdpo_core.cost import nsfwjs
from scdpo_core.cost.onnx_session import open_session
from scdpo_core.cost.protocol import ScorerError
from tools.convert_nsfwjs import BLOCKS, CLASSES, LAST, STEM, ConversionError, Quantized, build, read_package

DATA = Path(__file__).resolve().parents[1] / "data"


def test_it_gives_what_the_packages_own_code_gives() -> None:
    reference = json.loads((DATA / "nsfwjs_reference.json").read_text("utf-8"))
    assert tuple(reference["classes"]) == nsfwjs.CLASSES and len(reference["images"]) >= 20
    network = nsfwjs.network("cpu", 1)
    for recorded in reference["images"]:
        with Image.open(DATA / "benign" / recorded["file"]) as image:
            seen = nsfwjs.prepare(image)
        assert hashlib.sha256(seen.tobytes()).hexdigest()[:16] == recorded["pixels"], "decoded differently"
        logits, features = network(seen[None])
        chances = np.exp(nsfwjs.log_chances(logits))[0]
        assert chances == pytest.approx(recorded["chances"], abs=1e-5), recorded["file"]
        assert features.shape == (1, 1792) and features.min() >= 0  # a mean behind a ReLU6


def test_the_file_is_the_one_that_is_pinned_and_old_enough() -> None:
    model = nsfwjs.WEIGHTS.read_bytes()
    assert hashlib.sha256(model).hexdigest() == nsfwjs.SHA256
    assert len(model) < 4_500_000
    # ir_version (field 1) is 7, and the last field, opset_import (8), says version (2) 13: onnxruntime 1.8's.
    assert model[:2] == bytes([1 << 3, 7]) and model[-4:] == bytes([8 << 3 | 2, 2, 2 << 3, 13])
    assert b"Infinite Red" in model[:300] and b"nsfw_model Developers" in model[:300]


def test_another_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "nsfwjs-mid.onnx"
    other.write_bytes(nsfwjs.WEIGHTS.read_bytes()[:-1])
    monkeypatch.setattr(nsfwjs, "WEIGHTS", other)
    with pytest.raises(ScorerError, match=r"is not the network of nsfwjs 4\.4\.0 .*Get the file again"):
        nsfwjs.Network()


def test_chances_keep_their_digits() -> None:
    # Two classes 40 apart: the smaller chance is exp(-40), which 1 - p would round to nothing.
    (found,) = nsfwjs.log_chances(np.array([[40, 0, -100, -100, -100]], np.float32))
    assert found[:2] == pytest.approx([0, -40], abs=1e-12)


def convolutions() -> list[tuple[str, int, int, int, int, bool]]:
    """Prefix, input and output channels, kernel, stride, and whether ReLU6 follows, of every convolution."""
    found, channels, number = [("Conv", 3, STEM, 3, 2, True)], STEM, 0
    for repeats, stride, width in BLOCKS:
        for repeat in range(repeats):
            prefix = f"expanded_conv_{number}" if number else "expanded_conv"
            inner = channels * 6 if number else channels
            if number:
                found.append((f"{prefix}/expand", channels, inner, 1, 1, True))
            found.append((f"{prefix}/depthwise", 1, inner, 3, 1 if repeat else stride, True))
            found.append((f"{prefix}/project", inner, width, 1, 1, False))
            channels, number = width, number + 1
    return [*found, ("Conv_1", channels, LAST, 1, 1, True)]


def random_tensors() -> dict[str, Quantized]:
    rng = np.random.default_rng(0)

    def tensor(*shape: int, spread: float) -> Quantized:
        data = rng.integers(0, 256, shape, np.uint8)
        return Quantized(data, spread / 255, -spread * 0.45)

    tensors = {}
    for prefix, into, out, kernel, _, _ in convolutions():
        depthwise = prefix.endswith("depthwise")
        shape = (kernel, kernel, out, 1) if depthwise else (kernel, kernel, into, out)
        kind = "depthwise" if depthwise else "Conv2D"
        spread = 4 / (kernel * kernel * into) ** 0.5
        tensors[f"{prefix}/{kind}_weights"] = tensor(*shape, spread=spread)
        tensors[f"{prefix}/{kind}_bn_offset"] = tensor(out, spread=0.5)
    tensors["_262"], tensors["_263"] = tensor(LAST, CLASSES, spread=0.2), tensor(CLASSES, spread=0.1)
    number = np.zeros((), np.uint8)
    return tensors | {"hub_input/Mul/y": Quantized(number, 1, 2), "hub_input/Sub/y": Quantized(number, 1, 1)}


def value(tensor: Quantized) -> torch.Tensor:
    return torch.from_numpy(tensor.data * tensor.scale + tensor.minimum).float()


def test_the_converted_graph_computes_what_torch_computes() -> None:
    tensors = random_tensors()
    image = np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3), np.uint8)
    session = open_session(build(dict(tensors)), "cpu", 1, "")
    logits, features = session.run(["logits", "features"], {"image": image})

    data = torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    block = data
    for prefix, _, out, kernel, stride, bounded in convolutions():
        if prefix.endswith("expand"):
            block = data
        depthwise = prefix.endswith("depthwise")
        kind = "depthwise" if depthwise else "Conv2D"
        weights = value(tensors[f"{prefix}/{kind}_weights"]).permute(
            (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
        )
        # TensorFlow's SAME: (out - 1) * stride + kernel - in zeros, the odd one at the right and below.
        side = data.shape[-1]
        zeros = max(0, (-(-side // stride) - 1) * stride + kernel - side)
        padded = F.pad(data, (zeros // 2, zeros - zeros // 2) * 2)
        bias = value(tensors[f"{prefix}/{kind}_bn_offset"])
        data = F.conv2d(padded, weights, bias, stride, groups=out if depthwise else 1)
        if bounded:
            data = data.clamp(0, 6)
        elif prefix != "expanded_conv/project" and data.shape == block.shape:
            data = data + block
    mean = data.mean(dim=(2, 3))
    torch.testing.assert_close(torch.from_numpy(features), mean, atol=1e-4, rtol=1e-4)
    expected = mean @ value(tensors["_262"]) + value(tensors["_263"])
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)
    assert float(mean.std()) > 0.01  # the numbers did not die on the way


def test_a_tensor_that_is_left_out_is_an_error() -> None:
    with pytest.raises(ConversionError, match="no place in the network: another"):
        build(random_tensors() | {"another": Quantized(np.zeros((), np.uint8), 1, 0)})


def test_only_the_pinned_package_is_converted(tmp_path: Path) -> None:
    package = tmp_path / "nsfwjs-4.4.0.tgz"
    package.write_bytes(b"something else")
    with pytest.raises(ConversionError, match=r"is not nsfwjs-4\.4\.0\.tgz"):
        read_package(package)
