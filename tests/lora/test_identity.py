"""Which base model a LoRA is for, where FLUX.1, Chroma1 and FLUX.2 share names: metadata and shapes tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scdpo_core.lora.file import load_lora, read_lora_info, save_lora
from scdpo_core.lora.identity import sidecar_version
from scdpo_core.types import ScdpoError

QUERY = "transformer_blocks.0.attn.to_q"
MODULATION = "transformer_blocks.0.norm1.linear"
GUIDANCE = "distilled_guidance_layer.layers.0.linear_1"


def _file(path: Path, module: str, **metadata: str) -> Path:
    down, up = torch.ones(2, 3072), torch.ones(8, 2)
    stem = f"transformer.{module}"
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, str(path), metadata or None)
    return path


@pytest.mark.parametrize(
    ("module", "metadata", "family"),
    [
        (QUERY, {}, "flux"),  # nothing tells, and far more LoRAs are for FLUX.1
        (MODULATION, {}, "flux"),
        (GUIDANCE, {}, "chroma"),
        (QUERY, {"ss_base_model_version": "chroma"}, "chroma"),
        (QUERY, {"modelspec.architecture": "chroma/lora"}, "chroma"),
        (QUERY, {"modelspec.architecture": "Flux.1-dev/lora"}, "flux"),
        (QUERY, {"scdpo_family": "chroma"}, "chroma"),
    ],
)
def test_flux_and_chroma_are_told_apart(
    tmp_path: Path, module: str, metadata: dict[str, str], family: str
) -> None:
    file = _file(tmp_path / "lora.safetensors", module, **metadata)
    assert read_lora_info(file).family == family


@pytest.mark.parametrize(
    ("module", "said", "message"),
    [
        (MODULATION, "chroma", r"says that it is for Chroma1, but .* are those of a LoRA for FLUX\.1"),
        (GUIDANCE, "flux1", r"says that it is for FLUX\.1, but .* are those of a LoRA for Chroma1"),
    ],
)
def test_what_a_file_says_must_fit_its_modules(tmp_path: Path, module: str, said: str, message: str) -> None:
    file = _file(tmp_path / "lora.safetensors", module, ss_base_model_version=said)
    with pytest.raises(ScdpoError, match=message):
        read_lora_info(file)


def test_our_own_say_what_they_are_for(tmp_path: Path) -> None:
    state = {f"{QUERY}.down": torch.ones(2, 3072), f"{QUERY}.up": torch.ones(3072, 2)}
    written = save_lora(tmp_path / "calm.safetensors", state, family="chroma", rank=2, alpha=2.0, facts={})
    found = load_lora(written.path)[1]
    assert found.family == "chroma"
    assert found.metadata["ss_base_model_version"] == "chroma"
    assert found.metadata["modelspec.architecture"] == "chroma/lora"


def test_forge_neo_shows_chromas_loras_with_flux() -> None:
    assert sidecar_version("chroma", ["Unknown", "sd", "xl", "flux", "klein", "zit"]) == "flux"


@pytest.mark.parametrize(("family", "rows"), [("flux", 7), ("flux2", 9)])
@pytest.mark.parametrize("said", [True, False])
def test_what_flux_2_shares_with_flux_1_is_told_by_shapes(
    tmp_path: Path, family: str, rows: int, said: bool
) -> None:
    # The first layer of a single block: queries, keys and values, and a feed-forward layer of 4 or 6 widths.
    tensors = {
        "lora_unet_single_blocks_3_linear1.lora_down.weight": torch.ones(2, 64),
        "lora_unet_single_blocks_3_linear1.lora_up.weight": torch.ones(rows * 64, 2),
    }
    metadata = {"ss_base_model_version": {"flux": "flux1", "flux2": "flux2"}[family]} if said else None
    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    state, info = load_lora(tmp_path / "lora.safetensors")
    assert info.family == family == read_lora_info(tmp_path / "lora.safetensors").family
    block = "single_transformer_blocks.3"
    parts = {
        "flux": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "flux2": ("attn.to_qkv_mlp_proj",),
    }[family]
    assert {name.removesuffix(".up") for name in state if name.endswith(".up")} == {
        f"{block}.{part}" for part in parts
    }
