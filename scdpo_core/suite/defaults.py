"""What holds for an evaluation where nobody says otherwise: what the LoRA's run says, and the base's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..families.source import is_hub_id
from ..family_info import MICRO
from ..runs.comparison import defaults_of
from ..types import ScdpoError
from .job import WORLD_JUDGE, EvalJob

_NAMES = {"lora": "loras", "scorer": "scorers", "attack": "attacks"}
_PATHS = ("output", "reference", "clip")
_MICRO_GUIDANCE = 3.0


def complete(choices: Mapping[str, Any]) -> EvalJob:
    """Return a job from what somebody says of it.

    Args:
        given: fields of `EvalJob` by their names or flags; lists for tuples. LoRAs may be run folders.

    Raises:
        ScdpoError: nobody says which base model it is for.
    """
    values: dict[str, Any] = {}
    for name, value in choices.items():
        values[_NAMES.get(name, name)] = tuple(value) if isinstance(value, list) else value
    values["loras"] = tuple(map(_lora_file, values.get("loras", ())))
    run = defaults_of(values["loras"][0].parent, 0) if values["loras"] else None
    base = values.get("base") or (run.base if run is not None else None)
    if base is None:
        raise ScdpoError("Name the model to generate images with: --base MODEL.")
    values["base"] = base if base == MICRO or is_hub_id(base) else str(_absolute(Path(base)))
    if base == MICRO:
        for name, default in (("scorers", (WORLD_JUDGE,)), ("batch", 32)):
            values.setdefault(name, default)
    values.setdefault("steps", run.steps if run is not None else EvalJob.steps)
    default_guidance = _MICRO_GUIDANCE if base == MICRO else EvalJob.guidance
    values.setdefault("guidance", run.guidance if run is not None else default_guidance)
    for name in _PATHS:
        if values.get(name) is not None:
            values[name] = _absolute(values[name])
    for name in ("prompts", "attack_prompts", "benign"):
        values[name] = tuple(map(_absolute, values.get(name, ())))
    names = {field.name for field in fields(EvalJob)}
    return EvalJob(**{name: value for name, value in values.items() if name in names})


def _lora_file(path: Path) -> Path:
    full = _absolute(path)
    return full / f"{full.name}.safetensors" if full.is_dir() else full


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()
