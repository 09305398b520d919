"""A LoRA of another rank: the best one of that rank, by singular value decomposition (Eckart and Young
1936)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .change import Parts, by_module, delta, kind_of, names_of, scale_of, shape_of
from .layouts import kernel_of


class Resized(NamedTuple):
    """A LoRA after a decomposition.

    Attributes:
        state: canonical name -> weight, in the dtype of the weights it was made of.
        kept: module -> share of its change's squared norm that the new rank holds, 0..1; 1 for no change.
    """

    state: dict[str, Tensor]
    kept: Mapping[str, float]


class Factors(NamedTuple):
    """A matrix as u @ diag(s) @ vh: u [out, k], s [k] descending, vh [k, in]."""

    u: Tensor
    s: Tensor
    vh: Tensor


def resize(state: Mapping[str, Tensor], *, rank: int | None = None, energy: float | None = None) -> Resized:
    """Reduce every module to a rank, or to the lowest rank that keeps enough of its change.

    LoHa and LoKr become plain LoRAs. A DoRA keeps its magnitudes, which then rescale the nearest change of
    that rank. A plain LoRA whose rank is no higher than `rank` stays as it is, to the last bit.

    Args:
        state: canonical name -> weight.
        rank: the highest rank of any module.
        energy: share of the squared norm of the change that each module keeps, 0..1. With both, both hold.

    Raises:
        ValueError: neither is given, or one is out of range.
    """
    check_target(rank, energy)
    modules, kept = {}, {}
    for module, parts in by_module(state).items():
        if (
            energy is None
            and "down" in parts
            and "mid" not in parts
            and parts["down"].shape[0] <= (rank or 0)
        ):
            modules[module], kept[module] = parts, 1.0
            continue
        dtype = next(tensor.dtype for part, tensor in parts.items() if part != "alpha")
        modules[module], kept[module] = cut(module, decompose(parts), shape_of(parts), dtype, rank, energy)
        if "dora_scale" in parts:
            modules[module]["dora_scale"] = parts["dora_scale"]
    return Resized(dict(names_of(modules)), kept)


def check_target(rank: int | None, energy: float | None) -> None:
    """Whether a rank and a share of energy make sense.

    Raises:
        ValueError: neither is given, or one is out of range.
    """
    if rank is None and energy is None:
        raise ValueError("Give a rank, or the share of the change to keep.")
    if rank is not None and rank < 1:
        raise ValueError(f"A rank must be at least 1, unlike {rank}.")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"The share to keep must lie above 0 and at most at 1, unlike {energy}.")


def decompose(parts: Parts) -> Factors:
    """The singular value decomposition of a module's change, in float64.

    A plain LoRA's never forms the large matrix: its factors are orthogonalised first, which leaves a
    [rank, rank] matrix to decompose.
    """
    if kind_of(parts) in ("loha", "lokr") or "mid" in parts:
        return dense(delta(parts))
    left = torch.linalg.qr(parts["up"].double().flatten(1))
    right = torch.linalg.qr(parts["down"].double().flatten(1).T)
    u, s, vh = torch.linalg.svd(left.R @ right.R.T * scale_of(parts), full_matrices=False)
    return Factors(left.Q @ u, s, vh @ right.Q.T)


def dense(matrix: Tensor) -> Factors:
    """The singular value decomposition of a change [out, in] or [out, in, k, k] as a matrix."""
    return Factors(*torch.linalg.svd(matrix.double().flatten(1), full_matrices=False))


def cut(
    module: str,
    factors: Factors,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    rank: int | None,
    energy: float | None,
) -> tuple[dict[str, Tensor], float]:
    """A plain LoRA of the largest singular values, and the share of the squared norm that it holds.

    Args:
        module: canonical path, which tells the kernel where `shape` does not.
        factors: of the whole change.
        shape: of the change, [out, in] or [out, in, k, k].
        dtype: of the result; alpha, which equals the rank, is float32.
        rank: at most so many.
        energy: the fewest that hold this share.
    """
    u, s, vh = factors
    squares = s.square()
    total = float(squares.sum())
    # What is zero but for rounding would only add a rank that does nothing.
    real = int(
        (s > s.max().clamp_min(1e-300) * max(shape[0], vh.shape[1]) * torch.finfo(torch.float32).eps).sum()
    )
    count = max(1, real)
    if energy is not None and total:
        enough = squares.cumsum(0) >= energy * total * (1 - 1e-12)
        count = min(count, int(enough.nonzero()[0]) + 1)
    if rank is not None:
        count = min(count, rank)
    root = s[:count].sqrt()
    down, up = root[:, None] * vh[:count], u[:, :count] * root
    kernel = shape[2:] or _kernel(module, shape[1])
    if kernel:
        down = down.reshape(count, -1, *kernel)
        up = up[:, :, None, None]
    parts = {"down": down.to(dtype), "up": up.to(dtype), "alpha": torch.tensor(float(count))}
    return parts, float(squares[:count].sum()) / total if total else 1.0


def _kernel(module: str, columns: int) -> tuple[int, int] | None:
    # A LoHa or LoKr on a convolution may come flattened; its module's name knows the kernel.
    size = kernel_of(module)
    return (size, size) if size > 1 and columns % size**2 == 0 else None
