"""Names of LoRA weights: every dialect there and back, for every module of every family."""

from __future__ import annotations

import pytest
import torch

from scdpo_core.lora.formats.convert import from_file, to_file
from scdpo_core.lora.formats.keys import DIALECTS, KeyNameError, addresses, split, text_module
from scdpo_core.lora.formats.layouts import diffusers_modules, original_place
from tests.support.lora_models import FAMILIES, lora_for, module_shapes
from tests.support.trained_lora import spoken, to_kohya, to_peft

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUTPUT = "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0"
CLIP = "text_model.encoder.layers.0.self_attn.q_proj"


def names_of(keys: list[str], modules: list[str] | None = None) -> dict[str, str]:
    return {key: address.name for key, address in addresses(keys, modules).items()}


def test_names_by_hand() -> None:
    flat = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert to_kohya(f"{QUERY}.down") == f"{flat}.lora_down.weight"
    assert to_kohya(f"{QUERY}.up") == f"{flat}.lora_up.weight"
    assert to_kohya(f"{QUERY}.alpha") == f"{flat}.alpha"
    assert to_kohya(f"{QUERY}.hada_w1_a") == f"{flat}.hada_w1_a"
    assert to_kohya(f"{OUTPUT}.alpha").endswith("_attn2_to_out_0.alpha")
    assert to_peft(f"{QUERY}.down") == f"unet.{QUERY}.lora_A.weight"
    assert to_peft(f"{QUERY}.dora_scale") == f"unet.{QUERY}.lora_magnitude_vector"
    ldm = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    assert spoken(f"{QUERY}.up", "comfyui") == f"diffusion_model.{ldm}.lora_up.weight"
    assert spoken(f"{QUERY}.up", "kohya-ldm") == f"lora_unet_{ldm.replace('.', '_')}.lora_up.weight"


def test_text_encoders_names_by_hand() -> None:
    first, second, flat = f"text_encoder.{CLIP}.up", f"text_encoder_2.{CLIP}.up", CLIP.replace(".", "_")
    assert [spoken(first, "kohya", family) for family in ("sd1", "sd2", "sdxl", "sd3", "flux")] == [
        f"lora_{te}_{flat}.lora_up.weight" for te in ("te", "te", "te1", "te1", "te1")
    ]
    assert spoken(second, "kohya", "sdxl") == f"lora_te2_{flat}.lora_up.weight"
    assert spoken(second, "peft", "sdxl") == f"text_encoder_2.{CLIP}.lora_B.weight"
    assert spoken(first, "comfyui", "sd2") == f"text_encoders.clip_h.transformer.{CLIP}.lora_up.weight"
    assert spoken(second, "comfyui", "sd3") == f"text_encoders.clip_g.transformer.{CLIP}.lora_up.weight"


@pytest.mark.parametrize(
    ("family", "module", "original"),
    [
        ("sd1", "down_blocks.2.downsamplers.0.conv", "input_blocks.9.0.op"),
        ("sd1", "down_blocks.3.resnets.1.conv2", "input_blocks.11.0.out_layers.3"),
        ("sd1", "mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
        ("sd1", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
        ("sdxl", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("sd2", "up_blocks.3.attentions.2.proj_out", "output_blocks.11.1.proj_out"),
        ("sdxl", "add_embedding.linear_2", "label_emb.0.2"),
        ("sd3", "transformer_blocks.7.attn2.to_out.0", "joint_blocks.7.x_block.attn2.proj"),
        ("sd3", "pos_embed.proj", "x_embedder.proj"),
        ("flux", "transformer_blocks.18.ff_context.net.2", "double_blocks.18.txt_mlp.2"),
        ("z_image", "layers.29.attention.to_out.0", "layers.29.attention.out"),
        ("z_image", "context_refiner.1.feed_forward.w3", "context_refiner.1.feed_forward.w3"),
        ("z_image", "all_x_embedder.2-1", "x_embedder"),
        ("z_image", "all_final_layer.2-1.linear", "final_layer.linear"),
        ("qwen_image", "transformer_blocks.59.img_mlp.net.2", "transformer_blocks.59.img_mlp.net.2"),
        ("flux", "single_transformer_blocks.37.proj_out", "single_blocks.37.linear2"),
        ("flux", "proj_out", "final_layer.linear"),
        ("chroma", "single_transformer_blocks.37.proj_out", "single_blocks.37.linear2"),
        ("flux2", "single_transformer_blocks.19.attn.to_qkv_mlp_proj", "single_blocks.19.linear1"),
        ("flux2", "transformer_blocks.4.ff_context.linear_in", "double_blocks.4.txt_mlp.0"),
        ("flux2", "double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin"),
        (
            "chroma",
            "distilled_guidance_layer.layers.4.linear_2",
            "distilled_guidance_layer.layers.4.out_layer",
        ),
    ],
)
def test_original_places_by_hand(family: str, module: str, original: str) -> None:
    assert original_place(module, family) == (original, (module,))
    # Layouts share names: the whole file's keys tell which is meant.
    assert diffusers_modules(original, [family]) == (module,)


def test_fused_places_by_hand() -> None:
    block = "single_transformer_blocks.3"
    members = (f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v", f"{block}.proj_mlp")
    assert diffusers_modules("single_blocks.3.linear1") == members
    assert all(original_place(member, "flux") == ("single_blocks.3.linear1", members) for member in members)
    assert original_place("transformer_blocks.0.attn.to_k", "sd3")[0] == "joint_blocks.0.x_block.attn.qkv"  # type: ignore[index]


def test_places_that_no_model_has() -> None:
    for module in ("down_blocks.0.resnets.2.conv1", "down_blocks.0.upsamplers.0.conv", "proj_mlp", ""):
        assert original_place(module, "sd1") is None
    for path in ("input_blocks.3.0.in_layers.2", "input_blocks.1.0.op", "input_blocks.0.1.proj_in", "out.1"):
        assert diffusers_modules(path) is None
    with pytest.raises(ValueError, match="micro"):
        original_place(QUERY, "micro")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_module_of_every_family_goes_there_and_back(family: str, dialect: str) -> None:
    shapes = module_shapes(family, blocks=4)
    # float32: of the smallest float16 numbers, peft's half of a weight would lose the last bit.
    state = lora_for(shapes, dtype=torch.float32 if dialect == "peft" else torch.float16)
    written = to_file(state, dialect, family)  # type: ignore[arg-type]
    for modules in (None, list(shapes)):
        back = from_file(written.tensors, written.metadata, modules)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("family", "count"),
    [
        ("sd1", 354),
        ("sd2", 420),
        ("sdxl", 1058),
        ("flux", 576),
        ("chroma", 421),
        ("z_image", 276),
        ("qwen_image", 846),
    ],
)
def test_nothing_is_left_out(family: str, count: int) -> None:
    # SD1: 282 of the UNet and 6 in each of CLIP's 12 layers. SD2: 23 layers. SDXL: 794, 12 and 32 layers.
    # FLUX: 14 in each of 19 double blocks, 6 in each of 38 single blocks, 10 around them, 12 layers.
    # Chroma: 12 and 5, for it has no modulations, and 3 around them.
    # Z-Image: 8 in each of 30 layers and 2 refiners, 7 in 2 others, 6 around them. Qwen-Image: 14 in each
    # of 60 blocks, 6 around them.
    assert len(module_shapes(family)) == count


def test_live_text_encoders_have_the_names_of_files() -> None:
    assert text_module("text_encoder.", "encoder.layers.0.self_attn.q_proj") == f"text_encoder.{CLIP}"
    assert text_module("text_encoder_2.", CLIP) == f"text_encoder_2.{CLIP}"
    bare = CLIP.removeprefix("text_model.")
    assert names_of([f"text_encoder.{bare}.lora_A.weight"]) == {
        f"text_encoder.{bare}.lora_A.weight": f"text_encoder.{CLIP}.down"
    }


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (f"base_model.model.{QUERY}.lora_A.weight", f"{QUERY}.down"),
        (f"base_model.model.unet.{QUERY}.lora_B.weight", f"{QUERY}.up"),
        (f"unet.base_model.model.{QUERY}.lora_B.weight", f"{QUERY}.up"),
        (f"unet.{QUERY}.lora_B.default.weight", f"{QUERY}.up"),
        (f"{QUERY}.lora_A.weight", f"{QUERY}.down"),
        (f"unet.{QUERY}.lora.down.weight", f"{QUERY}.down"),
        (f"unet.{QUERY}.lora_linear_layer.up.weight", f"{QUERY}.up"),
        (f"unet.{QUERY.removesuffix('to_q')}processor.to_q_lora.up.weight", f"{QUERY}.up"),
        (f"unet.{OUTPUT.removesuffix('to_out.0')}processor.to_out_lora.down.weight", f"{OUTPUT}.down"),
        (f"unet.{QUERY}.alpha", f"{QUERY}.alpha"),
        (f"unet.{QUERY}.lora_magnitude_vector.default.weight", f"{QUERY}.dora_scale"),
        (f"base_model.model.{QUERY}.lokr_w2_a.default", f"{QUERY}.lokr_w2_a"),
        (f"lycoris_{QUERY.replace('.', '_')}.lokr_w1", f"{QUERY}.lokr_w1"),
    ],
)
def test_older_and_rarer_forms(key: str, name: str) -> None:
    assert names_of([key]) == {key: name}
    assert names_of([key], [QUERY, OUTPUT]) == {key: name}


def test_onetrainers_transformers() -> None:
    key = "lora_transformer_single_transformer_blocks_5_proj_mlp.lora_down.weight"
    assert names_of([key]) == {key: "single_transformer_blocks.5.proj_mlp.down"}
    key = "lora_transformer_transformer_blocks_5_norm1_context_linear.alpha"
    assert names_of([key]) == {key: "transformer_blocks.5.norm1_context.linear.alpha"}


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_x.lora_down.weight",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.oft_blocks",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down",
        "lora_te_down_blocks_0_attentions_0_proj_in.alpha",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight",
        "unet.down_blocks.0.attentions.0.nothing.lora_A.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "down_blocks.0.resnets.0.conv1.weight",
        "",
    ],
)
def test_an_unknown_key_is_named(key: str, told: bool) -> None:
    with pytest.raises(KeyNameError, match=f"'{key}'"):
        addresses([key], [QUERY, OUTPUT] if told else None)


def test_other_kinds_are_called_by_their_name() -> None:
    with pytest.raises(KeyNameError, match=r"'bundle_emb'.*Use the LoRA without them"):
        addresses(["bundle_emb.face.emb_params"])
    with pytest.raises(KeyNameError, match="OFT, which is not read here"):
        addresses([f"unet.{QUERY}.oft_blocks"])


def test_a_key_for_another_model_is_named() -> None:
    for key in (to_kohya(f"{QUERY}.up"), to_peft(f"{QUERY}.up"), spoken(f"{QUERY}.up", "kohya-ldm")):
        with pytest.raises(KeyNameError, match=f"'{key}' names no module of this model"):
            addresses([key], [OUTPUT])


def test_two_names_for_one_weight_are_refused() -> None:
    with pytest.raises(KeyNameError, match="two names for the same weight"):
        addresses([to_kohya(f"{QUERY}.up"), to_peft(f"{QUERY}.up")])
    with pytest.raises(KeyNameError, match="two names for the same weight"):
        addresses(
            [
                "lora_unet_double_blocks_0_img_attn_qkv.alpha",
                "transformer.transformer_blocks.0.attn.to_v.alpha",
            ]
        )


def test_modules_that_kohya_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(KeyNameError, match="share the kohya name"):
        addresses(["lora_unet_a_b_c.alpha"], ["a.b_c", "a_b.c"])


def test_names_that_are_not_canonical_are_refused() -> None:
    assert split(f"{QUERY}.down") == (QUERY, "down")
    for name in (f"{QUERY}.weight", "down", ".up"):
        with pytest.raises(KeyNameError):
            split(name)


def test_names_that_a_dialect_lacks() -> None:
    with pytest.raises(KeyNameError, match="Name the family"):
        spoken(f"{QUERY}.up", "comfyui", "")
    with pytest.raises(KeyNameError, match="'flux'"):
        spoken(f"{QUERY}.up", "kohya", "flux")
    with pytest.raises(KeyNameError, match="lora_mid"):
        spoken(f"{QUERY}.mid", "peft")
    with pytest.raises(KeyNameError, match="CLIP"):
        spoken("text_encoder.encoder.block.0.layer.0.SelfAttention.q.up", "kohya", "flux")
