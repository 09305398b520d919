"""Laying out and compiling the denoiser: what is asked for happens, and the answers stay what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scdpo_core.config.settings import ModelSettings
from scdpo_core.families.sd1 import SD1, SD1Model
from scdpo_core.lora.adapter import LoraAdapter, attach
from scdpo_core.training.distributed import SingleProcess
from scdpo_core.training.loading import make_ready, repeated_blocks, wants_channels_last
from tests.support.tiny import LATENT_CHANNELS, TOKENS, WIDTH, tiny_sd_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


def fresh(base: Path) -> tuple[SD1Model, LoraAdapter]:
    model = SD1().load(base, CPU, torch.float32)
    adapter = attach(model.denoiser, rank=2, alpha=2.0, targets="attention", seed=0)
    with torch.no_grad():
        for number, weight in enumerate(adapter.parameters()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.3)
    return model, adapter


def answers(model: SD1Model, adapter: LoraAdapter) -> tuple[torch.Tensor, torch.Tensor]:
    """With the LoRA and without it."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn((2, LATENT_CHANNELS, 8, 8), generator=generator)
    words = torch.randn((2, TOKENS, WIDTH), generator=generator)
    inputs = (latents, torch.tensor([10, 700]))
    with torch.no_grad():
        on = model.denoiser(*inputs, encoder_hidden_states=words).sample
        with adapter.disabled():
            return on, model.denoiser(*inputs, encoder_hidden_states=words).sample


def test_channels_last_changes_the_order_in_memory_and_nothing_else(base: Path) -> None:
    plain, laid = fresh(base), fresh(base)
    make_ready(*laid, ModelSettings(channels_last="on"), SingleProcess())
    weights = [module.weight for module in laid[0].denoiser.modules() if isinstance(module, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    for got, expected in zip(answers(*laid), answers(*plain), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_channels_last_is_for_convolutions_of_16_bits_on_a_gpu(base: Path) -> None:
    model = fresh(base)[0]
    assert not wants_channels_last(ModelSettings(), model)
    model.dtype, model.device = torch.bfloat16, torch.device("cuda")
    assert wants_channels_last(ModelSettings(), model)
    assert not wants_channels_last(ModelSettings(channels_last="off"), model)
    model.denoiser = nn.Linear(1, 1)
    assert not wants_channels_last(ModelSettings(), model)


def test_what_is_compiled_is_what_was_asked_for(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapter = fresh(base)
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    make_ready(model, adapter, ModelSettings(), SingleProcess())
    assert compiled == []
    make_ready(model, adapter, ModelSettings(compile="blocks"), SingleProcess())
    # Two levels down (one each), the middle, two levels up (two each).
    assert compiled == ["BasicTransformerBlock"] * 7
    assert torch._dynamo.config.cache_size_limit >= 64
    compiled.clear()
    make_ready(model, adapter, ModelSettings(compile="whole"), SingleProcess())
    assert compiled == ["UNet2DConditionModel"]
    assert repeated_blocks(nn.Linear(1, 1))[0].in_features == 1


@pytest.mark.slow
def test_compiled_blocks_answer_as_before_with_the_lora_on_and_off(base: Path) -> None:
    plain: Any = fresh(base)
    fast: Any = fresh(base)
    make_ready(*fast, ModelSettings(compile="blocks"), SingleProcess())
    expected = answers(*plain)
    assert not torch.allclose(expected[0], expected[1])
    for _ in range(2):
        for got, wanted in zip(answers(*fast), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
