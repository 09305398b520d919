"""One forward pass: from a portion of pairs to the few numbers that an objective reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import ObjectiveSettings
from ..objectives import duo_prior, sdpo_loser_scale
from ..types import PairErrors
from .feed import Feed, Portion
from .reference import autocast_for, mean_squares, noise_residuals, policy_residuals, reference_residuals
from .team import Alone, Team

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..lora.adapter import LoraAdapter


@dataclass(frozen=True)
class Measured:
    """What an objective reads of a batch: B pairs of all processes together.

    Attributes:
        errors: of policy, with gradient for this process's own pairs, and reference.
        timesteps: [B].
        weight: [B] factor of each pair's loss.
        label: [B] probability that the chosen picture is the better one.
        cost: [B, 2] safety costs, NaN where unknown.
        loser_scale: [B] of `sdpo_loser_scale`, or None.
        prior: [B] of `duo_prior`, or None.
    """

    errors: PairErrors
    timesteps: Tensor
    weight: Tensor
    label: Tensor
    cost: Tensor
    loser_scale: Tensor | None = None
    prior: Tensor | None = None


def wants_prior(settings: ObjectiveSettings) -> bool:
    """Whether the objective reads the networks' answers to pure noise (DUO)."""
    return settings.objective == "duo" and settings.prior_weight > 0


class Measure:
    """Runs the networks on portions."""

    def __init__(
        self,
        model: LoadedModel,
        adapter: LoraAdapter,
        feed: Feed,
        settings: ObjectiveSettings,
        team: Team | None = None,
    ) -> None:
        """Measure what `feed` deals, with `adapter` in the denoiser of `model`."""
        self._model, self._adapter, self._feed, self._settings = model, adapter, feed, settings
        self._team = team or Alone()

    def __call__(self, index: int) -> Measured:
        """Policy and, where its errors are not known, reference on the batch of that index."""
        portion = self._feed(index)
        batch, chance, own = portion.batch, portion.chance, self._settings
        with autocast_for(self._model):
            reference = self._reference(portion)
            policy = policy_residuals(self._model, batch, chance, own.weighting)
            noise = None
            if wants_prior(own):
                noise = noise_residuals(self._model, self._adapter, batch, chance)
        seen = Measured(
            PairErrors(mean_squares(policy), reference),
            chance.timesteps,
            batch.weight,
            batch.label,
            batch.cost,
            None if own.loser_mu is None else sdpo_loser_scale(*policy.detach().chunk(2), mu=own.loser_mu),
            None if noise is None else duo_prior(*noise),
        )
        return seen if self._team.size == 1 else self._together(seen)

    def _reference(self, portion: Portion) -> Tensor:
        if portion.reference is not None:
            return portion.reference
        weighting = self._settings.weighting
        return mean_squares(
            reference_residuals(self._model, self._adapter, portion.batch, portion.chance, weighting)
        )

    def _together(self, own: Measured) -> Measured:
        """The rows of all processes, in one message."""
        # float32 holds every whole timestep of a schedule exactly.
        parts = [own.errors.policy, own.errors.reference, own.timesteps, own.weight, own.label, own.cost]
        optional = [part for part in (own.loser_scale, own.prior) if part is not None]
        columns = [part.float().view(len(own.weight), -1) for part in (*parts, *optional)]
        rows = self._team.gather(torch.cat(columns, dim=1))
        policy, reference, timesteps, weight, label, cost, *rest = rows.split(
            [column.shape[1] for column in columns], dim=1
        )
        others = iter(part[:, 0] for part in rest)
        return Measured(
            PairErrors(policy, reference.detach()),
            timesteps[:, 0].detach().to(own.timesteps.dtype),
            weight[:, 0].detach(),
            label[:, 0].detach(),
            cost.detach(),
            None if own.loser_scale is None else next(others).detach(),
            None if own.prior is None else next(others),
        )
