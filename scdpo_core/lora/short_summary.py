"""What a LoRA's file says of itself, in a few lines for an artist."""

from __future__ import annotations

import json
from typing import Any

from ..types import LoraFile
from .formats.peft_settings import is_number
from .identity import BASES
from .metadata import EVALUATION

_LINES = (
    ("scdpo_objective", "Objective"),
    ("scdpo_cost_model", "Cost model"),
    ("scdpo_train_pairs", "Preference pairs"),
    ("scdpo_train_steps", "Steps"),
    ("ss_sd_model_name", "Trained on"),
)


def card_of(file: LoraFile) -> str:
    """Name, base model and rank, then what it was trained against and how it did, where the file says so."""
    said = file.metadata
    title = said.get("modelspec.title") or said.get("ss_output_name") or file.path.stem
    base = BASES[file.family].title if file.family in BASES else "a base model that the file does not name"
    # A LoKr of two full factors has no rank.
    size = f"rank {file.rank}" if file.rank else "of full rank (LoKr)"
    lines = [f"{title}: for {base}, {size}."]
    if text := said.get("modelspec.description"):
        lines.append(text)
    if against := _categories(said.get("scdpo_categories", "")):
        lines.append(f"Trained against: {against}.")
    lines += _figures(said.get(EVALUATION, ""))
    lines += [f"{name}: {said[key]}" for key, name in _LINES if said.get(key)]
    if not any(key.startswith("scdpo_") for key in said):
        lines.append("It was not made by this trainer, so it does not say what it was trained against.")
    return "\n".join([*lines, *file.notes])


def _categories(text: str) -> str:
    """Of a JSON list of names, or an object of names and numbers of pairs."""
    value = _json(text)
    if isinstance(value, dict):
        return ", ".join(f"{name or 'not said'} ({number})" for name, number in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else ""


def _figures(text: str) -> list[str]:
    """Of an object: name -> a number, or name -> {"before": ..., "after": ...}."""
    value = _json(text)
    if not isinstance(value, dict):
        return []
    lines = []
    for name, figure in value.items():
        shown = str(name).replace("_", " ").capitalize()
        if isinstance(figure, dict) and {"before", "after"} <= figure.keys():
            lines.append(f"{shown}: {_number(figure['before'])} before, {_number(figure['after'])} after.")
        elif is_number(figure):
            lines.append(f"{shown}: {_number(figure)}.")
    return lines


def _number(value: Any) -> str:
    return f"{value:.3g}" if is_number(value) else str(value)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
