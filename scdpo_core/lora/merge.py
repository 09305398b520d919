"""Several LoRAs as one: their weighted sum, or for each weight of the model the LoRA that changes it most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Literal, get_args

import torch
from torch import Tensor

from ..types import LoraFile, ScdpoError
from .resize import Factors, Resized, check_target, cut, decompose, dense
from .weights import Parts, by_module, delta, kind_of, names_of, scale_of, shape_of

Method = Literal["sum", "strongest"]
METHODS: tuple[Method, ...] = get_args(Method)
"""'sum': the weighted changes added up. 'strongest': in each place of each matrix the largest change wins."""


def common_family(files: Sequence[LoraFile]) -> str:
    """The family that LoRAs share; '' if none says which.

    Raises:
        ScdpoError: two are for different base models; names both files.
    """
    known = [file for file in files if file.family]
    for file in known:
        if file.family != known[0].family:
            raise ScdpoError(
                f"{known[0].path} is for {known[0].family} and {file.path} is for {file.family}: LoRAs for "
                "different base models cannot be merged."
            )
    return known[0].family if known else ""


def merge(
    loras: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    *,
    method: Method = "sum",
    rank: int | None = None,
    energy: float | None = None,
) -> Resized:
    """One LoRA that does the work of several.

    'sum' without a rank lays the LoRAs side by side: exact but for rounding, and the ranks add up. With a
    rank, or for LoHa and LoKr, it is the nearest change of that rank. 'strongest' compares the changes
    entry by entry (times their weights) and keeps the one of the largest size, sign and all, so that
    experts which changed different places do not dilute each other; its result has no low rank, and is cut
    to `rank`, to `energy`, or without either to the sum of the ranks.

    Args:
        loras: canonical name -> weight, of each.
        weights: the strength of each; negative ones subtract.
        method: see `METHODS`.
        rank: the highest rank of any module.
        energy: share of each module's squared norm to keep, 0..1.

    Returns:
        float32 weights, and what share of each module's merged change they hold.

    Raises:
        ScdpoError: a DoRA, or LoRAs whose modules have different sizes.
        ValueError: the arguments make no sense.
    """
    if method not in METHODS:
        raise ValueError(f"There is no merge method '{method}'; choose one of {', '.join(METHODS)}.")
    if len(loras) != len(weights) or not loras:
        raise ValueError(f"There are {len(loras)} LoRAs and {len(weights)} weights.")
    if rank is not None or energy is not None:
        check_target(rank, energy)
    grouped = [by_module(state) for state in loras]
    modules, kept = {}, {}
    for module in sorted({module for group in grouped for module in group}):
        own = [
            (group[module], weight) for group, weight in zip(grouped, weights, strict=True) if module in group
        ]
        _require_fit(module, [parts for parts, _ in own])
        plain = all(kind_of(parts) == "lora" and "mid" not in parts for parts, _ in own)
        if method == "sum" and plain:
            joined = _side_by_side(own)
            if rank is None and energy is None:
                modules[module], kept[module] = joined, 1.0
                continue
            shape, factors = shape_of(joined), decompose(module, joined)
        else:
            # A LoHa or LoKr on a convolution may come flattened.
            form = max((shape_of(parts) for parts, _ in own), key=len)
            changes = (delta(parts).reshape(form).mul_(weight) for parts, weight in own)
            # One by one: a matrix may have tens of millions of numbers.
            change = reduce(torch.Tensor.add_, changes) if method == "sum" else strongest(changes)
            shape, factors = tuple(change.shape), dense(module, change)
        limit = rank
        if rank is None and energy is None:
            limit = sum(_rank(parts, factors) for parts, _ in own)
        modules[module], kept[module] = cut(module, factors, shape, torch.float32, limit, energy)
    return Resized(dict(names_of(modules)), kept)


def strongest(changes: Iterable[Tensor]) -> Tensor:
    """Entry by entry the value of the largest size among tensors of one shape; the first of equals."""
    return reduce(lambda one, other: torch.where(other.abs() > one.abs(), other, one), changes)


def _side_by_side(own: Sequence[tuple[Parts, float]]) -> dict[str, Tensor]:
    like = own[0][0]["down"]
    downs, ups = [], []
    for parts, weight in own:
        # alpha / rank and the weight go into one of the factors, since the ranks share one alpha now.
        downs.append(parts["down"].float().reshape(parts["down"].shape[0], *like.shape[1:]))
        up = parts["up"].double() * (scale_of(parts) * weight)
        ups.append(up.float().reshape(*up.shape[:2], *[1] * (like.ndim - 2)))
    total = sum(down.shape[0] for down in downs)
    return {"down": torch.cat(downs), "up": torch.cat(ups, 1), "alpha": torch.tensor(float(total))}


def _require_fit(module: str, every: Sequence[Parts]) -> None:
    if any("dora_scale" in parts for parts in every):
        raise ScdpoError(
            f"'{module}' is a DoRA, whose magnitudes depend on the base model's weights: it cannot be merged."
        )
    sizes = {(shape[0], torch.Size(shape[1:]).numel()) for shape in map(shape_of, every)}
    if len(sizes) > 1:
        raise ScdpoError(
            f"The LoRAs change '{module}' in different sizes "
            f"({' and '.join(map(str, sorted(sizes)))}): they are for "
            "different base models."
        )


def _rank(parts: Parts, factors: Factors) -> int:
    return parts["down"].shape[0] if "down" in parts else len(factors.s)
