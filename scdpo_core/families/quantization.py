"""Frozen matrices in 8 or 4 bits: what they cost in memory falls to a half or a quarter of 16 bits.

Only how a matrix is kept changes; for each product it is widened to the type of what it is multiplied with,
and forgotten again. So this needs no kernels of its own and runs wherever torch does, at the price of that
widening in every step. Only the linear layers inside a denoiser's blocks are kept so; the few that embed and
put out, whose errors every block would see, and the convolutions stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

Quantize = Literal["off", "int8", "fp8", "nf4"]
"""'int8': 256 even levels a row; 'fp8': 8-bit floats (e4m3) and a scale a row; 'nf4': 16 levels, 64 weights a
block."""

_BLOCK = 64
# UNets and most transformers call them blocks, Z-Image layers and refiners.
_IN_BLOCK = re.compile(r"(?:^|\.)(?:\w*blocks|layers|\w+_refiner)\.\d+\.")
_FP8 = torch.float8_e4m3fn
# The 16 levels of NormalFloat (Dettmers et al. 2023, "QLoRA", appendix E): quantiles of a normal
# distribution, scaled to -1..1, with an exact zero.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def quantize(network: nn.Module, kind: Quantize) -> int:
    """Replace the frozen linear layers inside a denoiser's blocks, in place; returns how many.

    Args:
        network: a denoiser of diffusers, frozen, before a LoRA is attached; its answers then differ a little.
        kind: see `Quantize`; 'off' changes nothing.
    """
    if kind == "off":
        return 0
    chosen = [
        name
        for name, module in network.named_modules()
        if type(module) is nn.Linear and _IN_BLOCK.search(name) and module.in_features % 2 == 0
    ]
    for name in chosen:
        parent, _, own = name.rpartition(".")
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(network.get_submodule(parent), own, QuantizedLinear(layer, kind))
    return len(chosen)


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose `weight` is a code; `dense()` is the matrix that it stands for.

    Attributes:
        kind: how it is coded.
        scale: of rows or blocks, float32.
        levels: [16] that nf4's codes stand for; None for other kinds.
    """

    kind: Quantize
    scale: Tensor
    levels: Tensor | None

    def __init__(self, layer: nn.Linear, kind: Quantize) -> None:
        """Code a layer's matrix; its bias stays as it is."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kind = kind
        code, scale = _CODERS[kind](layer.weight.detach().float())
        self.weight = nn.Parameter(code, requires_grad=False)
        self.register_buffer("scale", scale)
        self.register_buffer("levels", torch.tensor(_NF4) if kind == "nf4" else None)
        self.bias = layer.bias

    def dense(self, dtype: torch.dtype) -> Tensor:
        """[out, in] matrix."""
        if self.levels is None:
            return (self.weight.float() * self.scale).to(dtype)
        return _from_nf4(self.weight, self.scale, self.levels).view(-1, self.in_features).to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The product with the matrix."""
        result: Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        return result if self.bias is None else result + self.bias.to(result.dtype)


class _Product(torch.autograd.Function):
    """x @ W^T, which keeps neither x nor the widened W for the way back: W is frozen, and is widened anew."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, layer: QuantizedLinear) -> Tensor:
        if torch.is_autocast_enabled(values.device.type):
            values = values.to(torch.get_autocast_dtype(values.device.type))
        ctx.layer = layer
        return torch.matmul(values, layer.dense(values.dtype).T)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.matmul(gradient, ctx.layer.dense(gradient.dtype)), None


def _rows(weight: Tensor, highest: float) -> Tensor:
    """[out, 1] scale that brings the largest value of each row to `highest`."""
    return (weight.abs().amax(dim=1, keepdim=True) / highest).clamp_min(torch.finfo(torch.float32).tiny)


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = _rows(weight, 127)
    return (weight / scale).round().to(torch.int8), scale


def _to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = _rows(weight, torch.finfo(_FP8).max)
    return (weight / scale).to(_FP8), scale


def _to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two codes a byte, [out * in / 2], and [blocks, 1]; the last block is filled up with zeros."""
    flat = weight.flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % _BLOCK)).view(-1, _BLOCK)
    scale = _rows(blocks, 1)
    levels = torch.tensor(_NF4)
    borders = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(blocks / scale, borders).flatten()[: len(flat)].to(torch.uint8)
    return codes[::2] << 4 | codes[1::2], scale


def _from_nf4(code: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
    values = levels[torch.stack([code >> 4, code & 15], dim=-1).flatten().int()]
    filled = nn.functional.pad(values, (0, -len(values) % _BLOCK)).view(-1, _BLOCK) * scale
    return filled.flatten()[: len(values)]


_CODERS: Mapping[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "int8": _to_int8,
    "fp8": _to_fp8,
    "nf4": _to_nf4,
}
