"""Single files in the original layouts, written the other way round than we read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from scdpo_core.families.text_encoders import CONFIGS
from tests.support.tiny import original_tensors, original_vae, write_single_file


def open_clip_tensors(model: Any) -> dict[str, Tensor]:
    """A text encoder's weights by OpenCLIP's names, the other way round than we read them."""
    weights = {
        name.removeprefix("text_model."): tensor.contiguous() for name, tensor in model.state_dict().items()
    }
    tensors = {
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"],
        "ln_final.bias": weights["final_layer_norm.bias"],
        "logit_scale": torch.tensor(1.0),
    }
    if "text_projection.weight" in weights:
        tensors["text_projection"] = weights["text_projection.weight"].T.contiguous()
    for number in range(model.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{number}", f"transformer.resblocks.{number}"
        for kind in ("weight", "bias"):
            tensors[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(
                [weights[f"{ours}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            )
            for there, here in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                tensors[f"{theirs}.{there}.{kind}"] = weights[f"{ours}.{here}.{kind}"]
    return tensors


def write_sd2_file(pipeline: Any, path: Path) -> Path:
    """One file in Stable Diffusion 2's original layout, whose text encoder has a layer that is not used."""
    tensors = original_tensors(pipeline)
    texts = open_clip_tensors(pipeline.text_encoder)
    last = pipeline.text_encoder.config.num_hidden_layers
    texts |= {
        name.replace("resblocks.0.", f"resblocks.{last}."): tensor.clone()
        for name, tensor in texts.items()
        if "resblocks.0." in name
    }
    tensors |= {f"cond_stage_model.model.{name}": tensor for name, tensor in texts.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path))
    return path


def write_sdxl_file(
    pipeline: StableDiffusionXLPipeline,
    path: Path,
    marks: tuple[str, ...] = (),
    metadata: dict[str, str] | None = None,
) -> Path:
    """One file in Stable Diffusion XL's original layout, with the empty tensors that mark fine-tunes of v."""
    tensors = original_tensors(pipeline)
    for name, tensor in pipeline.text_encoder.state_dict().items():
        bare = name.removeprefix("text_model.")
        tensors[f"conditioner.embedders.0.transformer.text_model.{bare}"] = tensor
    for name, tensor in open_clip_tensors(pipeline.text_encoder_2).items():
        tensors[f"conditioner.embedders.1.model.{name}"] = tensor
    tensors |= {mark: torch.zeros(0) for mark in marks}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path), metadata)
    return path


def write_vae_file(pipeline: Any, path: Path) -> Path:
    """A VAE alone, in the original layout."""
    save_file({name: tensor.contiguous() for name, tensor in original_vae(pipeline.vae).items()}, str(path))
    return path


def write_text_file(model: Any, path: Path) -> Path:
    """A text encoder alone with transformers' names, as ComfyUI's users have them."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        clip = name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm."))
        tensors[f"text_model.{name}" if clip else name] = tensor.clone().contiguous()
    save_file(tensors, str(path))
    return path


_JOINT = (
    ("pos_embed.pos_embed", "pos_embed"),
    ("pos_embed.proj", "x_embedder.proj"),
    ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
    ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("norm1_context.linear", "context_block.adaLN_modulation.1"),
    ("norm1.linear", "x_block.adaLN_modulation.1"),
    ("ff_context.net.0.proj", "context_block.mlp.fc1"),
    ("ff_context.net.2", "context_block.mlp.fc2"),
    ("ff.net.0.proj", "x_block.mlp.fc1"),
    ("ff.net.2", "x_block.mlp.fc2"),
    ("attn.norm_added_q", "context_block.attn.ln_q"),
    ("attn.norm_added_k", "context_block.attn.ln_k"),
    ("attn.to_add_out", "context_block.attn.proj"),
    ("attn.norm_q", "x_block.attn.ln_q"),
    ("attn.norm_k", "x_block.attn.ln_k"),
    ("attn.to_out.0", "x_block.attn.proj"),
    ("attn2.norm_q", "x_block.attn2.ln_q"),
    ("attn2.norm_k", "x_block.attn2.ln_k"),
    ("attn2.to_out.0", "x_block.attn2.proj"),
)
_STACKED = (
    ("attn.to_{}", "x_block.attn.qkv"),
    ("attn.add_{}_proj", "context_block.attn.qkv"),
    ("attn2.to_{}", "x_block.attn2.qkv"),
)


def original_sd3(transformer: Any) -> dict[str, Tensor]:
    """A transformer of Stable Diffusion 3 by its original names: queries, keys and values in one matrix."""
    weights = dict(transformer.state_dict())
    last = transformer.config.num_layers - 1
    tensors: dict[str, Tensor] = {}
    for number in range(last + 1):
        for ours, theirs in _STACKED:
            for kind in ("weight", "bias"):
                names = [f"transformer_blocks.{number}.{ours.format(letter)}.{kind}" for letter in "qkv"]
                if names[0] in weights:
                    name = f"joint_blocks.{number}.{theirs}.{kind}"
                    tensors[name] = torch.cat([weights.pop(each) for each in names])
    for name, tensor in weights.items():
        if name.startswith(("norm_out", f"transformer_blocks.{last}.norm1_context")):
            # Diffusers has scale and shift the other way round there.
            tensor = torch.cat(tensor.chunk(2)[::-1])
        if name.startswith("proj_out"):
            name = name.replace("proj_out", "final_layer.linear")
        for ours, theirs in _JOINT:
            name = name.replace(ours, theirs)
        tensors[name.replace("transformer_blocks", "joint_blocks")] = tensor
    return tensors


def write_sd3_file(pipeline: Any, path: Path) -> Path:
    """One file with everything that Stable Diffusion 3 needs but T5's vocabulary."""
    tensors = {f"model.diffusion_model.{name}": t for name, t in original_sd3(pipeline.transformer).items()}
    tensors |= {f"first_stage_model.{name}": t for name, t in original_vae(pipeline.vae).items()}
    for stem, model in (
        ("clip_l", pipeline.text_encoder),
        ("clip_g", pipeline.text_encoder_2),
        ("t5xxl", pipeline.text_encoder_3),
    ):
        tensors |= {f"text_encoders.{stem}.transformer.{name}": t for name, t in model.state_dict().items()}
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, str(path))
    return path


def flux_shapes(double: int, single: int, *, guided: bool) -> dict[str, tuple[int, ...]]:
    """The shapes of an original FLUX.1 transformer, 3,072 wide."""
    width = 3072
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, inputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inputs), (out,)

    linear("img_in", width, 64)
    linear("txt_in", width, 4096)
    for name, inputs in (("time_in", 256), ("vector_in", 768), *([("guidance_in", 256)] if guided else [])):
        linear(f"{name}.in_layer", width, inputs)
        linear(f"{name}.out_layer", width, width)
    for number in range(double):
        for side in ("img", "txt"):
            block = f"double_blocks.{number}.{side}"
            linear(f"{block}_mod.lin", 6 * width, width)
            linear(f"{block}_attn.qkv", 3 * width, width)
            linear(f"{block}_attn.proj", width, width)
            linear(f"{block}_mlp.0", 4 * width, width)
            linear(f"{block}_mlp.2", width, 4 * width)
            for letter in ("query", "key"):
                shapes[f"{block}_attn.norm.{letter}_norm.scale"] = (128,)
    for number in range(single):
        block = f"single_blocks.{number}"
        linear(f"{block}.modulation.lin", 3 * width, width)
        linear(f"{block}.linear1", 7 * width, width)
        linear(f"{block}.linear2", width, 5 * width)
        for letter in ("query", "key"):
            shapes[f"{block}.norm.{letter}_norm.scale"] = (128,)
    linear("final_layer.adaLN_modulation.1", 2 * width, width)
    linear("final_layer.linear", 64, width)
    return shapes


def original_z_image(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformer of Z-Image by its original names: queries, keys and values in one matrix."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".to_q." in name:
            parts = [weights[name.replace("to_q", f"to_{letter}")] for letter in "qkv"]
            tensors[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif ".to_k." not in name and ".to_v." not in name:
            for ours, theirs in (
                ("all_x_embedder.2-1", "x_embedder"),
                ("all_final_layer.2-1", "final_layer"),
                ("attention.to_out.0", "attention.out"),
                ("attention.norm_q", "attention.q_norm"),
                ("attention.norm_k", "attention.k_norm"),
            ):
                name = name.replace(ours, theirs)
            tensors[name] = tensor
    return tensors


_FLUX2 = (
    ("single_transformer_blocks", "single_blocks"),
    ("transformer_blocks", "double_blocks"),
    ("attn.norm_added_q", "txt_attn.norm.query_norm"),
    ("attn.norm_added_k", "txt_attn.norm.key_norm"),
    ("attn.to_add_out", "txt_attn.proj"),
    ("attn.to_out.0", "img_attn.proj"),
    ("ff_context.linear_in", "txt_mlp.0"),
    ("ff_context.linear_out", "txt_mlp.2"),
    ("ff.linear_in", "img_mlp.0"),
    ("ff.linear_out", "img_mlp.2"),
    ("attn.to_qkv_mlp_proj", "linear1"),
    ("attn.to_out", "linear2"),
    ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("context_embedder", "txt_in"),
    ("x_embedder", "img_in"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
)


def original_flux2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformer of FLUX.2 by its original names: queries, keys and values of double blocks together."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        queries = {"to_q": "img", "add_q_proj": "txt"}
        first = next((query for query in queries if f".{query}." in name), "")
        if first:
            parts = [weights[name.replace(first, first.replace("q", letter))] for letter in "qkv"]
            tensor = torch.cat(parts)
            name = name.replace(f"attn.{first}", f"{queries[first]}_attn.qkv")
        elif any(f".{other}." in name for other in ("to_k", "to_v", "add_k_proj", "add_v_proj")):
            continue
        if name.startswith("norm_out"):
            # Diffusers has scale and shift the other way round there.
            tensor = torch.cat(tensor.chunk(2)[::-1])
        single = name.startswith("single_")
        for ours, theirs in _FLUX2:
            name = name.replace(ours, theirs)
        if "modulation" in name:
            name = name.replace(".linear.", ".lin.")
        for letter, word in (("q", "query"), ("k", "key")):
            there = "norm" if single else "img_attn.norm"
            name = name.replace(f"attn.norm_{letter}", f"{there}.{word}_norm")
        tensors[name.replace("_norm.weight", "_norm.scale")] = tensor
    return tensors


def chroma_shapes(double: int, single: int) -> dict[str, tuple[int, ...]]:
    """The shapes of an original Chroma transformer: FLUX.1's without modulations, and what makes them all."""
    inner, layer = 5120, "distilled_guidance_layer"
    shapes = {
        name: shape
        for name, shape in flux_shapes(double, single, guided=False).items()
        if not name.startswith(("time_in.", "vector_in."))
        and not any(part in name for part in ("_mod.", ".modulation.", "adaLN_modulation"))
    }
    linears = {"in_proj": (inner, 64), "out_proj": (3072, inner)}
    for number in range(5):
        shapes[f"{layer}.norms.{number}.scale"] = (inner,)
        linears |= {f"layers.{number}.{side}_layer": (inner, inner) for side in ("in", "out")}
    for name, shape in linears.items():
        shapes[f"{layer}.{name}.weight"], shapes[f"{layer}.{name}.bias"] = shape, shape[:1]
    return shapes


def write_full_sd15(path: Path, *, shift: float = 0.0) -> Path:
    """Stable Diffusion 1.5 at its full size with random weights, one file of 2 GB.

    Args:
        path: of the file.
        shift: added to the text's last state, whose mean is zero otherwise.
    """
    own = CONFIGS / "sd1"
    unet = UNet2DConditionModel.from_config(json.loads((own / "unet" / "config.json").read_text("utf-8")))
    vae = AutoencoderKL.from_config(json.loads((own / "vae" / "config.json").read_text("utf-8")))
    text = CLIPTextModel(CLIPTextConfig.from_pretrained(own / "text_encoder", local_files_only=True))
    weights = dict(text.named_parameters())
    weights[next(name for name in weights if name.endswith("final_layer_norm.bias"))].data += shift
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text.half(),
        tokenizer=None,
        unet=unet.half(),
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return write_single_file(pipeline, path)
