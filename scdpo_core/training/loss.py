"""From the settings to one callable: residuals of a batch in, loss of each pair out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import ObjectiveSettings
from ..objectives import (
    TimeBins,
    duo_prior,
    focus_weights,
    gamma_at,
    objective,
    preference_logit,
    sdpo_loser_scale,
)
from ..types import LossOutput, PairBatch, PairErrors
from .reference import PairResiduals

# What an objective reads besides errors and beta. SafeDPO's margin is its own: ours has other units.
_TAKES: dict[str, tuple[str, ...]] = {
    "sc_dpo": ("label", "cost", "margin", "winner", "focal_gamma", "focus", "loser_scale"),
    "winner_only": ("winner",),
    "duo": ("prior", "prior_weight"),
    "safedpo": ("cost",),
    "mapo": ("timesteps",),
}


class PairLoss:
    """The objective of a run with the little state that it keeps.

    Attributes:
        wants_prior: whether a call needs the residuals on pure noise (DUO).
    """

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
        objective(settings.objective)
        self.wants_prior = settings.objective == "duo" and settings.prior_weight > 0
        self._settings = settings
        self._steps = steps
        self._num_timesteps = num_timesteps
        self._bins = TimeBins(device=device)

    def __call__(
        self,
        errors: PairErrors,
        residuals: PairResiduals,
        batch: PairBatch,
        timesteps: Tensor,
        step: int,
        prior: tuple[Tensor, Tensor] | None = None,
    ) -> LossOutput:
        """Loss of each pair [B], its weight included.

        Args:
            errors: of `residuals`.
            residuals: of both networks.
            batch: whose weights, labels and costs count.
            timesteps: [B] that the residuals belong to.
            step: counted from 0; decides whether the focus is on yet.
            prior: residuals of policy and reference on pure noise, if `wants_prior`.
        """
        own = self._settings
        arguments: dict[str, Any] = {
            "label": batch.label,
            "cost": batch.cost,
            "margin": own.margin,
            "winner": own.winner,
            "focal_gamma": own.focal_gamma,
            "prior": None if prior is None else duo_prior(*prior),
            "prior_weight": own.prior_weight,
            "timesteps": self._num_timesteps,
        }
        takes = _TAKES.get(own.objective, ())
        if "focus" in takes:
            arguments["focus"] = self._focus(errors, timesteps, step)
            arguments["loser_scale"] = self._loser_scale(residuals)
        output = objective(own.objective)(
            errors, beta=own.effective_beta, **{name: arguments[name] for name in takes}
        )
        return LossOutput(output.per_pair * batch.weight, output.metrics)

    def _focus(self, errors: PairErrors, timesteps: Tensor, step: int) -> Tensor | None:
        """Weights of the pairs; difficulties are remembered during the warm-up as well."""
        own = self._settings
        if own.dfm_gamma == 0:
            return None
        u = preference_logit(errors, own.effective_beta).detach()
        fraction = timesteps / self._num_timesteps
        gamma = gamma_at(step, self._steps, gamma=own.dfm_gamma, warmup=own.dfm_warmup)
        bins = self._bins if own.dfm_by_time else None
        weights = focus_weights(u, gamma=gamma, difficulty_by_time=bins, timestep_fraction=fraction)
        self._bins.update(u, fraction)
        return weights

    def _loser_scale(self, residuals: PairResiduals) -> Tensor | None:
        mu = self._settings.loser_mu
        return None if mu is None else sdpo_loser_scale(*residuals.policy.detach().chunk(2), mu=mu)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return self._bins.state_dict()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`."""
        self._bins.load_state_dict(state)
