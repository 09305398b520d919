"""Tiny language models of the Qwen and Mistral kind, and a tokenizer of bytes and of special tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Qwen2Tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEAD = 8


def chat_tokenizer() -> Any:
    """A Qwen tokenizer without merges: one token a byte, and one for each special token."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]
    tokens = [*symbols, *SPECIAL]
    return Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        additional_special_tokens=list(SPECIAL),
        chat_template=(
            "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
            "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        ),
    )


def language_config(name: str, width: int, layers: int = 3) -> dict[str, Any]:
    """The settings of a tiny language model."""
    config: dict[str, Any] = {
        "vocab_size": 256 + len(SPECIAL),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    if name == "Qwen2_5_VLTextModel":
        # Its heads share out the width. Halves of one are for time, height and width.
        return config | {
            "num_attention_heads": width // HEAD,
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 1, 1]},
        }
    return config | {"head_dim": HEAD}


def language_model(name: str, width: int = 32, layers: int = 3) -> Any:
    """A random language model of a class of transformers."""
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls(cls.config_class.from_dict(language_config(name, width, layers))).eval()


def save_language_model(name: str, folder: Path, *, prefix: str = "") -> Any:
    """Write a random language model and its tokenizer as transformers does, and return the model.

    Args:
        name: of its class.
        folder: for both.
        prefix: before the names of its tensors, as in files of a whole chat model.
    """
    from safetensors.torch import save_file

    model = language_model(name)
    folder.mkdir(parents=True, exist_ok=True)
    chat_tokenizer().save_pretrained(folder)
    model.config.save_pretrained(folder)
    tensors = {f"{prefix}{key}": value.contiguous() for key, value in model.state_dict().items()}
    # What a whole chat model has beside the layers that read text.
    tensors |= {"visual.blocks.0.norm1.weight": torch.ones(4), "lm_head.weight": torch.ones(4, 4)}
    save_file(tensors, folder / "model.safetensors")
    return model
