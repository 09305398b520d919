"""One forward pass of each network: from a portion of pairs and rows to the few numbers that a loss reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config.settings import ObjectiveSettings
from ..config.terms import TermSettings
from ..families.parameterisation import MinSnr, Weighting
from ..objectives import (
    TimeBins,
    duo_prior,
    focus_weights,
    gamma_at,
    objective,
    preference_logit,
    sdpo_loser_scale,
    terms,
)
from ..types import Conditioning, LossOutput, PairErrors
from .batches import BatchSource, TrainBatch, slice_batch, weighting_of
from .distributed import ProcessGroup, SingleProcess
from .reference import (
    Query,
    autocast_for,
    mean_squares,
    noise_residuals,
    pair_error_residuals,
    pair_query,
    predict_all,
)
from .term_batches import TermRows

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..lora.adapter import LoraAdapter
    from .adapters import LiveEncoder


@dataclass(frozen=True)
class PairStep:
    """What an objective reads of a batch: B pairs of all processes together.

    Attributes:
        errors: of policy, with gradient for this process's own pairs, and reference.
        timesteps: [B].
        weight: [B] factor of each pair's loss.
        label: [B] probability that the chosen image is the better one.
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


@dataclass(frozen=True)
class TermStep:
    """What became of the rows of one term in this process.

    Attributes:
        rows: that were measured.
        loss: [N] of each, with gradient.
    """

    rows: TermRows
    loss: Tensor


@dataclass(frozen=True)
class StepErrors:
    """What one portion gave.

    Attributes:
        pairs: how many pairs this process put in.
        pair: for the objective over pairs; None where the run has none.
        terms: for the single-image terms.
    """

    pairs: int
    pair: PairStep | None
    terms: tuple[TermStep, ...] = ()


def wants_prior(settings: ObjectiveSettings) -> bool:
    """Whether the objective reads the networks' answers to pure noise (DUO)."""
    return settings.objective == "duo" and settings.prior_weight > 0


class Measure:
    """Runs the networks on portions."""

    def __init__(
        self,
        model: LoadedModel,
        adapter: LoraAdapter,
        feed: BatchSource,
        settings: ObjectiveSettings,
        team: ProcessGroup | None = None,
        encode_live: LiveEncoder | None = None,
        term_settings: TermSettings | None = None,
    ) -> None:
        """Measure what `feed` yields, with `adapter` in the denoiser of `model`.

        `encode_live` encodes the policy's prompts where text encoders train along, see
        `adapters.encode_prompts_with_grad`.
        """
        self._model, self._adapter, self._feed, self._settings = model, adapter, feed, settings
        self._team, self._encode_live = team or SingleProcess(), encode_live
        self._terms = term_settings or TermSettings()
        self._weighting = weighting_of(settings)
        self._latest: tuple[int, TrainBatch] | None = None

    def __call__(self, index: int, places: slice | None = None) -> StepErrors:
        """Policy and, where its answers are not known, reference on the batch of that index.

        Args:
            index: of the batch.
            places: of the pairs to measure, with the rows that go along with them; None: all of them.
        """
        if self._latest is None or self._latest[0] != index:
            self._latest = (index, self._feed(index))
        portion = self._latest[1] if places is None else slice_batch(self._latest[1], places)
        model, batch, own = self._model, portion.batch, self._settings
        with autocast_for(model):
            noisy = [
                model.add_noise(r.images, r.noise_sample.noise, r.noise_sample.timesteps)
                for r in portion.rows
            ]
            reference_errors, references = self._reference(portion, noisy)
            conditioning = self._live(batch.prompts, batch.conditioning) if own.has_pair_loss else None
            policy, answers = self._policy(portion, noisy, conditioning)
            noise = None
            if wants_prior(own):
                noise = noise_residuals(model, self._adapter, batch, portion.noise_sample, conditioning)
            measured = tuple(
                TermStep(rows, self._term_loss(rows, answer, seen, asked))
                for rows, answer, seen, asked in zip(portion.rows, answers, noisy, references, strict=True)
            )
        pair = None
        if policy is not None and reference_errors is not None:
            mu = own.loser_mu
            pair = PairStep(
                PairErrors(mean_squares(policy), reference_errors),
                portion.noise_sample.timesteps,
                batch.weight,
                batch.label,
                batch.cost,
                None if mu is None else sdpo_loser_scale(*policy.detach().chunk(2), mu=mu),
                None if noise is None else duo_prior(*noise),
            )
            pair = pair if self._team.size == 1 else self._together(pair)
        return StepErrors(len(batch.weight), pair, measured)

    def _reference(
        self, portion: TrainBatch, noisy: Sequence[Tensor]
    ) -> tuple[Tensor | None, list[tuple[Tensor, ...]]]:
        """Errors without the LoRA on the pairs, [B, 2], and the answers that each term asks for."""
        known, batch, noise_sample = portion.reference, portion.batch, portion.noise_sample
        asks = self._settings.has_pair_loss and known is None
        queries = [pair_query(self._model, batch, noise_sample, batch.conditioning)] if asks else []
        queries += [
            Query(seen, rows.noise_sample.timesteps, conditioning)
            for rows, seen in zip(portion.rows, noisy, strict=True)
            for conditioning in rows.reference
        ]
        if not queries:
            return known, [() for _ in portion.rows]
        with torch.no_grad(), self._adapter.disabled():
            found = iter(predict_all(self._model, queries))
            if asks:
                known = mean_squares(
                    pair_error_residuals(self._model, next(found), batch, noise_sample, self._weighting)
                )
        return known, [tuple(next(found) for _ in rows.reference) for rows in portion.rows]

    def _policy(
        self, portion: TrainBatch, noisy: Sequence[Tensor], conditioning: Conditioning | None
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Residuals [2B, C, h, w] of the network with the LoRA on the pairs, and its answers for the rows."""
        batch, noise_sample = portion.batch, portion.noise_sample
        queries = list(self._policy_queries(portion, noisy, conditioning))
        answers = predict_all(self._model, queries)
        if not self._settings.has_pair_loss:
            return None, answers
        residuals = pair_error_residuals(self._model, answers[0], batch, noise_sample, self._weighting)
        return residuals, answers[1:]

    def _policy_queries(
        self, portion: TrainBatch, noisy: Sequence[Tensor], conditioning: Conditioning | None
    ) -> Iterator[Query]:
        batch = portion.batch
        if conditioning is not None:
            yield pair_query(self._model, batch, portion.noise_sample, conditioning)
        for rows, seen in zip(portion.rows, noisy, strict=True):
            yield Query(seen, rows.noise_sample.timesteps, self._live(rows.prompts, rows.conditioning))

    def _live(self, prompts: Sequence[str], known: Conditioning) -> Conditioning:
        return known if self._encode_live is None else self._encode_live(prompts, known)

    def _term_loss(
        self, rows: TermRows, answer: Tensor, noisy: Tensor, reference: tuple[Tensor, ...]
    ) -> Tensor:
        eta = self._terms.eta
        if rows.term == "distil":
            return terms.distil(answer, *reference)
        if rows.term == "esd":
            return terms.esd(answer, *reference, eta=eta)
        if rows.term == "gem":
            return terms.gem(answer, *reference, eta=eta)
        if rows.target is None:
            return terms.keep(answer, *reference)
        weighting: Weighting = "native"
        if self._terms.redirect_weighting == "min_snr":
            weighting = MinSnr(self._settings.min_snr_gamma)
        residual = self._model.image_residuals(
            answer, noisy, rows.target, rows.noise_sample.timesteps, weighting
        )
        if rows.mask is None:
            return terms.redirect(residual)
        return terms.redirect(residual, policy=answer, reference=reference[0], mask=rows.mask)

    def _together(self, own: PairStep) -> PairStep:
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
        return PairStep(
            PairErrors(policy, reference.detach()),
            timesteps[:, 0].detach().to(own.timesteps.dtype),
            weight[:, 0].detach(),
            label[:, 0].detach(),
            cost.detach(),
            None if own.loser_scale is None else next(others).detach(),
            None if own.prior is None else next(others),
        )


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
