"""Model families: everything that differs from one architecture to the next lives here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..family_info import FAMILY_INFO, MICRO, trainable
from ..types import ScdpoError
from .base import Family, LoadedModel, LoadOptions, Prediction
from .chroma import Chroma
from .detect import detect
from .diffusers_family import DiffusersFamily
from .flux import Flux
from .flux2 import Flux2
from .parameterisation import MinSnr, Weighting
from .qwen_image import QwenImage
from .sd1 import SD1
from .sd2 import SD2
from .sd3 import SD3
from .sdxl import SDXL
from .source import is_hub_id, locate
from .z_image import ZImage

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (SD1(), SD2(), SDXL(), SD3(), Flux(), Chroma(), Flux2(), ZImage(), QwenImage())
}

AUTO = "auto"
"""The name that leaves the family to the base model's own files."""


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        ScdpoError: there is none; lists those that there are.
    """
    if name not in FAMILIES:
        raise ScdpoError(f"There is no model family '{name}'. Choose one of: {', '.join((AUTO, *FAMILIES))}.")
    return FAMILIES[name]


def family_of(name: str, base: str | Path) -> Family:
    """The family of that name, or for 'auto' the one that the base model's names and shapes tell.

    Raises:
        ScdpoError: there is no such family, or the base is none that can be trained; says what it is.
    """
    if name != AUTO:
        return family(name)
    if str(base) == MICRO:
        return FAMILIES["sd1"]
    path = locate(base, ["scheduler", "unet", "transformer", "vae", "text_encoder"], weights=False)
    if not path.exists():
        # Its own check words it.
        return FAMILIES["sd1"]
    try:
        kind = detect(path)
    except ScdpoError as error:
        raise ScdpoError(f"{path}: {error}") from error
    if kind.family is None:
        raise ScdpoError(f"{path}: This is {kind.title}, which cannot be trained. {kind.advice}".strip())
    return FAMILIES[kind.family]


@contextmanager
def registered(new: DiffusersFamily) -> Iterator[None]:
    """Make one more family known while the block runs, for benchmarks and tests.

    Folders are recognised as its own by the pipeline that its record names.

    Raises:
        ValueError: the name or the pipeline belongs to a family already.
    """
    pipeline = new.info.pipeline
    if new.name in FAMILY_INFO or any(pipeline == info.pipeline for info in trainable()):
        raise ValueError(f"The family '{new.name}' or the pipeline {pipeline} is known already.")
    FAMILIES[new.name], FAMILY_INFO[new.name] = new, new.info
    try:
        yield
    finally:
        del FAMILIES[new.name], FAMILY_INFO[new.name]


__all__ = [
    "AUTO",
    "FAMILIES",
    "MICRO",
    "Family",
    "LoadOptions",
    "LoadedModel",
    "MinSnr",
    "Prediction",
    "Weighting",
    "family",
    "family_of",
    "is_hub_id",
    "registered",
]
