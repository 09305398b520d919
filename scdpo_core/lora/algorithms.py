"""The kinds of change that peft trains (LoRA, DoRA, LoHa, LoKr), and their weights by canonical part."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig
from torch import Tensor, nn

from ..types import ScdpoError
from .formats.keys import LOHA_PARTS, LOKR_PARTS

Kind = Literal["lora", "dora", "loha", "lokr"]
KINDS: tuple[Kind, ...] = ("lora", "dora", "loha", "lokr")
ADAPTER = "scdpo"
"""The name under which peft knows our adapter."""


def peft_config(kind: Kind, ranks: Mapping[str, int], alphas: Mapping[str, float], dropout: float) -> Any:
    """What peft needs to put a kind of change into the named modules.

    Args:
        kind: see `KINDS`.
        ranks: module path -> rank.
        alphas: module path -> alpha.
        dropout: share of the inputs that is dropped in training.

    Raises:
        ValueError: there is no such kind.
        ScdpoError: a kind without dropout was asked for some.
    """
    if kind not in KINDS:
        raise ValueError(f"There is no kind of LoRA '{kind}'; choose one of {', '.join(KINDS)}.")
    if dropout and kind in ("loha", "lokr"):
        raise ScdpoError(f"A {_title(kind)} drops no inputs in training: set dropout to 0, or train a LoRA.")
    first = next(iter(ranks))
    rank, alpha = ranks[first], alphas[first]
    others = [name for name in ranks if (ranks[name], alphas[name]) != (rank, alpha)]
    shape: dict[str, Any] = {
        "r": rank,
        "target_modules": list(ranks),
        # peft takes these for regular expressions that may match at the end of a path.
        "rank_pattern": {f"^{re.escape(name)}": ranks[name] for name in others},
        "alpha_pattern": {f"^{re.escape(name)}": alphas[name] for name in others},
    }
    if kind == "loha":
        return LoHaConfig(alpha=alpha, **shape)
    if kind == "lokr":
        return LoKrConfig(alpha=alpha, **shape)
    return LoraConfig(lora_alpha=alpha, lora_dropout=dropout, bias="none", use_dora=kind == "dora", **shape)


def weights(kind: Kind, layer: Any) -> dict[str, nn.Parameter]:
    """The trainable weights of one of peft's layers, by canonical part."""
    if kind in ("loha", "lokr"):
        parts = LOHA_PARTS if kind == "loha" else LOKR_PARTS
        return {part: getattr(layer, part)[ADAPTER] for part in parts if ADAPTER in getattr(layer, part)}
    own = {"down": layer.lora_A[ADAPTER].weight, "up": layer.lora_B[ADAPTER].weight}
    if kind == "dora":
        own["dora_scale"] = layer.lora_magnitude_vector[ADAPTER].weight
    return own


def alpha_table(layer: Any) -> dict[str, float]:
    """peft's table of alphas in a layer, by adapter."""
    table: dict[str, float] = layer.lora_alpha if hasattr(layer, "lora_alpha") else layer.alpha
    return table


def start(kind: Kind, layer: Any, generator: torch.Generator) -> None:
    """Give a new layer float32 weights that change nothing yet, decided by the generator alone.

    Every factor is uniform within 1 / sqrt(inputs), but for the one that peft starts at zero. A DoRA's
    magnitudes stay as they are: the lengths of the base's rows.
    """
    own = weights(kind, layer)
    if kind in ("lora", "dora"):
        layer.lora_A[ADAPTER].float()
        layer.lora_B[ADAPTER].float()
        own = weights(kind, layer)
    for part, weight in own.items():
        weight.data = weight.data.float()
        if part == "dora_scale":
            continue
        if part == "up" or not bool(weight.any()):
            with torch.no_grad():
                weight.zero_()
            continue
        bound = 1 / math.sqrt(weight[0].numel())
        drawn = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            weight.copy_(drawn)
    if kind == "lokr" and not any(part.endswith("_b") for part in own):
        # Hosts scale a LoKr of two full factors by nothing, whatever its alpha; so must training.
        alpha_table(layer)[ADAPTER] = float(layer.r[ADAPTER])
        layer.set_scale(ADAPTER, 1.0)


def to_canonical(part: str, weight: Tensor) -> Tensor:
    """A copy of a weight in the shape that files give it: peft keeps a DoRA's magnitudes flat."""
    own = weight.detach().clone()
    if part != "dora_scale":
        return own
    return own.reshape(-1, 1) if own.ndim == 1 else own.transpose(0, 1).contiguous()


def to_peft(part: str, weight: Tensor, like: Tensor) -> Tensor:
    """A canonical weight in the shape that peft has."""
    if part == "dora_scale" and weight.ndim == like.ndim > 2:
        return weight.transpose(0, 1)
    return weight.reshape(like.shape)


def _title(kind: Kind) -> str:
    return {"loha": "LoHa", "lokr": "LoKr"}.get(kind, "LoRA")
