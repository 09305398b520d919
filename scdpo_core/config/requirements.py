"""What settings need beside them to have any effect, and the sentence where it is missing.

A setting's field names its needs (`bounds.needing`, `bounds.bounded`). Only what was given is refused: a
value that a preset brings along is passed over where the chosen objective or family does not read it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..family_info import FAMILY_INFO, names_of, trainable
from .bounds import Need, needs_of

if TYPE_CHECKING:
    from .settings import TrainSettings


_BUILT_IN = trainable()
_UNETS = names_of(info for info in _BUILT_IN if info.denoiser == "unet")


def of_objective(*names: str) -> Need:
    """One of these objectives."""
    return Need(f"--objective {_either(names)}", lambda run, family: run.objective.objective in names)


def beside(section: str, key: str, words: str, *values: object) -> Need:
    """Another setting that has one of these values; where none are named, one that is on."""

    def is_met(run: TrainSettings, family: str | None) -> bool:
        value = getattr(getattr(run, section), key)
        return value in values if values else bool(value)

    return Need(words, is_met)


def of_family(*names: str) -> Need:
    """A base model of one of these families; one that is not among our own is taken at its word."""

    def is_met(run: TrainSettings, family: str | None) -> bool:
        return family not in names_of(_BUILT_IN) or family in names

    return Need(f"a base model of {_either([FAMILY_INFO[name].short_title for name in names])}", is_met)


def any_of(*needs: Need) -> Need:
    """One of several needs."""
    words = _either([need.words for need in needs])
    return Need(words, lambda run, family: any(need.is_met(run, family) for need in needs))


def without_effect(run: TrainSettings, family: str | None, unasked: Sequence[TrainSettings]) -> Iterator[str]:
    """Say of each setting that was given and has no effect what it needs.

    Args:
        run: the settings.
        family: of the base model; None where nobody has looked yet.
        unasked: settings that nobody gave: defaults, and presets below what was given. A value that one of
            them has does not count as given.
    """
    for section in dataclasses.fields(run):
        values = getattr(run, section.name)
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            missing = [need.words for need in needs_of(field) if not need.is_met(run, family)]
            if not missing or any(getattr(getattr(s, section.name), field.name) == value for s in unasked):
                continue
            yield (
                f"{section.name}.{field.name} has no effect here, for it needs "
                f"{' and '.join(missing)}: change that, or leave it out"
            )


def _either(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


COSTS = Need("--cost-model", lambda run, family: run.data.cost_model != "none")
VALIDATION = beside("validation", "validation", "--validation 0.1")
SAMPLES = beside("sampling", "samples", "--samples 1")
UNETS = of_family(*_UNETS)
T5 = of_family(*names_of(info for info in _BUILT_IN if "t5" in info.texts))
CLIP = of_family(*names_of(info for info in _BUILT_IN if "clip" in info.texts))
CHUNKS = of_family(*names_of(info for info in _BUILT_IN if info.long_prompts))
SDXL = of_family("sdxl")
FLUX = of_family("flux")
LOGIT_NORMAL = any_of(
    beside("objective", "timesteps", "--timesteps logit_normal", "logit_normal"),
    Need(
        "a flow model",
        lambda run, family: run.objective.timesteps == "auto" and family not in _UNETS,
    ),
)
