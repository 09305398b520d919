"""One forward pass: from a portion of pairs to the few numbers that an objective reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import ObjectiveSettings
from ..objectives import duo_prior, sdpo_loser_scale
from ..types import PairBatch, PairErrors
from .feed import Feed, Portion, weighting_of
from .portions import portion_of
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
        words: Callable[[PairBatch], PairBatch] | None = None,
    ) -> None:
        """Measure what `feed` deals, with `adapter` in the denoiser of `model`.

        `words` gives batches the words of text encoders that train along, see `attaching.live_words`.
        """
        self._model, self._adapter, self._feed, self._settings = model, adapter, feed, settings
        self._team, self._words = team or Alone(), words
        self._weighting = weighting_of(settings)
        self._latest: tuple[int, Portion] | None = None

    def __call__(self, index: int, places: slice | None = None) -> Measured:
        """Policy and, where its errors are not known, reference on the batch of that index.

        Args:
            index: of the batch.
            places: of the pairs to measure; None: all of them.
        """
        if self._latest is None or self._latest[0] != index:
            self._latest = (index, self._feed(index))
        portion = self._latest[1] if places is None else portion_of(self._latest[1], places)
        if self._words is not None:
            portion = replace(portion, batch=self._words(portion.batch))
        batch, chance, own = portion.batch, portion.chance, self._settings
        with autocast_for(self._model):
            reference = self._reference(portion)
            policy = policy_residuals(self._model, batch, chance, self._weighting)
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
        return mean_squares(
            reference_residuals(self._model, self._adapter, portion.batch, portion.chance, self._weighting)
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
