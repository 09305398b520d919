"""A file's tensors into canonical weights, and back into any dialect: names, and what they do to the
numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...types import ScdpoError
from ..dtypes import one_number
from ..weights import by_module, check, inputs_of, names_of, rank_of, rows_and_unit, scale_of
from .fused_qkv import ApartError, join_rows, split_rows, swap_halves
from .keys import Dialect, addresses, apart, key, place
from .layouts import TRANSFORMERS, swaps_halves
from .names import split_key, strip_prefix
from .peft_settings import PeftSettings, is_number, is_peft_stem
from .proportions import likely_transformers

ALPHAS = "scdpo_alpha"
"""Metadata of our own peft files: the alphas that were multiplied into their weights, and can be taken
out again."""
_SCALED = ("up", "hada_w1_a", "lokr_w1", "lokr_w1_a")


class Written(NamedTuple):
    """Tensors by the names of a dialect, and what the file's metadata must say beside them."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def from_file(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    modules: Iterable[str] | None = None,
    settings: PeftSettings | None = None,
) -> dict[str, Tensor]:
    """Canonical name -> tensor, of a file in any dialect.

    Args:
        tensors: as they stand in the file.
        metadata: the file's; `to_file` leaves alphas there.
        modules: see `keys.addresses`.
        settings: that peft or diffusers left beside the weights, with their alphas.

    Raises:
        KeyNameError: a key is not understood.
        ScdpoError: a fused weight cannot be split exactly; names it.
    """
    found = addresses(tensors, modules, likely_transformers(tensors, metadata))
    grouped: dict[tuple[tuple[str, ...], bool], dict[str, str]] = {}
    for name, address in found.items():
        grouped.setdefault((address.modules, address.original), {})[address.part] = name
    state: dict[str, dict[str, Tensor]] = {}
    for (members, original), names in grouped.items():
        parts = {part: _canonical(part, name, tensors) for part, name in names.items()}
        first = next(iter(names.values()))
        if settings is not None:
            parts = _scaled(parts, first, settings)
        try:
            if original:
                check(first, parts)
            if len(members) > 1:
                split = split_rows(parts, members)
            elif original and swaps_halves(members[0], "", partial(_sides, first, parts)):
                split = {members[0]: swap_halves(parts)}
            else:
                split = {members[0]: parts}
        except ScdpoError as error:
            raise ScdpoError(f"'{first}' cannot be read: {str(error).rstrip('.')}.") from error
        for module, own in split.items():
            state.setdefault(module, {}).update(own)
    _take_alphas(state, _parsed(metadata.get(ALPHAS)))
    return dict(names_of(state))


def to_file(state: Mapping[str, Tensor], dialect: Dialect, family: str) -> Written:
    """The tensors of a file in a dialect, in the order of their names.

    kohya, kohya-ldm and comfyui keep every bit, but for the rounding of `fused_qkv.join_rows`; what
    cannot be joined at all keeps the names of its members, see `keys.apart`. peft
    files have no place for alpha that all their readers look at, so alpha / rank is multiplied into the
    weights: exact for powers of two (1 above all), one rounding otherwise.

    Raises:
        KeyNameError: the dialect has no name for a weight.
        ScdpoError: a weight does not belong where it is; names it.
    """
    modules = by_module(state)
    done: set[str] = set()
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for module, parts in modules.items():
        if module in done:
            continue
        stem, members = place(module, dialect, family)
        done.update(members)
        if dialect == "peft":
            parts, taken = _folded(parts)
            if taken is not None:
                alphas[module] = taken
        elif len(members) > 1:
            shares = {member: modules[member] for member in members if member in modules}
            try:
                parts = join_rows(shares, members)
            except ApartError:
                for member, share in shares.items():
                    tensors |= {
                        key(apart(member, dialect), part, dialect): own for part, own in share.items()
                    }
                continue
            except ScdpoError as error:
                raise ScdpoError(f"'{stem}' cannot be written in '{dialect}': {error}.") from error
        elif family in TRANSFORMERS and swaps_halves(module, family, partial(_sides, stem, parts)):
            parts = swap_halves(parts)
        for part, tensor in parts.items():
            tensors[key(stem, part, dialect)] = _spoken(part, tensor, parts, dialect)
    # Said even where every alpha is its rank: a peft file that says nothing may be at any strength.
    metadata = {ALPHAS: _short(alphas, modules)} if dialect == "peft" else {}
    return Written(dict(sorted(tensors.items())), metadata)


def _sides(name: str, parts: Mapping[str, Tensor]) -> tuple[int, int]:
    check(name, parts)
    return rows_and_unit(parts)[0], inputs_of(parts)


def _canonical(part: str, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    tensor = tensors[name]
    if part == "alpha":
        return one_number(name, tensor)
    if part == "dora_scale" and ".lora_magnitude_vector" in name:
        # peft: [out], or [1, out, 1, 1] of a convolution; LyCORIS: [out, 1], [out, 1, 1, 1].
        return tensor.reshape(-1, *[1] * max(1, tensor.ndim - 1))
    return tensor


def _spoken(part: str, tensor: Tensor, parts: Mapping[str, Tensor], dialect: Dialect) -> Tensor:
    if part != "dora_scale" or dialect != "peft":
        return tensor
    if tensor.shape[0] != rows_and_unit(parts)[0]:
        raise ScdpoError(
            "This DoRA has the magnitudes of columns, and peft knows those of rows only: write it in 'kohya'."
        )
    return tensor.reshape(-1) if tensor.ndim < 3 else tensor.transpose(0, 1)


def _folded(parts: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float | None]:
    """The weights with alpha / rank inside, and the alpha if dividing brings the same bits back."""
    scale = scale_of(parts)
    rest = {part: tensor for part, tensor in parts.items() if part != "alpha"}
    if scale == 1:
        return rest, None
    part = next(part for part in _SCALED if part in parts)
    rest[part] = (parts[part].double() * scale).to(parts[part].dtype)
    exact = bool(torch.equal(_unfolded(rest[part], scale), parts[part]))
    return rest, float(parts["alpha"]) if exact else None


def _unfolded(tensor: Tensor, scale: float) -> Tensor:
    return (tensor.double() / scale).to(tensor.dtype)


def _short(alphas: Mapping[str, float], modules: Mapping[str, Any]) -> str:
    one = len(set(alphas.values())) == 1 and len(alphas) == len(modules)
    return json.dumps(next(iter(alphas.values())) if one else dict(alphas), sort_keys=True)


def _take_alphas(state: Mapping[str, dict[str, Tensor]], folded: Any) -> None:
    """Take the alphas that `to_file` multiplied in out of the weights again."""
    for module, parts in state.items():
        rank = rank_of(parts)
        if "alpha" in parts or not rank:
            continue
        alpha = folded.get(module) if isinstance(folded, dict) else folded
        if is_number(alpha) and alpha:
            part = next((part for part in _SCALED if part in parts), None)
            if part is not None:
                parts[part] = _unfolded(parts[part], alpha / rank)
                parts["alpha"] = torch.tensor(float(alpha))


def _scaled(parts: Mapping[str, Tensor], name: str, settings: PeftSettings) -> dict[str, Tensor]:
    """The weights of a module with the strength that peft's settings give it."""
    stem, _ = split_key(name)
    scale = settings.scale(*strip_prefix(stem)) if is_peft_stem(stem) and "alpha" not in parts else None
    if scale is None:
        return dict(parts)
    rank = rank_of(parts)
    if rank:
        return {**parts, "alpha": torch.tensor(scale.alpha * rank / scale.rank)}
    # peft scales a LoKr of two full factors too; files have no place for that but the weights.
    whole = parts.get("lokr_w1")
    if whole is None or scale.alpha == scale.rank:
        return dict(parts)
    return {**parts, "lokr_w1": (whole.double() * (scale.alpha / scale.rank)).float()}


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
