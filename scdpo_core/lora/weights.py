"""What the weights of a LoRA, LoHa or LoKr add to a module's matrix, and how they count their rank.

Sources: LoRA (Hu et al. 2021); LoHa and LoKr as LyCORIS defines them (Yeh et al. 2023), with the conventions
of ComfyUI's loader: alpha counts against the rank of the factors, and not at all for a LoKr without any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import groupby

import torch
from torch import Tensor

from ..types import ScdpoError
from .formats.keys import split

Parts = Mapping[str, Tensor]
"""The weights of one module, by part (see `keys.ALL_PARTS`)."""

KINDS = ("lora", "dora", "loha", "lokr")
"""What a module's change can be."""

MAX_ENTRIES = 1 << 26
"""The most numbers that one module's change may have. FLUX's `linear1`, the largest layer of the models known
here, has 66 million; a file of some kilobytes can claim any number."""


class TooLargeError(ScdpoError):
    """A change, or a product on the way to it, with more than `MAX_ENTRIES` numbers."""


_ROW_PARTS = ("up", "hada_w1_a", "hada_w2_a", "lokr_w1", "lokr_w1_a", "dora_scale")
_NEEDED = {
    "lora": (("down",), ("up",)),
    "loha": (("hada_w1_a",), ("hada_w1_b",), ("hada_w2_a",), ("hada_w2_b",)),
    "lokr": (("lokr_w1", "lokr_w1_a"), ("lokr_w2", "lokr_w2_a")),
}
_BESIDE = ("alpha", "dora_scale")
# Kernels have four; what is not named here is a matrix.
_AXES: dict[str, tuple[int, ...]] = {part: (4,) for part in ("mid", "hada_t1", "hada_t2", "lokr_t2")}
_AXES |= {part: (2, 4) for part in ("down", "up", "lokr_w2")}
_IN_PAIRS = (("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b"), ("hada_t1", "hada_t2"))


def by_module(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Canonical module path -> its weights by part, in the order of the paths."""
    named = sorted(((*split(name), tensor) for name, tensor in state.items()), key=lambda item: item[0])
    return {
        module: {part: tensor for _, part, tensor in group}
        for module, group in groupby(named, key=lambda item: item[0])
    }


def names_of(modules: Mapping[str, Parts]) -> Iterator[tuple[str, Tensor]]:
    """The way back: canonical name and tensor of every weight."""
    for module, parts in modules.items():
        for part, tensor in parts.items():
            yield f"{module}.{part}", tensor


def kind_of(parts: Parts) -> str:
    """One of `KINDS`; 'dora' is a LoRA with magnitudes."""
    if any(part.startswith("hada_") for part in parts):
        return "loha"
    if any(part.startswith("lokr_") for part in parts):
        return "lokr"
    return "dora" if "dora_scale" in parts else "lora"


def check(module: str, parts: Parts) -> None:
    """Whether a module's weights are complete and fit each other.

    Raises:
        ScdpoError: they do not; a sentence that begins with 'is incomplete' or 'is damaged'.
    """
    kind = kind_of(parts)
    needed = list(_NEEDED["lora" if kind == "dora" else kind])
    needed += [(other,) for pair in _IN_PAIRS for one, other in (pair, pair[::-1]) if one in parts]
    for choices in needed:
        if not any(part in parts for part in choices):
            raise ScdpoError(f"is incomplete: '{module}' has no {choices[0]} weight.")
    extra = {"lora": ("hada", "lokr"), "dora": ("hada", "lokr"), "loha": ("up", "down", "lokr")}.get(
        kind, ("up", "down")
    )
    mixed = next((part for part in parts if part.startswith(extra)), None)
    if mixed is not None:
        raise ScdpoError(f"is damaged: '{module}' has a {kind} and a {mixed} at once.")
    empty = next((part for part, tensor in parts.items() if tensor.numel() == 0), None)
    if empty is not None:
        raise ScdpoError(f"is damaged: the {empty} weight of '{module}' is empty.")
    misfit = ScdpoError(f"is damaged: the weights of '{module}' do not fit each other.")
    if any(tensor.ndim not in _AXES.get(part, (2,)) for part, tensor in parts.items() if part not in _BESIDE):
        raise misfit
    if "up" in parts and parts["up"][0, 0].numel() != 1:
        raise misfit
    try:
        shape = shape_of(parts)
    except TooLargeError as error:
        raise ScdpoError(f"is damaged: '{module}' {error}") from None
    except (RuntimeError, IndexError, ValueError):
        raise misfit from None
    magnitude = parts.get("dora_scale")
    if magnitude is not None and (magnitude.ndim == 0 or magnitude.numel() not in shape[:2]):
        raise misfit


def rank_of(parts: Parts) -> int | None:
    """The rank that alpha counts against; None for a LoKr of two full factors, which has none."""
    for part in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if part in parts:
            return parts[part].shape[0] if parts[part].ndim else None
    return None


def scale_of(parts: Parts) -> float:
    """alpha / rank; 1 where either is missing."""
    rank, alpha = rank_of(parts), parts.get("alpha")
    return 1.0 if not rank or alpha is None else float(alpha) / rank


def delta(parts: Parts) -> Tensor:
    """What a module's matrix or kernel gains at strength 1, [out, in] or [out, in, k, k] in float32.

    A DoRA's magnitudes are not in it: they rescale the sum, which needs the base's own weights. Computed in
    float64, so that what is compared or decomposed later carries the weights' own rounding only. A LoHa or
    LoKr on a convolution without kernel factors comes flattened, [out, in * k * k].

    Raises:
        TooLargeError: before anything of that size is made.
    """
    w = _widened(parts)
    scale = 1.0 if any(tensor.is_meta for tensor in w.values()) else scale_of(parts)
    kind = kind_of(parts)
    if kind == "loha":
        change = _tucker(w, "hada_t1", "hada_w1").mul_(_tucker(w, "hada_t2", "hada_w2"))
    elif kind == "lokr":
        first, second = _kronecker(w)
        _require_room(first.numel(), second.numel())
        change = torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second)
    else:
        down, up = w["down"], w["up"]
        if "mid" in w:
            _require_room(w["mid"].shape[0], *w["mid"].shape[2:], down[0].numel())
            down = torch.einsum("nmkl,mi->nikl", w["mid"], down.flatten(1))
        change = _product(up.flatten(1), down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
    return change.mul_(scale).float()


def low_rank(parts: Parts) -> tuple[Tensor, Tensor] | None:
    """Factors up [out, k] and down [k, in] in float64 whose product is the change at strength 1.

    A plain LoRA's are its own. A LoHa's come of (a b) * (c d) = sum over p and q of
    (a_p * c_q) (b_p * d_q): its two ranks multiplied. None where that gains nothing over the change itself.
    """
    w, kind = _widened(parts), kind_of(parts)
    if kind in ("lora", "dora") and "mid" not in parts:
        return w["up"].flatten(1) * scale_of(parts), w["down"].flatten(1)
    if kind == "loha" and "hada_t1" not in parts:
        a, b, c, d = (w[part] for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))
        if a.shape[1] * c.shape[1] < min(a.shape[0], b.shape[1]):
            up = (a[:, :, None] * c[:, None, :]).flatten(1)
            return up * scale_of(parts), (b[:, None, :] * d[None, :, :]).flatten(0, 1)
    return None


def kronecker(parts: Parts) -> tuple[Tensor, Tensor]:
    """The two factors of a LoKr in float64, the second with the scale: their Kronecker product is the change.

    [out1, in1] and [out2, in2], or [out2, in2, k, k] of a convolution.

    Raises:
        TooLargeError: as `delta`.
    """
    first, second = _kronecker(_widened(parts))
    return first, second * scale_of(parts)


def shape_of(parts: Parts) -> tuple[int, ...]:
    """The shape of `delta`, without computing it.

    Raises:
        RuntimeError, ValueError, IndexError: the weights do not fit each other.
    """
    meta = {part: torch.empty_like(tensor, device="meta") for part, tensor in parts.items()}
    return tuple(delta(meta).shape)


def rows_and_unit(parts: Parts) -> tuple[int, int]:
    """Rows of the change, and how many of them one row of its `row_parts` stands for (more than 1 in a
    LoKr)."""
    if "up" in parts:
        return parts["up"].shape[0], 1
    if "hada_w1_a" in parts:
        return parts["hada_w1_a"].shape[0], 1
    unit = (parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"]).shape[0]
    return (parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"]).shape[0] * unit, unit


def inputs_of(parts: Parts) -> int:
    """Columns of a linear layer's change."""
    if "down" in parts:
        return parts["down"].shape[1]
    if "hada_w1_b" in parts:
        return parts["hada_w1_b"].shape[1]
    first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_b"]
    return first.shape[1] * (parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_b"]).shape[1]


def row_parts(parts: Parts) -> list[str]:
    """Those of a linear layer's parts whose rows are the change's."""
    return [part for part in parts if part in _ROW_PARTS]


def _widened(parts: Parts) -> dict[str, Tensor]:
    return {
        part: tensor if tensor.is_meta else tensor.double()
        for part, tensor in parts.items()
        if part != "alpha"
    }


def _kronecker(w: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    first = w["lokr_w1"] if "lokr_w1" in w else _product(w["lokr_w1_a"], w["lokr_w1_b"])
    return first, w["lokr_w2"] if "lokr_w2" in w else _tucker(w, "lokr_t2", "lokr_w2")


def _tucker(w: Mapping[str, Tensor], core: str, factors: str) -> Tensor:
    a, b = w[f"{factors}_a"], w[f"{factors}_b"]
    if core not in w:
        return _product(a, b)
    # With a kernel both factors have the rank first: [rank, out], [rank, in], [rank, rank, k, k].
    kernel = w[core].shape[2:]
    _require_room(w[core].shape[0], b.shape[1], *kernel)
    _require_room(a.shape[1], b.shape[1], *kernel)
    return torch.einsum("pikl,po->oikl", torch.einsum("pqkl,qi->pikl", w[core], b), a)


def _product(a: Tensor, b: Tensor) -> Tensor:
    _require_room(a.shape[0], b.shape[1])
    return a @ b


def _require_room(*sizes: int) -> None:
    if math.prod(sizes) > MAX_ENTRIES:
        raise TooLargeError(
            f"claims {math.prod(sizes):,} numbers, and no layer of the models known here has more than "
            f"{MAX_ENTRIES:,}."
        )
