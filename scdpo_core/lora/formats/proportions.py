"""Which transformer is meant by names that several layouts share: metadata and shapes tell."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...types import ScdpoError
from ..identity import said_family
from ..weights import inputs_of, rows_and_unit
from .keys import denoiser_path
from .layouts import TRANSFORMERS, template_of
from .names import split_key
from .tables import PROPORTIONS


def likely_transformers(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> frozenset[str]:
    """Return the families that a LoRA's metadata or the shapes of its layers allow; all where neither tells.

    Args:
        tensors: as they stand in the file; only shapes count, so they may be on the meta device.
        metadata: of the file.

    Raises:
        KeyNameError: a key is in no dialect.
    """
    said = said_family(metadata)
    if said in TRANSFORMERS:
        return frozenset({said})
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, part = split_key(name)
        layers.setdefault(stem, {})[part] = tensor
    possible = frozenset(TRANSFORMERS)
    for stem, parts in layers.items():
        proportions = PROPORTIONS.get(template_of(denoiser_path(stem)))
        if proportions is None:
            continue
        try:
            rows, inputs = rows_and_unit(parts)[0], inputs_of(parts)
        except (ScdpoError, KeyError, IndexError):
            continue  # incomplete, which is said where the weights are checked
        fitting = {family for family, (tall, wide) in proportions.items() if rows * wide == inputs * tall}
        possible &= fitting or possible
    return possible or frozenset(TRANSFORMERS)
