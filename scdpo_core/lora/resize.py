"""A LoRA of another rank: the best one of that rank, by singular value decomposition (Eckart and Young
1936)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..types import ScdpoError
from .formats.layouts import kernel_of
from .weights import Parts, by_module, delta, kind_of, kronecker, low_rank, names_of, shape_of


class Resized(NamedTuple):
    """A LoRA after a decomposition.

    Attributes:
        state: canonical name -> weight, in the dtype of the weights it was made of.
        kept: module -> share of its change's squared norm that the new rank holds, 0..1; 1 for no change.
    """

    state: dict[str, Tensor]
    kept: Mapping[str, float]


class Factors(NamedTuple):
    """A matrix as u @ diag(s) @ vh: u [out, k], s [k] descending, vh [k, in].

    u and vh may hold fewer than k: those of the largest values, as many as were asked for.
    """

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
        modules[module], kept[module] = cut(
            module, decompose(module, parts, rank), shape_of(parts), dtype, rank, energy
        )
        if "dora_scale" in parts:
            modules[module]["dora_scale"] = parts["dora_scale"]
    return Resized(dict(names_of(modules)), kept)


def at_rank(state: Mapping[str, Tensor], rank: int, seed: int) -> dict[str, Tensor]:
    """Bring every module to a rank, in float32: cut by `resize`, or filled up with what does nothing yet.

    What is filled up is as in a new LoRA: down is uniform within 1 / sqrt(inputs), up is zero. Alpha follows
    the rank, so that the change stays what it was.

    Args:
        state: canonical name -> weight.
        rank: of every module of the result.
        seed: of what is filled up.

    Raises:
        ScdpoError: see `resize`.
    """
    cut_down = resize({name: tensor.float() for name, tensor in state.items()}, rank=rank).state
    generator = torch.Generator().manual_seed(seed)
    modules = {module: _filled_up(parts, rank, generator) for module, parts in by_module(cut_down).items()}
    return dict(names_of(modules))


def _filled_up(parts: Parts, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    down, up = parts["down"], parts["up"]
    own = down.shape[0]
    if own == rank:
        return dict(parts)
    bound = down[0].numel() ** -0.5
    new = torch.empty(rank - own, *down.shape[1:]).uniform_(-bound, bound, generator=generator)
    nothing = torch.zeros(up.shape[0], rank - own, *up.shape[2:])
    filled = {"down": torch.cat([down, new]), "up": torch.cat([up, nothing], 1)}
    return {**parts, **filled, "alpha": parts["alpha"] * (rank / own)}


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


def decompose(module: str, parts: Parts, most: int | None = None) -> Factors:
    """The singular value decomposition of a module's change, in float64.

    The large matrix is formed only where there is no other way. Factors of low rank are orthogonalised first,
    which leaves a [rank, rank] matrix to decompose; a Kronecker product's decomposition is that of its
    factors'.

    Args:
        module: what to call it in an error.
        parts: its weights.
        most: how many columns of u and rows of vh are wanted; None for all.

    Raises:
        ScdpoError: the change has numbers beyond all measure.
    """
    if kind_of(parts) == "lokr":
        first, second = kronecker(parts)
        if first.ndim == 2:
            return _kronecker(dense(module, first), dense(module, second), most)
    factors = low_rank(parts)
    if factors is None:
        return dense(module, delta(parts))
    left, right = torch.linalg.qr(factors[0]), torch.linalg.qr(factors[1].T)
    u, s, vh = dense(module, left.R @ right.R.T)
    return Factors(left.Q @ u, s, vh @ right.Q.T)


def _kronecker(first: Factors, second: Factors, most: int | None) -> Factors:
    """Every singular value of a Kronecker product is a product of one of either factor's."""
    s, order = torch.outer(first.s, second.s).flatten().sort(descending=True)
    one, other = order[:most] // len(second.s), order[:most] % len(second.s)
    u = (first.u[:, None, one] * second.u[None, :, other]).flatten(0, 1)
    vh = (first.vh[one][:, :, None] * second.vh[other][:, None, :]).flatten(1)
    return Factors(u, s, vh)


def dense(module: str, matrix: Tensor) -> Factors:
    """The singular value decomposition of a change [out, in] or [out, in, k, k] as a matrix.

    Raises:
        ScdpoError: it has numbers beyond all measure.
    """
    matrix = matrix.double().flatten(1)
    try:
        if bool(matrix.isfinite().all()):
            return Factors(*torch.linalg.svd(matrix, full_matrices=False))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        pass
    what = f"The change of '{module}' has numbers beyond all measure"
    raise ScdpoError(f"{what}: the training fell apart. Use an earlier file.")


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
