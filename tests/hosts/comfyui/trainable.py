"""A model that our trainer trains on and whose LoRA fits a checkpoint of checkpoints.py."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from tests.hosts.comfyui.samples import tiny_unet
from tests.support.tiny import TOKENS, tiny_pipeline

WIDTH = 768


def make_trainable(folder: Path) -> None:
    """A diffusers folder with a denoiser of the shape that tiny-sd15.ckpt has, and small other parts."""
    pipeline = tiny_pipeline(folder / "tokenizer", prediction_type="epsilon")
    torch.manual_seed(1)
    tokenizer = pipeline.tokenizer
    pipeline.unet = tiny_unet()
    pipeline.unet.register_to_config(sample_size=8)
    pipeline.text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
