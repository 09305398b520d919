"""Names for what is in memory: short hashes that change with any weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import nn

from .block_offload import readable
from .components import Encoders
from .language_models import LanguageEncoder


def weights_fingerprint(network: nn.Module, facts: object) -> str:
    """12 hexadecimal digits that change with any weight of a network, its type, or the facts.

    Reads every weight once: a second or two for each gigabyte.

    Args:
        network: without a LoRA.
        facts: whatever else decides its answers, as JSON knows it.
    """
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode())
    with readable(network):
        for name, tensor in sorted(network.state_dict().items()):
            raw = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {raw.dtype} {tuple(raw.shape)}".encode())
            # Bytes, since numpy knows no bfloat16.
            digest.update(raw.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def sampled_fingerprint(network: nn.Module) -> str:
    """12 hexadecimal digits that tell a network from its fine-tunes, from some of every weight.

    Args:
        network: without a LoRA. At most 256 numbers of each of its tensors are read, spread evenly, so that
            it takes no time; one that differs in single numbers alone may look the same.
    """
    digest = hashlib.blake2b()
    with readable(network):
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            values = tensor.detach().flatten()
            some = values[:: max(1, values.numel() // 256)].contiguous().cpu()
            digest.update(some.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def encoders_fingerprint(encoders: Encoders, lengths: Sequence[int]) -> str:
    """12 hexadecimal digits that change with any weight of the encoders, their vocabularies and lengths.

    Args:
        encoders: of a model.
        lengths: in tokens, of what stands in for a text encoder that is not there.
    """
    digest = hashlib.sha256()
    for text, length in zip(encoders.texts, lengths, strict=True):
        if text is None:
            digest.update(f"nothing of {length}".encode())
        else:
            digest.update(json.dumps(sorted(text.tokenizer.get_vocab().items())).encode())
            digest.update(str(text.tokens).encode())
            if isinstance(text, LanguageEncoder):
                digest.update(repr(text.chat).encode())
    models = [text.model for text in encoders.texts if text is not None]
    for module in (*models, encoders.vae):
        for _, tensor in sorted(module.state_dict().items()):
            # Bytes, since numpy knows no bfloat16.
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().data)
    return digest.hexdigest()[:12]
