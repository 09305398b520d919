"""The smallest Stable Diffusion 1 checkpoint that all hosts draw with: random, one level, 0.4 GB."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from scdpo_core.lora.file import save_lora
from tests.support.original_files import write_full_sd15
from tests.support.tiny import original_unet, original_vae

TEXT_WIDTH = 768
CHANNELS = 320
# The hosts divide by the mean of the text's state, which a fresh layer norm makes zero.
SHIFT = 0.1

# A1111 takes what it cannot tell from the weights from a file of the checkpoint's name.
_A1111 = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 64
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    scale_factor: 0.18215
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {image_size: 32, in_channels: 4, out_channels: 4, model_channels: 320,
               attention_resolutions: [1], num_res_blocks: 1, channel_mult: [1], num_heads: 8,
               use_spatial_transformer: true, transformer_depth: 1, context_dim: 768,
               use_checkpoint: false, legacy: false}
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig: {double_z: true, z_channels: 4, resolution: 256, in_channels: 3, out_ch: 3, ch: 128,
                   ch_mult: [1, 2, 4, 4], num_res_blocks: 2, attn_resolutions: [], dropout: 0.0}
        lossconfig: {target: torch.nn.Identity}
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params: {version: CLIP_FOLDER}
"""


def write_checkpoint(folder: Path, words: Path | None) -> Path:
    """Write `tiny.safetensors`, and beside it what A1111 wants to know of it.

    Args:
        folder: receives them.
        words: CLIP's vocabulary as OpenCLIP ships it, `bpe_simple_vocab_16e6.txt.gz`; None for Forge Neo,
            which has its own.
    """
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(CHANNELS,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    clip = CLIPTextConfig(
        hidden_size=TEXT_WIDTH, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    tensors = {f"model.diffusion_model.{key}": value for key, value in original_unet(unet).items()}
    tensors |= {f"first_stage_model.{key}": value for key, value in original_vae(vae).items()}
    texts = CLIPTextModel(clip).state_dict()
    texts[next(key for key in texts if key.endswith("final_layer_norm.bias"))] += SHIFT
    for key, value in texts.items():
        name = key if key.startswith("text_model.") else f"text_model.{key}"
        tensors[f"cond_stage_model.transformer.{name}"] = value
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tiny.safetensors"
    save_file({key: value.half().contiguous() for key, value in tensors.items()}, str(file))
    if words is not None:
        about = write_clip_folder(folder / "clip", words)
        file.with_suffix(".yaml").write_text(_A1111.replace("CLIP_FOLDER", str(about)), "utf-8")
    return file


def write_whole_checkpoint(folder: Path, configs: Path) -> Path:
    """Write `whole.safetensors`: Stable Diffusion 1.5 at its full size, which the trainer takes too; random.

    Args:
        folder: with CLIP's settings and vocabulary in it, see `write_checkpoint`.
        configs: A1111's own; what else a file of this size would need is there.
    """
    file = write_full_sd15(folder / "whole.safetensors", shift=SHIFT)
    usual = configs / "v1-inference.yaml"
    if usual.is_file():
        words = f"\n      params: {{version: {folder / 'clip'}}}\n"
        file.with_suffix(".yaml").write_text(usual.read_text("utf-8").rstrip() + words, "utf-8")
    return file


def write_clip_folder(folder: Path, words: Path) -> Path:
    """CLIP's settings and vocabulary as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = gzip.decompress(words.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [number for number in range(256) if number not in printable]
    letters = [chr(number) for number in printable] + [chr(256 + place) for place in range(len(others))]
    symbols = [*letters, *(f"{letter}</w>" for letter in letters), *(m.replace(" ", "") for m in merges)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    settings = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    }
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    for name, value in (
        ("config.json", settings),
        ("vocab.json", vocabulary),
        ("tokenizer_config.json", tokens | tokenizer),
    ):
        (folder / name).write_text(json.dumps(value), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    return folder


def write_lora(path: Path, family: str = "sd1", strength: float = 0.5) -> Path:
    """A LoRA that visibly changes what the checkpoint draws."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for module, inputs in (
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v", CHANNELS),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", TEXT_WIDTH),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v", TEXT_WIDTH),
    ):
        state[f"{module}.down"] = torch.randn(4, inputs, generator=generator) * strength
        state[f"{module}.up"] = torch.randn(CHANNELS, 4, generator=generator) * strength
        state[f"{module}.alpha"] = torch.tensor(4.0)
    save_lora(path, state, family=family, rank=4, alpha=4.0, facts={})
    return path
