"""Matrices in 8 and 4 bits: how exact, how small, and that a LoRA trains on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scdpo_core.families import FAMILIES, LoadOptions
from scdpo_core.families.quantization import QuantizedLinear, quantize
from scdpo_core.training.job import run_job
from tests.support.tiny import tiny_pairs, tiny_settings
from tests.support.tiny_families import FLOWS, tiny_folder
from tests.support.tiny_parts import T5_TOKENS

CPU = torch.device("cpu")
# The largest error of a weight, as a share of the largest in its row or block: half a step of the code.
ERRORS = {"int8": 0.5 / 127, "fp8": 1 / 16, "nf4": 0.16}


def _linear(outputs: int = 24, inputs: int = 40) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs).requires_grad_(False)


@pytest.mark.parametrize("kind", ERRORS)
def test_the_matrix_comes_back_within_half_a_step(kind: Any) -> None:
    layer = _linear()
    coded = QuantizedLinear(layer, kind)
    assert coded.bias is layer.bias
    dense = coded.dense(torch.float32)
    assert dense.shape == layer.weight.shape
    highest = layer.weight.abs().amax(dim=1, keepdim=True) if kind != "nf4" else layer.weight.abs().max()
    assert bool(((dense - layer.weight).abs() <= ERRORS[kind] * highest).all())
    assert bool((dense != layer.weight).any())


def test_codes_as_worked_by_hand() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.27, -0.5, 0.004, 0.0]])
    coded = QuantizedLinear(layer, "int8")
    assert coded.weight.tolist() == [[127, -50, 0, 0]]
    # Of 16 levels from -1 to 1: 1 is number 15, -0.395 number 3, 0 number 7, 0.0796 number 8; two a byte.
    layer.weight.data = torch.tensor([[2.0, -0.8, 0.0, 0.16]])
    coded = QuantizedLinear(layer, "nf4")
    assert coded.weight.tolist() == [(15 << 4) + 3, (7 << 4) + 8]
    assert coded.dense(torch.float32)[0].tolist() == pytest.approx([2.0, -0.78983, 0.0, 0.15916], abs=1e-4)


def test_a_row_of_zeros_stays_one() -> None:
    layer = _linear()
    layer.weight.data[0] = 0
    for kind in ("int8", "fp8"):
        assert not bool(QuantizedLinear(layer, kind).dense(torch.float32)[0].any())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ERRORS)
def test_values_and_gradients_are_those_of_the_matrix_it_stands_for(kind: Any) -> None:
    coded = QuantizedLinear(_linear(), kind)
    values = torch.randn(3, 5, 40, requires_grad=True)
    expected = values.detach().clone().requires_grad_()
    (coded(values) ** 2).sum().backward()
    (nn.functional.linear(expected, coded.dense(torch.float32), coded.bias) ** 2).sum().backward()
    torch.testing.assert_close(values.grad, expected.grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert coded(values).dtype == torch.bfloat16


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.25), ("fp8", 0.25), ("nf4", 0.125)])
def test_it_is_as_small_as_it_says(kind: Any, share: float) -> None:
    layer = _linear(256, 512)
    coded = QuantizedLinear(layer, kind)
    code = coded.weight.numel() * coded.weight.element_size()
    assert code == layer.weight.numel() * 4 * share
    extra = sum(buffer.numel() * buffer.element_size() for buffer in coded.buffers())
    assert extra < 0.15 * code


def test_only_frozen_layers_inside_blocks_are_coded(tmp_path: Path) -> None:
    options = LoadOptions(t5_tokens=T5_TOKENS, quantize="int8")
    model = FAMILIES["flux"].load(tiny_folder("flux", tmp_path / "base"), CPU, torch.float32, options)
    coded = [name for name, module in model.denoiser.named_modules() if isinstance(module, QuantizedLinear)]
    assert coded
    assert all("transformer_blocks." in name for name in coded)
    assert quantize(model.denoiser, "off") == 0
    assert isinstance(model.denoiser.get_submodule("x_embedder"), nn.Linear)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ERRORS)
def test_every_family_answers_nearly_the_same(family: str, kind: Any, tmp_path: Path) -> None:
    folder = tiny_folder(family, tmp_path / "base")
    models = [
        FAMILIES[family].load(folder, CPU, torch.float32, LoadOptions(t5_tokens=T5_TOKENS, quantize=each))
        for each in ("off", kind)
    ]
    words = models[0].encode_prompts(["a thing"])
    dice = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn((1, *models[0].latent_shape()), generator=dice) for _ in range(2))
    times = models[0].timesteps.last(torch.ones(1)).to(torch.float32 if family in FLOWS else torch.int64)
    plain, coded = (
        model.residuals(latents, noise, times // 2 if family not in FLOWS else times / 2, words, "native")
        for model in models
    )
    assert bool((plain != coded).any())
    # Relative to the answer's own size.
    error = float((plain - coded).square().mean().sqrt() / plain.square().mean().sqrt())
    assert error < {"int8": 0.01, "fp8": 0.05, "nf4": 0.15}[kind]


@pytest.mark.parametrize(("quantized", "lora"), [("int8", "lokr"), ("fp8", "loha"), ("nf4", "lora")])
def test_a_lora_trains_on_it_and_resumes(quantized: str, lora: str, tmp_path: Path) -> None:
    folder = tiny_folder("sdxl", tmp_path / "base")
    pairs = tiny_pairs(tmp_path / "pairs", 4)
    settings = tiny_settings(
        folder, pairs, tmp_path / "run", quantize=quantized, kind=lora, max_train_steps=3, samples=1,
        gradient_checkpointing=True, precision="bf16",
    )  # fmt: skip
    result = run_job(settings)
    assert result.outcome.step == 3
    before, after = sorted((result.folder / "samples").iterdir())
    assert before.read_bytes() != after.read_bytes()
