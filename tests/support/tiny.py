"""Tiny random models of Stable Diffusion's shape, so that a test loads and trains one in a second."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from scdpo_core.config.settings import TrainSettings
from scdpo_core.config.terms import TERM_OBJECTIVES

WIDTH = 32
TOKENS = 16
LATENT_CHANNELS = 4


def tiny_tokenizer_files(folder: Path) -> Path:
    """A CLIP tokenizer that spells every word in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(f"{symbol}</w>" for symbol in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def tiny_unet() -> UNet2DConditionModel:
    """A UNet of 8x8 latents with cross-attention at both levels."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def tiny_pipeline(
    folder: Path, *, prediction_type: str = "v_prediction", seed: int = 0
) -> StableDiffusionPipeline:
    """A complete random pipeline for images of 16x16 pixels; `folder` receives its tokenizer's files."""
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_tokenizer_files(folder), local_files_only=True)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        clip_sample=False,
        timestep_spacing="trailing",
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=tiny_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sd_folder(path: Path, *, prediction_type: str = "v_prediction", seed: int = 0) -> Path:
    """Write a complete random StableDiffusionPipeline folder of about 1 MB and return it."""
    pipeline = tiny_pipeline(path / "tokenizer", prediction_type=prediction_type, seed=seed)
    pipeline.save_pretrained(path, safe_serialization=True)
    return path


def tiny_pairs(path: Path, count: int = 6) -> Path:
    """Write a preference folder of 16x16 images, every other pair benign: rejected ones are redder."""
    for number in range(count):
        category = "benign" if number % 2 else "weapon"
        for side, red in (("chosen", 40), ("rejected", 200)):
            folder = path / side / category
            folder.mkdir(parents=True, exist_ok=True)
            colour = (red, 20 * number % 256, 255 - red)
            image = Image.new("RGB", (16, 16), colour)
            image.paste((255, 255, 255), (number % 8, 2, number % 8 + 6, 9))
            image.save(folder / f"pair{number}.png")
        (path / "chosen" / category / f"pair{number}.txt").write_text(f"a thing {number}", encoding="utf-8")
    return path


def tiny_settings(base: Path | str, pairs: Path, output: Path, **changes: Any) -> TrainSettings:
    """Settings of a run of seconds; `changes` are given by the name of the setting, whatever its section."""
    values = {
        "base": str(base),
        "pairs": pairs,
        "output": output,
        "max_train_steps": 6,
        "batch_size": 2,
        "accumulation": 1,
        "lr": 1e-3,
        "rank": 2,
        "samples": 0,
        "checkpoint_every": 2,
        "log_every": 2,
        "device": "cpu",
        "objective": "sc_dpo",
    } | changes
    # What has no effect is refused on a command line, to which some tests hand these over.
    if values["objective"] in ("sc_dpo", "winner_only"):
        values.setdefault("winner", 0.05)
    terms = values["objective"] in TERM_OBJECTIVES
    if values["samples"] or terms or {"keep_text", "prompts"} & values.keys():
        values.setdefault("sample_steps", 2)
    settings = TrainSettings()
    for section in dataclasses.fields(settings):
        part = getattr(settings, section.name)
        own = {key: values.pop(key) for key in vars(part) if key in values}
        settings = dataclasses.replace(settings, **{section.name: dataclasses.replace(part, **own)})
    assert not values, f"no such settings: {values}"
    return settings


def write_single_file(pipeline: StableDiffusionPipeline, path: Path) -> Path:
    """Write a pipeline as one file in Stable Diffusion 1's original layout."""
    tensors = original_tensors(pipeline)
    for key, tensor in pipeline.text_encoder.state_dict().items():
        name = key if key.startswith("text_model.") else f"text_model.{key}"
        tensors[f"cond_stage_model.transformer.{name}"] = tensor
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, str(path))
    return path


def original_tensors(pipeline: Any) -> dict[str, torch.Tensor]:
    """UNet and VAE of a pipeline in the original layout of Stable Diffusion 1, 2 and XL."""
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in original_unet(pipeline.unet).items()}
    return tensors | {
        f"first_stage_model.{key}": tensor for key, tensor in original_vae(pipeline.vae).items()
    }


def original_unet(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """A UNet's weights by their original names."""
    layers, weights = unet.config.layers_per_block, unet.state_dict()
    tensors = {}
    for key, tensor in weights.items():
        # Where a level attends, its upsampler comes third in the last block, elsewhere second.
        attends = f"{'.'.join(key.split('.')[:2])}.attentions.0.norm.weight" in weights
        tensors[_original_unet_key(key, layers, attends)] = tensor
    return tensors


def original_vae(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """A VAE's weights by their original names; its attention was made of 1x1 convolutions."""
    tensors = {}
    for key, tensor in vae.state_dict().items():
        name = _original_vae_key(key, len(vae.config.block_out_channels))
        tensors[name] = tensor[:, :, None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor
    return tensors


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _original_unet_key(key: str, layers: int, attends: bool) -> str:
    fixed = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    stem, kind = key.rsplit(".", 1)
    if stem in fixed:
        return f"{fixed[stem]}.{kind}"
    block, level, part, number, *rest = key.split(".")
    if block == "mid_block":
        part, number, rest = level, part, [number, *rest]
        place = {
            "resnets.0": "middle_block.0",
            "attentions.0": "middle_block.1",
            "resnets.1": "middle_block.2",
        }[f"{part}.{number}"]
    elif part == "downsamplers":
        return f"input_blocks.{(int(level) + 1) * (layers + 1)}.0.op.{kind}"
    elif part == "upsamplers":
        return f"output_blocks.{int(level) * (layers + 1) + layers}.{1 + attends}.conv.{kind}"
    else:
        first = 1 if block == "down_blocks" else 0
        side = "input_blocks" if block == "down_blocks" else "output_blocks"
        place = f"{side}.{first + int(level) * (layers + 1) + int(number)}.{int(part == 'attentions')}"
    if part == "resnets":
        rest = [_RESNET[rest[0]], *rest[1:]]
    return ".".join([place, *rest])


def _original_vae_key(key: str, levels: int) -> str:
    name = key.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
    name = (
        name.replace("group_norm", "norm")
        .replace("conv_norm_out", "norm_out")
        .replace("to_out.0", "proj_out")
    )
    for letter in "qkv":
        name = name.replace(f"to_{letter}.", f"{letter}.")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)

    def up(match: re.Match[str]) -> str:
        rest = match[2].replace("resnets.", "block.").replace("upsamplers.0", "upsample")
        return f"up.{levels - 1 - int(match[1])}.{rest}"

    return re.sub(r"up_blocks\.(\d+)\.(.*)", up, name)
