"""Presets, ranks by block, and the other kinds of change that peft trains: LoHa, LoKr, DoRA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from scdpo_core.lora.adapter import LoraAdapter, attach, attach_file, target_modules
from scdpo_core.lora.algorithms import KINDS
from scdpo_core.lora.file import load_lora, save_lora
from scdpo_core.lora.formats.keys import TEXT_ENCODERS
from scdpo_core.lora.targets import module_ranks
from scdpo_core.lora.weights import by_module, delta
from scdpo_core.types import ScdpoError
from tests.support.lora_models import denoiser
from tests.support.trained_lora import answer, unet_of

MODULES = ["down_blocks.0.attentions.0.proj_in", "down_blocks.1.resnets.0.conv1", "mid_block.resnets.0.conv1"]


def shaken(adapter: LoraAdapter) -> LoraAdapter:
    """As if trained: every weight moved, rounded to float16 so that a file loses nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.copy_((weight + 0.1 * torch.randn(weight.shape, generator=generator)).half())
    return adapter


def saved(path: Path, adapter: LoraAdapter) -> Path:
    options = {"family": "sd1", "rank": adapter.rank, "alpha": adapter.alpha, "facts": {}}
    return save_lora(path, adapter.state(), **options).path  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_as_the_base_and_comes_back_from_its_file(kind: str, tmp_path: Path) -> None:
    unet = unet_of()
    base = answer(unet)
    adapter = attach(unet, rank=2, alpha=1.0, targets="conv", seed=1, kind=kind)  # type: ignore[arg-type]
    assert_close(answer(unet), base, rtol=0, atol=0)
    shaken(adapter)
    trained = answer(unet)
    assert (trained - base).abs().max() > 1e-3
    with adapter.disabled():
        assert torch.equal(answer(unet), base)
    path = saved(tmp_path / "calm.safetensors", adapter)
    again = unet_of()
    loaded, info = attach_file(again, path)
    assert (loaded.kind, info.rank) == (kind, 2)
    assert all(torch.equal(loaded.state()[name], tensor) for name, tensor in adapter.state().items())
    assert_close(answer(again), trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_what_peft_adds_is_what_files_and_hosts_say(kind: str) -> None:
    unet = unet_of()
    before = {module: unet.get_submodule(module).weight.detach().clone() for module in MODULES}
    adapter = attach(unet, rank=2, alpha=1.0, targets=MODULES, seed=1, kind=kind)  # type: ignore[arg-type]
    parts = by_module(shaken(adapter).state())
    for module, weight in before.items():
        layer = unet.get_submodule(module)
        layer.merge()
        change = layer.base_layer.weight - weight
        assert_close(delta(parts[module]).reshape(weight.shape), change, rtol=1e-4, atol=1e-5)


def test_dora_is_the_rescaled_sum() -> None:
    # DoRA (Liu et al. 2024) by rows, as peft has it: m * (W + change) / |W + change|.
    unet = unet_of()
    weight = unet.get_submodule(MODULES[0]).weight.detach().clone().flatten(1)
    adapter = attach(unet, rank=2, alpha=4.0, targets=MODULES[:1], seed=1, kind="dora")
    parts = by_module(adapter.state())[MODULES[0]]
    assert_close(parts["dora_scale"].flatten(), weight.norm(dim=1))
    shaken(adapter)
    parts = by_module(adapter.state())[MODULES[0]]
    total = weight + delta(parts).flatten(1)
    expected = parts["dora_scale"].flatten(1) * total / total.norm(dim=1, keepdim=True)
    layer = unet.get_submodule(MODULES[0])
    layer.merge()
    assert_close(layer.base_layer.weight.flatten(1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_the_seed_alone_decides_the_first_weights_of_every_kind(kind: str) -> None:
    def first(seed: int, dice: int) -> dict[str, Tensor]:
        torch.manual_seed(dice)
        options = {"rank": 2, "alpha": 2.0, "targets": MODULES, "kind": kind}
        return attach(unet_of(), seed=seed, **options).state()  # type: ignore[arg-type]

    one, two, other = first(1, 5), first(1, 6), first(2, 5)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_conv_adds_the_convolutions() -> None:
    unet = unet_of()
    extra = set(target_modules(unet, "conv")) - set(target_modules(unet, "all-linear"))
    # Residual blocks: 2 down, 2 middle, 4 up, 2 convolutions each; the shortcuts that are 1x1 but in no other
    # preset; one downsampler and one upsampler.
    kinds = [name.rsplit(".", 1)[1] for name in extra]
    assert kinds.count("conv1") == kinds.count("conv2") == 8
    assert kinds.count("conv") == 2
    assert set(kinds) == {"conv1", "conv2", "conv", "conv_shortcut"}


@pytest.mark.parametrize(
    ("family", "attention", "with_ff", "linear"),
    # SD3, 4 blocks: attention 8 in each but the last, which lacks the text's output (7), and 4 of a second
    # one in the first three; feed-forward 4, the last 2; modulation 2 a block, and 7 around them.
    # FLUX: attention 8 in 19 double blocks, 3 in 38 single ones; feed-forward 4 and 2; modulation 2 and 1;
    # 10 around them.
    [("sd3", 8 * 3 + 7 + 4 * 3, 14, 8 + 7), ("flux", 8 * 19 + 3 * 38, 4 * 19 + 2 * 38, 2 * 19 + 38 + 10)],
)
def test_presets_of_the_transformers(family: str, attention: int, with_ff: int, linear: int) -> None:
    network = denoiser(family, blocks=4)
    counts = [len(target_modules(network, preset)) for preset in ("attention", "attention+ff", "all-linear")]  # type: ignore[arg-type]
    assert counts == [attention, attention + with_ff, attention + with_ff + linear]
    everything = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    assert counts[2] == len(everything)


def test_ranks_by_block() -> None:
    modules = ["down_blocks.0.a", "down_blocks.1.a", "down_blocks.1.b", "mid_block.a", "conv_in"]
    found = module_ranks(modules, 4, {"down_blocks.1": 8, "down_blocks.1.b": 2, "mid_block": 0, "other": 1})
    assert found == {"down_blocks.0.a": 4, "down_blocks.1.a": 8, "down_blocks.1.b": 2, "conv_in": 1}
    with pytest.raises(ScdpoError, match=r"'up_blocks\.0', where the LoRA trains nothing.*mid_block"):
        module_ranks(modules, 4, {"up_blocks.0": 2})
    with pytest.raises(ScdpoError, match="negative"):
        module_ranks(modules, 4, {"other": -1})
    with pytest.raises(ScdpoError, match="rank 0"):
        module_ranks(modules[:1], 4, {"down_blocks.0": 0})


def test_blocks_train_with_their_own_rank_at_the_same_scale(tmp_path: Path) -> None:
    unet = unet_of()
    ranks = {"down_blocks.0": 0, "mid_block": 6}
    adapter = attach(unet, rank=4, alpha=2.0, targets="attention", seed=1, ranks=ranks)
    parts = by_module(shaken(adapter).state())
    found = {
        module.split(".")[0]: (own["down"].shape[0], float(own["alpha"])) for module, own in parts.items()
    }
    assert found == {"down_blocks": (4, 2.0), "mid_block": (6, 3.0), "up_blocks": (4, 2.0)}
    assert not any(module.startswith("down_blocks.0") for module in parts)
    path = saved(tmp_path / "calm.safetensors", adapter)
    assert load_lora(path)[1].rank == 6
    again = unet_of()
    attach_file(again, path)
    assert torch.equal(answer(again), answer(unet))


def test_text_encoders_train_under_the_names_of_files(tmp_path: Path) -> None:
    config = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2)
    torch.manual_seed(0)
    encoder = CLIPTextModel(config).eval()
    adapter = attach(encoder, rank=2, alpha=2.0, targets="attention+ff", seed=1, owner=TEXT_ENCODERS[0])
    assert len(adapter.modules) == 2 * 6
    assert adapter.modules[0].startswith("text_encoder.text_model.encoder.layers.0.self_attn.")
    path = saved(tmp_path / "words.safetensors", shaken(adapter))
    state, _ = load_lora(path)
    assert all(torch.equal(state[name], tensor.half()) for name, tensor in adapter.state().items())
    fresh = attach(
        CLIPTextModel(config), rank=2, alpha=2.0, targets="attention+ff", seed=2, owner=TEXT_ENCODERS[0]
    )
    fresh.load_state(state)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), adapter.parameters(), strict=True))


def test_what_a_kind_does_not_offer() -> None:
    with pytest.raises(ValueError, match="'oft'"):
        attach(unet_of(), rank=2, alpha=2.0, targets=MODULES, seed=1, kind="oft")  # type: ignore[arg-type]
    with pytest.raises(ScdpoError, match="LoKr drops no inputs"):
        attach(unet_of(), rank=2, alpha=2.0, targets=MODULES, seed=1, kind="lokr", dropout=0.1)
    unet = unet_of()
    adapter = attach(unet, rank=2, alpha=2.0, targets=MODULES, seed=1, kind="loha")
    state = attach(unet_of(), rank=2, alpha=2.0, targets=MODULES, seed=1).state()
    with pytest.raises(ScdpoError, match=r"trains other modules|is missing"):
        adapter.load_state(state)
