"""Names for what is in memory: short hashes that change with any weight."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn


def weights_fingerprint(network: nn.Module, facts: object) -> str:
    """12 hexadecimal digits that change with any weight of a network, its type, or the facts.

    Reads every weight once: a second or two for each gigabyte.

    Args:
        network: without a LoRA.
        facts: whatever else decides its answers, as JSON knows it.
    """
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.state_dict().items()):
        raw = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {raw.dtype} {tuple(raw.shape)}".encode())
        # Bytes, since numpy knows no bfloat16.
        digest.update(raw.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]
