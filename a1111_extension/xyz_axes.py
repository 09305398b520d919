"""Axes of the X/Y/Z plot: the safety LoRA's weight, the threshold, on and off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from modules import scripts as host_scripts

from .options import AXES, axis_switch, axis_threshold
from .policy import THRESHOLDS

_SWITCH, _THRESHOLD, _WEIGHT = AXES
_LABELS = {_SWITCH: "[Safety] On or off", _THRESHOLD: "[Safety] Threshold", _WEIGHT: "[Safety] LoRA weight"}


def add_axes() -> None:
    """Append our axes to the host's, once; the host calls this before it makes its page."""
    for data in host_scripts.scripts_data:
        if Path(data.path).name == "xyz_grid.py":
            _append(data.module)


def _append(grid: ModuleType) -> None:
    existing = {option.label for option in grid.axis_options}
    for option in (
        grid.AxisOption(
            _LABELS[_SWITCH],
            str,
            _set(_SWITCH, axis_switch),
            confirm=_check(axis_switch),
            choices=lambda: ["on", "off"],
        ),
        grid.AxisOption(
            _LABELS[_THRESHOLD],
            str,
            _set(_THRESHOLD, axis_threshold),
            confirm=_check(axis_threshold),
            choices=lambda: [*THRESHOLDS],
        ),
        grid.AxisOption(_LABELS[_WEIGHT], float, _set(_WEIGHT, float)),
    ):
        if option.label not in existing:
            grid.axis_options.append(option)


def _set(attribute: str, meaning: Callable[[Any], Any]) -> Callable[[Any, Any, Any], None]:
    return lambda p, value, values: setattr(p, attribute, meaning(value))


def _check(meaning: Callable[[str], object]) -> Callable[[Any, Sequence[str]], None]:
    """Make a check that refuses axis values before the first image is generated."""

    def confirm(p: Any, values: Sequence[str]) -> None:
        for value in values:
            meaning(value)

    return confirm
