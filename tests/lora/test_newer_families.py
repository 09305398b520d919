"""LoRAs of Z-Image and Qwen-Image: every name that hosts take, what tells their family, and wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scdpo_core.lora.adapter import attach_file
from scdpo_core.lora.file import load_lora, read_lora_info, write_lora
from scdpo_core.lora.formats.convert import from_file, to_file
from scdpo_core.lora.formats.keys import DIALECTS, addresses
from scdpo_core.lora.identity import base_family, sidecar_version
from scdpo_core.lora.weights import by_module
from scdpo_core.types import ScdpoError
from tests.support.lora_models import denoiser, lora_for, module_shapes

QUERY = "layers.0.attention.to_q"
FUSED = "layers.0.attention.qkv"
QWEN = "transformer_blocks.59.attn.add_k_proj"


@pytest.mark.parametrize(
    ("stem", "module"),
    [
        (f"diffusion_model.{QUERY}", QUERY),
        (f"transformer.{QUERY}", QUERY),
        (QUERY, QUERY),
        (f"base_model.model.{QUERY}", QUERY),
        ("lycoris_layers_0_attention_to_q", QUERY),
        ("lora_unet_layers_0_attention_out", "layers.0.attention.to_out.0"),
        ("diffusion_model.layers.0.attention.out", "layers.0.attention.to_out.0"),
        ("lora_unet_context_refiner_1_feed_forward_w2", "context_refiner.1.feed_forward.w2"),
        ("lora_unet_layers_3_adaLN_modulation_0", "layers.3.adaLN_modulation.0"),
        ("lycoris_all_final_layer_2-1_linear", "all_final_layer.2-1.linear"),
        (f"transformer.{QWEN}", QWEN),
        (f"diffusion_model.{QWEN}", QWEN),
        (QWEN, QWEN),
        ("lycoris_transformer_blocks_59_attn_add_k_proj", QWEN),
        ("lora_unet_transformer_blocks_59_attn_add_k_proj", QWEN),
        ("lora_unet_transformer_blocks_0_img_mlp_net_0_proj", "transformer_blocks.0.img_mlp.net.0.proj"),
        ("lora_unet_transformer_blocks_0_txt_mod_1", "transformer_blocks.0.txt_mod.1"),
    ],
)
def test_every_name_that_hosts_take_is_read(stem: str, module: str) -> None:
    (address,) = addresses([f"{stem}.lora_A.weight" if "." in stem else f"{stem}.lora_down.weight"]).values()
    assert (address.modules, address.part) == ((module,), "down")


@pytest.mark.parametrize("stem", [f"diffusion_model.{FUSED}", f"lora_unet_{FUSED.replace('.', '_')}"])
def test_a_fused_matrix_is_split_into_queries_keys_and_values(stem: str) -> None:
    down, up = torch.randn(2, 8), torch.randn(24, 2)
    state = from_file({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}, {})
    for number, letter in enumerate("qkv"):
        module = f"layers.0.attention.to_{letter}"
        assert torch.equal(state[f"{module}.down"], down)
        assert torch.equal(state[f"{module}.up"], up[8 * number : 8 * number + 8])
    assert to_file(state, "comfyui", "z_image").tensors.keys() == {
        f"diffusion_model.{FUSED}.lora_{part}.weight" for part in ("down", "up")
    }


def test_names_that_layouts_share_mean_what_the_file_is_for() -> None:
    final = "lora_unet_final_layer_linear.lora_down.weight"
    z_image = addresses([final, "lora_unet_layers_0_feed_forward_w1.lora_down.weight"])
    flux = addresses([final, "lora_unet_single_blocks_0_linear2.lora_down.weight"])
    assert z_image[final].modules == ("all_final_layer.2-1.linear",)
    assert flux[final].modules == ("proj_out",)


@pytest.mark.parametrize("family", ["z_image", "qwen_image", "flux", "sd3"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_file_without_metadata_is_told_by_its_names(family: str, dialect: str) -> None:
    state = lora_for(module_shapes(family, text=False), rank=1)
    tensors = to_file(state, dialect, family).tensors  # type: ignore[arg-type]
    found = base_family(addresses(tensors).values(), by_module(from_file(tensors, {})), {})
    assert found == family


@pytest.mark.parametrize(
    ("family", "width", "blocks"), [("qwen_image", 3072, 60), ("flux", 3072, 19), ("sd3", 2432, 38)]
)
def test_attention_alone_is_told_by_its_width_and_depth(family: str, width: int, blocks: int) -> None:
    state = {}
    for block in range(blocks):
        module = f"transformer_blocks.{block}.attn.to_q"
        state |= {f"{module}.down": torch.zeros(1, width), f"{module}.up": torch.zeros(width, 1)}
    tensors = to_file(state, "peft", family).tensors
    assert base_family(addresses(tensors).values(), by_module(state), {}) == family


@pytest.mark.parametrize(("family", "sidecar"), [("z_image", "zit"), ("qwen_image", "qwen")])
def test_a_file_goes_round_and_fits_no_other_model(family: str, sidecar: str, tmp_path: Path) -> None:
    shapes = module_shapes(family, blocks=2)
    state = lora_for(shapes, rank=1, dtype=torch.float32)
    path = tmp_path / "calm.safetensors"
    write_lora(path, state, dialect="kohya", family=family, metadata={"scdpo_family": family})
    assert read_lora_info(path).family == family
    back, _ = load_lora(path)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    assert sidecar_version(family, ["Unknown", "sd", "xl", "flux", "qwen", "zit"]) == sidecar
    with pytest.raises(ScdpoError, match="for another"):
        attach_file(denoiser("flux"), path)
