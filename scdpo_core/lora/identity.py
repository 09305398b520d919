"""Which base model a LoRA is for, told from its keys, its shapes and what its metadata says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..family_info import FAMILY_INFO, trainable
from ..types import ScdpoError
from .formats.keys import TEXT_ENCODERS, Address
from .formats.layouts import TRANSFORMERS, UNETS
from .weights import Parts, inputs_of

UNKNOWN_SIDECAR = "Unknown"
"""The "sd version" that every host has for a LoRA of no base model that it knows."""


def sidecar_version(family: str, known: Iterable[str] = ()) -> str:
    """Name a family the way a host's LoRA card does.

    Args:
        family: of the LoRA.
        known: the versions that the host has; none where it is not asked, which means A1111's.
    """
    names = FAMILY_INFO[family].sidecars if family in FAMILY_INFO else ()
    known = [*known]
    return next((name for name in names if name in known or not known), UNKNOWN_SIDECAR)


_FAMILY_KEY = "scdpo_family"
# Modules of a block that take the hidden states as they are.
_INNER = re.compile(
    r"transformer_blocks\.(\d+)\.(?:attn\.(?:to_[qkv]|add_[qkv]_proj)|norm1(?:_context)?\.linear|ff\.net\.0\.proj)"
)


def base_family(found: Iterable[Address], weights: Mapping[str, Parts], metadata: Mapping[str, str]) -> str:
    """Name of the family that a LoRA was trained for, or '' where nothing tells.

    Args:
        found: what its keys mean.
        weights: its weights by canonical module; only shapes count, so they may be on the meta device.
        metadata: of its file.

    Raises:
        ScdpoError: its weights belong to different families, or to another one than it says.
    """
    said = said_family(metadata)
    possible = _possible(found, weights)
    if not possible or (said and FAMILY_INFO[said].lora_keys):
        return said
    if said and said not in possible:
        raise ScdpoError(
            f"says that it is for {FAMILY_INFO[said].title}, but its weights are those of a LoRA "
            f"for {_titles(possible)}."
        )
    if not said:
        possible = _of_that_size(possible, weights)
        possible -= {family for family in possible if FAMILY_INFO[family].like in possible}
    return said or (next(iter(possible)) if len(possible) == 1 else "")


def said_family(metadata: Mapping[str, str]) -> str:
    """What a file's metadata says of its family; '' if nothing that is known here."""
    own = metadata.get(_FAMILY_KEY, "")
    if own:
        return own if own in FAMILY_INFO else ""
    for entry in ("ss_base_model_version", "modelspec.architecture"):
        value = metadata.get(entry, "").lower()
        for info in FAMILY_INFO.values():
            if value.startswith(info.metadata_prefixes):
                return info.name
    return ""


def _possible(found: Iterable[Address], weights: Mapping[str, Parts]) -> frozenset[str]:
    """Families that have every module of the LoRA; empty for another kind of model (the embedded one,
    say)."""
    kinds: dict[str, frozenset[str]] = {}
    for address in found:
        if not address.modules[0].startswith(TEXT_ENCODERS):
            kinds.setdefault(address.modules[0], address.families)
        elif address.modules[0].startswith(TEXT_ENCODERS[1]):
            kinds.setdefault(TEXT_ENCODERS[1], address.families)
    # SDXL and SD 3 have a second text encoder of the same name: it tells nothing here.
    unets, others = (
        next((module for module, families in kinds.items() if families and families <= set(alike)), None)
        for alike in (UNETS, TRANSFORMERS)
    )
    if unets is not None and others is not None:
        raise ScdpoError(f"mixes models: '{unets}' is a UNet's module, '{others}' is a transformer's.")
    possible = frozenset.intersection(frozenset((*UNETS, *TRANSFORMERS)), *kinds.values())
    widths = _widths(weights)
    known = {info.name for info in trainable() if info.text_width in widths and not info.lora_keys}
    if widths and not known:
        # A UNet that looks at text of no Stable Diffusion's width.
        return frozenset()
    if known and possible & set(UNETS):
        possible &= known
    return possible


def _of_that_size(possible: frozenset[str], weights: Mapping[str, Parts]) -> frozenset[str]:
    """Families of transformers with blocks as wide and as many as those of a LoRA; all where it has none.

    They share the names of their attention.
    """
    inner = [(match, parts) for module, parts in weights.items() if (match := _INNER.fullmatch(module))]
    if not inner or not possible <= set(TRANSFORMERS):
        return possible
    width = inputs_of(inner[0][1])
    count = 1 + max(int(match[1]) for match, _ in inner)
    infos = [FAMILY_INFO[family] for family in possible]
    exact = [info for info in infos if info.width == width] or [info for info in infos if not info.width]
    # LoRAs are rarely for the first blocks alone, so the one that has no more blocks than it takes is meant.
    depth = min((info.depth for info in exact if count <= info.depth), default=0)
    # A cut-down model has fewer blocks or another width: then the names alone tell, as far as they can.
    return frozenset(info.name for info in exact if info.depth == depth) or possible


def _widths(weights: Mapping[str, Parts]) -> set[int]:
    return {
        inputs_of(parts)
        for module, parts in weights.items()
        if module.endswith(".attn2.to_k") and "attentions" in module
    }


def _titles(families: Iterable[str]) -> str:
    return " or ".join(FAMILY_INFO[family].title for family in sorted(families))
