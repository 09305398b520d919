"""What a forward pass gets: a batch, its dice, and the reference's errors where they are known already."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from ..config.settings import ObjectiveSettings, TrainSettings
from ..families.parameterisation import MinSnr, Weighting
from ..families.timesteps import TimestepLaw
from ..types import PairBatch
from .caption_dropout import CaptionDropout
from .distributed import ProcessGroup, SingleProcess
from .reference import NoiseSample, draw
from .term_batches import TermRows, TermSource

if TYPE_CHECKING:
    from ..families.base import LoadedModel


class Batches(Protocol):
    """Where batches come from; `preferences.batches.BatchStream` is one."""

    def batch(self, step: int) -> PairBatch:
        """The batch of that index, the same whenever it is asked for."""
        ...


@dataclass(frozen=True)
class TrainBatch:
    """The work of one forward pass in one process.

    Attributes:
        batch: B pairs.
        noise_sample: their timesteps and noise.
        reference: [B, 2] errors of the network without the LoRA; None where nobody knows them yet.
        rows: of the single-image terms.
    """

    batch: PairBatch
    noise_sample: NoiseSample
    reference: Tensor | None = None
    rows: tuple[TermRows, ...] = ()


def slice_pairs(batch: PairBatch, places: slice) -> PairBatch:
    """The pairs at these places of a batch."""
    return dataclasses.replace(
        batch,
        latents=batch.latents[places],
        conditioning=batch.conditioning.map(lambda part: part[places]),
        weight=batch.weight[places],
        label=batch.label[places],
        cost=batch.cost[places],
        prompts=batch.prompts[places],
        benign=batch.benign[places],
        mask=None if batch.mask is None else batch.mask[places],
    )


def slice_batch(portion: TrainBatch, places: slice) -> TrainBatch:
    """The pairs at these places of a portion, with all that goes along with them."""
    reference = None if portion.reference is None else portion.reference[places]
    noise_sample = NoiseSample(portion.noise_sample.timesteps[places], portion.noise_sample.noise[places])
    rows = tuple(part for rows in portion.rows if len(part := rows.of_pairs(places)))
    return TrainBatch(slice_pairs(portion.batch, places), noise_sample, reference, rows)


def timestep_law(settings: TrainSettings) -> TimestepLaw:
    """The distribution of timesteps that the settings ask for."""
    own = settings.objective
    return TimestepLaw(own.timesteps, own.timestep_mean, own.timestep_std, own.timestep_min, own.timestep_max)


def weighting_of(settings: ObjectiveSettings) -> Weighting:
    """What the settings ask errors to be weighted by."""
    return MinSnr(settings.min_snr_gamma) if settings.weighting == "min_snr" else settings.weighting


class BatchSource(Protocol):
    """Where portions come from."""

    def __call__(self, index: int) -> TrainBatch:
        """The portion of the batch of that index, the same whenever it is asked for."""
        ...


class FreshNoise:
    """New timesteps and noise for every batch."""

    def __init__(
        self,
        batches: Batches,
        model: LoadedModel,
        law: TimestepLaw,
        seed: int,
        team: ProcessGroup | None = None,
        terms: TermSource | None = None,
        dropout: CaptionDropout | None = None,
    ) -> None:
        """Deal from `batches`; with several processes, these are the process's own share of each batch.

        `dropout` takes prompts from pairs; the rows of `terms` keep them, for the empty prompt must never be
        redirected.
        """
        self._batches, self._model, self._law, self._seed = batches, model, law, seed
        self._team, self._terms, self._dropout = team or SingleProcess(), terms, dropout

    def __call__(self, index: int) -> TrainBatch:
        """See `BatchSource`."""
        batch, team = self._batches.batch(index), self._team
        own = len(batch.weight)
        shape = tuple(batch.latents.shape[2:])
        # The dice of the whole batch, so that several processes throw what one would have thrown.
        model = self._model
        noise_sample = draw(
            index, self._seed, own * team.size, shape, model.timesteps, self._law, model.device,
            slice(own * team.rank, own * (team.rank + 1)),
        )  # fmt: skip
        rows = () if self._terms is None else self._terms(index, batch, noise_sample)
        return TrainBatch(
            batch if self._dropout is None else self._dropout(index, batch), noise_sample, rows=rows
        )


class Prefetcher:
    """A feed that has the next portion ready: the CPU throws dice while the GPU computes."""

    def __init__(self, feed: BatchSource, total: int) -> None:
        """MicroBatcher of `feed`, which from now on nobody else may ask; there are `total` of them."""
        self._feed, self._total = feed, total
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ready: tuple[int, Future[TrainBatch]] | None = None

    def __call__(self, index: int) -> TrainBatch:
        """See `BatchSource`; errors of the work done ahead come out here."""
        ready, self._ready = self._ready, None
        if ready is None or ready[0] != index:
            ready = (index, self._pool.submit(self._feed, index))
        portion = ready[1].result()
        if index + 1 < self._total:
            self._ready = (index + 1, self._pool.submit(self._feed, index + 1))
        return portion

    def close(self) -> None:
        """Drop what is ready and end the thread."""
        self._ready = None
        self._pool.shutdown(wait=True, cancel_futures=True)
