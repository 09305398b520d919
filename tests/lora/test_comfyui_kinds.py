"""DoRA, LoHa and LoKr, judged by ComfyUI: by key lists recorded from it, and by itself with COMFYUI_DIR set.

What peft merges into every weight is the truth, and ComfyUI's own map says which of its weights that is.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from scdpo_core.lora.adapter import LoraAdapter, attach
from scdpo_core.lora.algorithms import Kind
from scdpo_core.lora.formats.convert import to_file
from scdpo_core.lora.formats.keys import Dialect
from scdpo_core.lora.formats.layouts import UNETS
from scdpo_core.lora.formats.names import flat
from scdpo_core.lora.weights import by_module, delta
from tests.lora.test_algorithms import shaken
from tests.lora.test_comfyui import HOST_DIALECTS, RECORDED, oracle, patched_by_comfyui, with_comfyui
from tests.support.lora_models import FAMILIES, denoiser, module_shapes, text_encoders

OTHER_KINDS: tuple[Kind, ...] = ("dora", "loha", "lokr")


def made_up(kind: Kind, rows: int, inputs: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of a kind for a matrix, which share nothing with another matrix's."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if kind == "loha":
        letters = {"a": (rows, 1), "b": (1, inputs)}
        return {f"hada_w{n}_{letter}": random(*shape) for n in "12" for letter, shape in letters.items()}
    if kind == "lokr":
        return {"lokr_w1": random(2, 1), "lokr_w2_a": random(rows // 2, 1), "lokr_w2_b": random(1, inputs)}
    return {"down": random(1, inputs), "up": random(rows, 1), "dora_scale": random(rows, 1)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_every_key_we_write_is_one_that_comfyui_takes(family: str, kind: Kind) -> None:
    accepted = json.loads(gzip.decompress(RECORDED.read_bytes()))[family]
    generator = torch.Generator().manual_seed(0)
    state = {
        f"{module}.{part}": weight
        for module, (rows, inputs, *_) in module_shapes(family).items()
        for part, weight in made_up(kind, rows, inputs, generator).items()
    }
    for dialect in HOST_DIALECTS:
        keys = to_file(state, dialect, family).tensors
        stems = {key.removesuffix(".weight").rpartition(".")[0] for key in keys}
        assert sorted(stems - accepted.keys()) == []
        targets = [json.dumps(accepted[stem]) for stem in stems]
        assert len(set(targets)) == len(targets)


def on_cpu(network: nn.Module) -> nn.Module:
    """A network of the meta device with weights as large as a linear layer's first ones."""
    network = network.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(7)
    for weight in network.parameters():
        scale = max(weight[0].numel(), 1) ** -0.5 if weight.ndim > 1 else 1.0
        weight.data.copy_(scale * torch.randn(weight.shape, generator=generator))
    return network


def trained(family: str, kind: Kind) -> tuple[LoraAdapter, dict[str, Tensor], dict[str, Tensor]]:
    """An adapter on everything that can be trained; each module's weight before it, and as peft merges it."""
    preset = "conv" if family in UNETS else "all-linear"
    networks = {"": denoiser(family, blocks=2), **text_encoders(family)}
    whole: LoraAdapter | None = None
    for owner, network in networks.items():
        live = on_cpu(network)
        targets = "attention+ff" if owner else preset
        adapter = attach(live, rank=2, alpha=1.0, targets=targets, seed=1, kind=kind, owner=owner)
        whole = adapter if whole is None else whole.joined(adapter)
    assert whole is not None
    layers = dict(zip(whole.modules, whole._layers, strict=True))
    before = {module: layer.base_layer.weight.detach().clone() for module, layer in layers.items()}
    shaken(whole)
    for layer in layers.values():
        layer.merge()
    return whole, before, {module: layer.base_layer.weight.detach() for module, layer in layers.items()}


def in_comfyui(
    weights: Mapping[str, Tensor], places: Mapping[str, list[object]], family: str
) -> dict[str, Tensor]:
    """ComfyUI's weights, put together from those of diffusers' modules as its own map says."""
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for module, weight in weights.items():
        if module.startswith("text_encoder"):
            stem = module
        else:
            stem = f"lora_unet_{flat(module)}" if family in UNETS else f"transformer.{module}"
        name, *rows = places[stem]
        if rows == ["swapped"]:
            weight = torch.cat(weight.chunk(2)[::-1])
        first = rows[0] if len(rows) == 2 else 0
        assert isinstance(first, int) and (len(rows) != 2 or rows[1] == len(weight))
        pieces.setdefault(str(name), []).append((first, weight))
    ordered = {name: sorted(own, key=lambda piece: piece[0]) for name, own in pieces.items()}
    for own in ordered.values():
        assert [first for first, _ in own] == [sum(len(w) for _, w in own[:n]) for n in range(len(own))]
    return {name: torch.cat([weight for _, weight in own]) for name, own in ordered.items()}


def fit(patched: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether every weight is the expected one, but for rounding."""
    return all(
        torch.allclose(patched[name], weight.reshape(patched[name].shape), rtol=1e-6, atol=1e-6)
        for name, weight in expected.items()
    )


@with_comfyui
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_comfyui_makes_of_every_kind_what_peft_does(family: str, kind: Kind, tmp_path: Path) -> None:
    oracle("places", family, tmp_path / "places.json")
    places = json.loads((tmp_path / "places.json").read_text("utf-8"))
    adapter, before, merged = trained(family, kind)
    state = adapter.state()
    base, truth = (in_comfyui(weights, places, family) for weights in (before, merged))
    assert all(not torch.equal(base[name], truth[name]) for name in base)
    dialects: tuple[Dialect, ...] = HOST_DIALECTS if family in UNETS else (*HOST_DIALECTS, "peft")
    files = {dialect: tmp_path / f"{dialect}.safetensors" for dialect in dialects}
    for dialect, file in files.items():
        tensors = to_file(state, dialect, family).tensors
        save_file(tensors | {f"base.{name}": weight for name, weight in base.items()}, file)
    # ComfyUI 0.3.64 divides a DoRA's rows by their length before the change, and not after it.
    parts = by_module(state)
    stretch = {
        module: lengths(weight + delta(parts[module]).reshape(weight.shape)) / lengths(weight)
        for module, weight in before.items()
    }
    stretched = in_comfyui({module: merged[module] * stretch[module] for module in merged}, places, family)
    for dialect, (patched, left) in patched_by_comfyui(family, files).items():
        assert patched.keys() == truth.keys()
        if kind == "dora" and dialect == "peft":
            # It does not know peft's name for the magnitudes; docs/lora-tool.md tells.
            assert len(left) == len(adapter.modules)
            assert all(key.endswith("lora_magnitude_vector") for key in left)
            continue
        assert left == []
        assert fit(patched, truth) or (kind == "dora" and fit(patched, stretched)), dialect


def lengths(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight.flatten(1), dim=1).reshape(-1, *[1] * (weight.ndim - 1))
