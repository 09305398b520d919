"""Names of LoRA weights: every dialect there and back."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from scdpo_core.lora.keys import KeyNameError, canonical_names, split, to_kohya, to_peft

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUTPUT = "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0"
CLIP = "text_model.encoder.layers.0.self_attn.q_proj"


def linear_modules(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def sd1_modules() -> list[str]:
    with torch.device("meta"):
        return linear_modules(UNet2DConditionModel(cross_attention_dim=768))


def sdxl_modules() -> list[str]:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    return linear_modules(unet)


def test_kohya_names_by_hand() -> None:
    flat = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert to_kohya(f"{QUERY}.down") == f"{flat}.lora_down.weight"
    assert to_kohya(f"{QUERY}.up") == f"{flat}.lora_up.weight"
    assert to_kohya(f"{QUERY}.alpha") == f"{flat}.alpha"
    assert to_kohya(f"{OUTPUT}.alpha").endswith("_attn2_to_out_0.alpha")
    clip = "text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"
    assert to_kohya(f"text_encoder.{CLIP}.up") == f"lora_te_{clip}"
    assert to_kohya(f"text_encoder.{CLIP}.up", two_text_encoders=True) == f"lora_te1_{clip}"
    assert to_kohya(f"text_encoder_2.{CLIP}.up") == f"lora_te2_{clip}"


def test_peft_names_by_hand() -> None:
    assert to_peft(f"{QUERY}.down") == f"unet.{QUERY}.lora_A.weight"
    assert to_peft(f"{QUERY}.up") == f"unet.{QUERY}.lora_B.weight"
    assert to_peft(f"text_encoder.{CLIP}.down") == f"text_encoder.{CLIP}.lora_A.weight"


@pytest.mark.parametrize("modules", [sd1_modules, sdxl_modules])
@pytest.mark.parametrize("told", [True, False], ids=["modules known", "vocabulary"])
def test_every_module_goes_to_kohya_and_back(modules, told: bool) -> None:  # type: ignore[no-untyped-def]
    names = [f"{module}.{part}" for module in modules() for part in ("down", "up", "alpha")]
    assert len(names) > 500
    flat = {to_kohya(name): name for name in names}
    assert len(flat) == len(names)
    assert canonical_names(flat, modules() if told else None) == flat


def test_text_encoders_go_to_kohya_and_back() -> None:
    with torch.device("meta"):
        clip = CLIPTextModel(CLIPTextConfig(num_hidden_layers=12))
    # transformers 5 dropped the outer text_model; files keep it.
    paths = [
        path if path.startswith("text_model.") else f"text_model.{path}" for path in linear_modules(clip)
    ]
    assert len(paths) == 72  # 12 layers of q, k, v, out, fc1, fc2
    for owner, two in (("text_encoder", False), ("text_encoder", True), ("text_encoder_2", True)):
        modules = [f"{owner}.{path}" for path in paths]
        flat = {to_kohya(f"{module}.down", two_text_encoders=two): f"{module}.down" for module in modules}
        assert canonical_names(flat) == flat
        assert canonical_names(flat, modules) == flat


def test_peft_names_go_there_and_back() -> None:
    names = [f"{module}.{part}" for module in sd1_modules() for part in ("down", "up", "alpha")]
    names += [f"text_encoder.{CLIP}.up", f"text_encoder_2.{CLIP}.down"]
    dialect = {to_peft(name): name for name in names}
    assert canonical_names(dialect) == dialect


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (f"base_model.model.{QUERY}.lora_A.weight", f"{QUERY}.down"),
        (f"base_model.model.unet.{QUERY}.lora_B.weight", f"{QUERY}.up"),
        (f"unet.{QUERY}.lora_B.default.weight", f"{QUERY}.up"),
        (f"{QUERY}.lora_A.weight", f"{QUERY}.down"),
        (f"unet.{QUERY}.lora.down.weight", f"{QUERY}.down"),
        (f"unet.{QUERY}.lora_linear_layer.up.weight", f"{QUERY}.up"),
        (
            f"unet.{QUERY.removesuffix('to_q')}processor.to_q_lora.up.weight",
            f"{QUERY}.up",
        ),
        (
            f"unet.{OUTPUT.removesuffix('to_out.0')}processor.to_out_lora.down.weight",
            f"{OUTPUT}.down",
        ),
        (f"unet.{QUERY}.alpha", f"{QUERY}.alpha"),
    ],
)
def test_older_and_rarer_forms(key: str, name: str) -> None:
    assert canonical_names([key]) == {key: name}
    assert canonical_names([key], [QUERY, OUTPUT]) == {key: name}


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.dora_scale",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.hada_w1_a",
        "lora_te_down_blocks_0_attentions_0_proj_in.alpha",
        "model.diffusion_model.input_blocks.0.0.weight",
        "down_blocks.0.resnets.0.conv1.weight",
        "",
    ],
)
def test_an_unknown_key_is_named(key: str, told: bool) -> None:
    with pytest.raises(KeyNameError, match=f"'{key}'"):
        canonical_names([key], sd1_modules() if told else None)


def test_a_key_for_another_model_is_named() -> None:
    for key in (to_kohya(f"{QUERY}.up"), to_peft(f"{QUERY}.up")):
        with pytest.raises(KeyNameError, match=f"'{key}' names no module of this model"):
            canonical_names([key], [OUTPUT])


def test_two_names_for_one_weight_are_refused() -> None:
    with pytest.raises(KeyNameError, match="two names for the same weight"):
        canonical_names([to_kohya(f"{QUERY}.up"), to_peft(f"{QUERY}.up")])


def test_modules_that_kohya_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(KeyNameError, match="share the kohya name"):
        canonical_names(["lora_unet_a_b_c.alpha"], ["a.b_c", "a_b.c"])


def test_names_that_are_not_canonical_are_refused() -> None:
    assert split(f"{QUERY}.down") == (QUERY, "down")
    for name in (f"{QUERY}.weight", "down", ".up"):
        with pytest.raises(KeyNameError):
            to_kohya(name)
