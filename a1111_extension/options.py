"""The values of the script's controls, from the page, the API or a grid's axis, checked and named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scdpo_core.types import ScdpoError

from .policy import OWN_NUMBER, THRESHOLDS, Policy, action_of, threshold_of

NO_LORA = "None"
AXES = ("scdpo_enabled", "scdpo_threshold", "scdpo_weight")
"""Attributes of a processing object by which a grid's axes override the controls."""


@dataclass(frozen=True)
class Options:
    """The settings of the safety script.

    Attributes:
        enabled: whether images are scored at all.
        policy: what is done with them.
        lora: name of the safety LoRA; '' for none.
        weight: its strength.
    """

    enabled: bool = False
    policy: Policy = field(default_factory=Policy)
    lora: str = ""
    weight: float = 1.0


def read(values: Sequence[Any], p: object) -> Options:
    """Parse the controls' values.

    Args:
        values: enabled, threshold in words, threshold as a number, action for 'review', action for 'unsafe',
            LoRA, weight. What is left out at the end, or None, is as the page has it at first.
        p: the processing object, whose attributes of `AXES` win.

    Raises:
        ScdpoError: a value that no control can have.
    """
    first = (False, "normal", 0.0, Policy().review, Policy().unsafe, NO_LORA, 1.0)
    if len(values) > len(first):
        raise ScdpoError(f"The safety script takes {len(first)} values, not {len(values)}.")
    values_given = [*values, *first[len(values) :]]
    enabled, word, number, review, unsafe, lora, weight = (
        default if value is None else value for value, default in zip(values_given, first, strict=True)
    )
    enabled = getattr(p, AXES[0], enabled)
    if not isinstance(enabled, bool):
        raise ScdpoError(f"The safety script's first value must be true or false, not {enabled!r}.")
    axis = getattr(p, AXES[1], None)
    word, number = (word, number) if axis is None else (OWN_NUMBER, axis)
    threshold = threshold_of(str(word), _number(number, "the safety threshold"))
    return Options(
        enabled,
        Policy(threshold, action_of(str(review)), action_of(str(unsafe))),
        "" if lora in ("", NO_LORA) else str(lora),
        _number(getattr(p, AXES[2], weight), "the safety LoRA's weight"),
    )


def axis_threshold(text: str) -> float:
    """Parse a threshold of a grid's axis: a word or a number.

    Raises:
        ScdpoError: neither.
    """
    word = text.strip().lower()
    return THRESHOLDS[word] if word in THRESHOLDS else _number(word, "the safety threshold")


def axis_switch(text: str) -> bool:
    """Parse whether an axis value means on.

    Raises:
        ScdpoError: neither on nor off.
    """
    meanings = {"on": True, "true": True, "off": False, "false": False}
    try:
        return meanings[text.strip().lower()]
    except KeyError:
        raise ScdpoError(f"Safety can be on or off, not '{text}'.") from None


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ScdpoError(f"{what[0].upper()}{what[1:]} is a number, not {value!r}.")
    return number
