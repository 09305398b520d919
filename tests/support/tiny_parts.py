"""Tiny random text encoders and VAEs, which the models of `tiny_families` are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from tests.support.tiny import TOKENS, WIDTH, tiny_tokenizer_files
from tests.support.tiny_language import chat_tokenizer, language_model

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
FLOW_CHANNELS = 16
T5_TOKENS = 12
SCALE_AND_SHIFT = (0.5, 0.1)


def clip_tokenizer(folder: Path) -> Any:
    return CLIPTokenizer.from_pretrained(tiny_tokenizer_files(folder), local_files_only=True)


def clip_model(tokenizer: Any, cls: Any, width: int, **changes: Any) -> Any:
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return cls(CLIPTextConfig(**(config | changes)))


def chat_model(width: int, name: str = "Qwen3Model") -> tuple[Any, Any]:
    return chat_tokenizer(), language_model(name, width)


def t5_model(width: int = 2 * WIDTH) -> tuple[Any, Any]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in LETTERS)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_TOKENS)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=WIDTH,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return tokenizer, T5EncoderModel(config)


def image_vae(channels: int, **changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **({"scaling_factor": 0.5} | changes),
    )


def flow_vae() -> AutoencoderKL:
    scale, shift = SCALE_AND_SHIFT
    return image_vae(
        FLOW_CHANNELS,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
