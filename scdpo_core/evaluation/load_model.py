"""A base model to draw with, loaded as the run that made a LoRA loaded it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..config.settings import ModelSettings, load_toml
from ..run_store import folder as names
from ..types import ScdpoError

if TYPE_CHECKING:
    import torch

    from ..families.base import LoadedModel


def load_for_drawing(base: str, lora: Path | None, device: torch.device) -> LoadedModel:
    """Load a base model without a LoRA.

    With a LoRA in the folder of the run that made it the base is loaded as that run loaded it: with its VAE,
    its text encoders, its prediction, in its 8 or 4 bits and, on a GPU, its number format.

    Args:
        base: as `families.family_of` takes it.
        lora: what it will be drawn with.
        device: where to draw.

    Raises:
        ScdpoError: the base cannot be loaded.
    """
    # Late: they take seconds, and wrong settings should not wait for them.
    from ..families import family_of
    from ..training.checks import load_options, resolve_dtype

    settings = settings_of_run(base, lora)
    # A processor may not know the format that a GPU trained in.
    dtype = resolve_dtype(settings.precision if device.type == "cuda" else "auto", device)
    return family_of(settings.family, base).load(base, device, dtype, load_options(settings))


def require_fit(lora: Path, base: str, family: str) -> None:
    """Refuse a LoRA that says it is for another family than the base's.

    Raises:
        ScdpoError: it is; says both.
    """
    from ..families.source import lora_family
    from ..family_info import FAMILY_INFO
    from ..lora.file import read_lora_info

    lora_family_name, required = read_lora_info(lora).family, lora_family(base, family)
    if lora_family_name and lora_family_name != required:
        raise ScdpoError(
            f"{lora} is a LoRA for {FAMILY_INFO[lora_family_name].title}, and {base} is "
            f"{FAMILY_INFO[required].title}. "
            "Give the base that the LoRA was made for."
        )


def settings_of_run(base: str, lora: Path | None) -> ModelSettings:
    """Return the model settings of the run that made the LoRA, if it used this base; else defaults."""
    if lora is None:
        return ModelSettings(base=base)
    try:
        settings = load_toml(lora.expanduser().absolute().parent / names.JOB).model
    except ScdpoError:  # not a run folder, or an unrelated file of that name
        return ModelSettings(base=base)
    return settings if settings.base == base else ModelSettings(base=base)
