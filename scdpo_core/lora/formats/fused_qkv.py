"""Matrices that the original checkpoints of SD3 and FLUX fuse: a LoRA's weights split, and joined again.

The rows of the fused matrix are those of its members, one after the other. Splitting is exact for LoRA and
LoHa: each member gets its own rows, and shares what all rows have in common. So is joining what shares that
already. LoRAs that do not are joined block by block, which adds their ranks up and is exact too, but for
one rounding where the members' alpha / rank differ. LoKr splits where its first factor's rows do; a DoRA
splits where its magnitudes belong to rows. What cannot be exact raises a sentence; what cannot be joined can
still be written member by member. Shapes: down [rank, in], up [rows, rank].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...types import ScdpoError
from ..weights import Parts, inputs_of, row_parts, rows_and_unit

_LAST_OF_LINEAR1 = "proj_mlp"


class ApartError(ScdpoError):
    """Members whose changes no weights of the fused matrix can hold exactly."""


def split_rows(parts: Parts, members: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """The weights of each member of a fused module, by its name.

    Members that the fused weights leave alone are left out. A LoRA whose ranks belong to one member each
    (what `join_rows` makes of independent ones) gives each member its own ranks only.

    Raises:
        ScdpoError: the members cannot have it exactly.
    """
    parts = _linear(parts)
    rows, unit = rows_and_unit(parts)
    sizes = _sizes(rows, inputs_of(parts), members)
    if any(size % unit for size in sizes):
        raise ScdpoError(
            f"a LoKr whose blocks of {unit} rows do not fit its members' {sizes[0]} rows "
            "cannot be split exactly"
        )
    magnitude = parts.get("dora_scale")
    if magnitude is not None and magnitude.shape[0] != rows:
        raise ScdpoError(
            "a DoRA with magnitudes of columns cannot be split exactly: they are of the whole matrix"
        )
    ends = torch.tensor(sizes).cumsum(0).tolist()
    bounds = list(zip([0, *ends], ends, strict=False))
    if "up" in parts and magnitude is None:
        owners = _owners(parts["up"], bounds)
        if owners is not None:
            return {
                member: _own_ranks(parts, bound, ranks)
                for member, bound, ranks in zip(members, bounds, owners, strict=True)
                if ranks
            }
    shares = {}
    for member, (start, end) in zip(members, bounds, strict=True):
        share = dict(parts)
        for part in row_parts(parts):
            scale = 1 if part == "dora_scale" else unit
            share[part] = parts[part][start // scale : end // scale]
        shares[member] = share
    if magnitude is not None:
        return shares  # a member without a change of its own still has its rows' magnitudes
    touched = {member: share for member, share in shares.items() if _changes(share)}
    return touched or shares


def join_rows(shares: Mapping[str, Parts], members: Sequence[str]) -> dict[str, Tensor]:
    """The weights of the fused module; rows of members that `shares` lacks stay unchanged.

    Raises:
        ApartError: they cannot be joined exactly.
        ScdpoError: they are no changes of linear layers.
    """
    shares = {member: _linear(shares[member]) for member in members if member in shares}
    given = list(shares.values())
    first = given[0]
    kinds = {frozenset(share) - {"alpha"} for share in given}
    if len(kinds) > 1:
        raise ApartError("its members are of different kinds (LoRA, LoHa, LoKr, DoRA), which cannot be fused")
    if "dora_scale" in first and len(given) < len(members):
        raise ApartError(
            "a DoRA of only some of its members cannot be fused: the others' magnitudes are unknown"
        )
    if "dora_scale" in first and any(share["dora_scale"].shape[0] == 1 for share in given):
        raise ApartError("a DoRA with magnitudes of columns cannot be fused exactly")
    rows_of = _member_rows(shares, members)
    by_rows = row_parts(first)
    shared = [
        part for part in dict.fromkeys(part for share in given for part in share) if part not in by_rows
    ]
    if all(_equal(share.get(part), first.get(part)) for share in given for part in shared):
        unit = rows_and_unit(first)[1]
        joined = dict(first)
        for part in by_rows:
            scale = 1 if part == "dora_scale" else unit
            pieces = []
            for member in members:
                share = shares.get(member)
                blank = first[part].new_zeros(rows_of[member] // scale, *first[part].shape[1:])
                pieces.append(blank if share is None else share[part])
            joined[part] = torch.cat(pieces)
        return joined
    if "up" not in first or "dora_scale" in first:
        raise ApartError(
            "only members that share their other factors can be fused exactly, unless they are plain LoRAs"
        )
    return _block_diagonal(shares, members, rows_of)


def swap_halves(parts: Parts) -> dict[str, Tensor]:
    """The same change with the two halves of its rows exchanged; doing it twice undoes it.

    Raises:
        ScdpoError: a LoKr whose blocks do not divide into halves.
    """
    parts = _linear(parts)
    swapped = dict(parts)
    for part in row_parts(parts):
        rows = parts[part].shape[0]
        if rows % 2:
            raise ScdpoError("its rows do not divide into the scale's and the shift's halves")
        swapped[part] = torch.cat([parts[part][rows // 2 :], parts[part][: rows // 2]])
    return swapped


def _linear(parts: Parts) -> dict[str, Tensor]:
    """The weights of a linear layer as matrices, where they come as kernels of one pixel.

    Raises:
        ScdpoError: they are those of a convolution.
    """
    flat = {}
    for part, tensor in parts.items():
        beside = part in ("alpha", "dora_scale")
        if part in ("mid", "hada_t1", "lokr_t2") or (not beside and tensor[0, 0].numel() != 1):
            raise ScdpoError("a convolution's kernel stands where a linear layer belongs")
        flat[part] = tensor if beside or tensor.ndim == 2 else tensor.flatten(1)
    return flat


def _block_diagonal(
    shares: Mapping[str, Parts], members: Sequence[str], rows_of: Mapping[str, int]
) -> dict[str, Tensor]:
    given = [shares[member] for member in members if member in shares]
    ranks = [share["down"].shape[0] for share in given]
    alphas = [
        float(share["alpha"]) if "alpha" in share else float(rank)
        for share, rank in zip(given, ranks, strict=True)
    ]
    # Compared crosswise: a quotient would round.
    same = all(alpha * ranks[0] == alphas[0] * rank for alpha, rank in zip(alphas, ranks, strict=True))
    blocks = []
    left, total = 0, sum(ranks)
    for member in members:
        share = shares.get(member)
        block = given[0]["up"].new_zeros(rows_of[member], total)
        if share is not None:
            rank = share["down"].shape[0]
            up = share["up"]
            if not same:
                up = (up.double() * (float(share.get("alpha", torch.tensor(float(rank)))) / rank)).to(
                    up.dtype
                )
            block[:, left : left + rank] = up
            left += rank
        blocks.append(block)
    joined = {"down": torch.cat([share["down"] for share in given]), "up": torch.cat(blocks)}
    if same and all("alpha" not in share for share in given):
        return joined
    dtype = next(share["alpha"].dtype for share in given if "alpha" in share)
    return {**joined, "alpha": torch.tensor(sum(alphas) if same else float(total), dtype=dtype)}


def _owners(up: Tensor, bounds: Sequence[tuple[int, int]]) -> list[list[int]] | None:
    """The ranks of each member, when no rank touches two members and they stand in the members' order."""
    touches = torch.stack([up[start:end].ne(0).any(0) for start, end in bounds])  # [members, rank]
    rank = up.shape[1]
    if bool((touches.sum(0) > 1).any()) or not bool(touches.any()):
        return None
    owner = torch.where(touches.any(0), touches.int().argmax(0), -1).tolist()
    active = sorted({number for number in owner if number >= 0})
    # Ranks that touch nothing belong to the equal share they lie in, if the others agree with equal shares.
    if rank % len(active) == 0:
        equal = [active[place // (rank // len(active))] for place in range(rank)]
        if all(own in (-1, guess) for own, guess in zip(owner, equal, strict=True)):
            owner = equal
    current = active[0]
    for place, own in enumerate(owner):
        if own != -1 and own < current:
            return None
        current = own if own != -1 else current
        owner[place] = current
    return [[place for place, own in enumerate(owner) if own == member] for member in range(len(bounds))]


def _own_ranks(parts: Parts, bound: tuple[int, int], ranks: Sequence[int]) -> dict[str, Tensor]:
    first, last = ranks[0], ranks[-1] + 1
    own = {"down": parts["down"][first:last], "up": parts["up"][bound[0] : bound[1], first:last]}
    alpha = parts.get("alpha")
    if alpha is not None:
        share = float(alpha) * (last - first) / parts["down"].shape[0]
        own["alpha"] = torch.tensor(share, dtype=alpha.dtype)
    return own


def _sizes(rows: int, inputs: int, members: Sequence[str]) -> list[int]:
    """Rows of each member: equal ones, but for an MLP, which takes what queries, keys and values leave."""
    if members[-1].endswith(_LAST_OF_LINEAR1):
        sizes = [inputs] * (len(members) - 1)
        sizes.append(rows - sum(sizes))
    else:
        sizes = [rows // len(members)] * len(members)
    if sum(sizes) != rows or min(sizes) <= 0:
        raise ScdpoError(f"{rows} rows are not those of {len(members)} fused layers")
    return sizes


def _member_rows(shares: Mapping[str, Parts], members: Sequence[str]) -> dict[str, int]:
    known = {member: rows_and_unit(share)[0] for member, share in shares.items()}
    width = inputs_of(next(iter(shares.values())))
    # FLUX's MLP is four times as wide as its input; queries, keys and values are as wide as it.
    rows = {member: 4 * width if member.endswith(_LAST_OF_LINEAR1) else width for member in members}
    return rows | known


def _changes(share: Parts) -> bool:
    return all(bool(share[part].ne(0).any()) for part in row_parts(share) if part != "dora_scale")


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))
