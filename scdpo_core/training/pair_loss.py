"""From the settings to one callable: what was measured of a batch in, loss of each pair out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config.settings import ObjectiveSettings
from ..objectives import TimeBins, focus_weights, gamma_at, objective, preference_logit
from ..types import LossOutput
from .step import PairStep

# What an objective reads besides errors and beta. SafeDPO's margin is its own: ours has other units.
_TAKES: dict[str, tuple[str, ...]] = {
    "sc_dpo": ("label", "cost", "margin", "winner", "focal_gamma", "focus", "loser_scale"),
    "winner_only": ("winner",),
    "duo": ("prior", "prior_weight"),
    "safedpo": ("cost",),
    "mapo": ("timesteps",),
}


class PairLoss:
    """The objective of a run with the little state that it keeps."""

    def __init__(
        self, settings: ObjectiveSettings, *, steps: int, num_timesteps: int, device: torch.device
    ) -> None:
        """Start with no idea of what is difficult.

        Args:
            settings: which objective, and its parameters.
            steps: of the whole run.
            num_timesteps: of the noise schedule.
            device: where errors will be.

        Raises:
            ScdpoError: there is no such objective.
        """
        if settings.has_pair_loss:
            objective(settings.objective)
        self._settings = settings
        self._steps = steps
        self._num_timesteps = num_timesteps
        self._bins = TimeBins(device=device)

    def __call__(self, seen: PairStep, step: int) -> LossOutput:
        """Loss of each pair [B], its weight included.

        Args:
            seen: what was measured of B pairs.
            step: counted from 0; decides whether the focus is on yet.
        """
        own = self._settings
        arguments: dict[str, Any] = {
            "label": seen.label,
            "cost": seen.cost,
            "margin": own.margin,
            "winner": own.winner,
            "focal_gamma": own.focal_gamma,
            "loser_scale": seen.loser_scale,
            "prior": seen.prior,
            "prior_weight": own.prior_weight,
            "timesteps": self._num_timesteps,
        }
        takes = _TAKES.get(own.objective, ())
        if "focus" in takes:
            arguments["focus"] = self._focus(seen, step)
        output = objective(own.objective)(
            seen.errors, beta=own.effective_beta, **{name: arguments[name] for name in takes}
        )
        return LossOutput(output.per_pair * seen.weight, output.metrics)

    def _focus(self, seen: PairStep, step: int) -> Tensor | None:
        """Weights of the pairs; difficulties are remembered during the warm-up as well."""
        own = self._settings
        if own.dfm_gamma == 0:
            return None
        u = preference_logit(seen.errors, own.effective_beta).detach()
        fraction = seen.timesteps / self._num_timesteps
        gamma = gamma_at(step, self._steps, gamma=own.dfm_gamma, warmup=own.dfm_warmup)
        bins = self._bins if own.dfm_by_time else None
        weights = focus_weights(u, gamma=gamma, difficulty_by_time=bins, timestep_fraction=fraction)
        self._bins.update(u, fraction)
        return weights

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return self._bins.state_dict()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`."""
        self._bins.load_state_dict(state)
