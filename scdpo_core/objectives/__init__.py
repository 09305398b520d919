"""Objectives: pure functions from errors to losses. `objective(name)` finds one."""

from __future__ import annotations

from collections.abc import Callable

from ..types import LossOutput, ScdpoError
from .dfm import TimeBins, focus_weights, gamma_at
from .peers import (
    diffusion_dpo,
    diffusion_kto,
    duo,
    duo_prior,
    mapo,
    safedpo,
    safetydpo,
    winner_only,
)
from .sc_dpo import (
    cost_margin,
    focal,
    preference_logit,
    preference_metrics,
    sc_dpo_loss,
    sdpo_loser_scale,
    sdpo_loser_scale_from_products,
)

Objective = Callable[..., LossOutput]
"""Takes `PairErrors` and keyword arguments of its own."""

OBJECTIVES: dict[str, Objective] = {
    "sc_dpo": sc_dpo_loss,
    "winner_only": winner_only,
    "diffusion_dpo": diffusion_dpo,
    "safetydpo": safetydpo,
    "duo": duo,
    "safedpo": safedpo,
    "mapo": mapo,
    "diffusion_kto": diffusion_kto,
}


def objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        ScdpoError: there is none; lists those there are.
    """
    try:
        return OBJECTIVES[name]
    except KeyError:
        raise ScdpoError(
            f"There is no objective called '{name}'. Choose one of: {', '.join(OBJECTIVES)}."
        ) from None


__all__ = [
    "OBJECTIVES",
    "Objective",
    "TimeBins",
    "cost_margin",
    "diffusion_dpo",
    "diffusion_kto",
    "duo",
    "duo_prior",
    "focal",
    "focus_weights",
    "gamma_at",
    "mapo",
    "objective",
    "preference_logit",
    "preference_metrics",
    "safedpo",
    "safetydpo",
    "sc_dpo_loss",
    "sdpo_loser_scale",
    "sdpo_loser_scale_from_products",
    "winner_only",
]
