"""From the settings to a feed: new draws in every step, or a few for each pair with their errors known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.settings import TrainSettings
from ..devices import sent
from ..run_store.events import Event
from ..types import Conditioning
from .batches import BatchSource, FreshNoise, TrainBatch, timestep_law, weighting_of
from .caption_dropout import CaptionDropout
from .distributed import ProcessGroup, SingleProcess, share_of
from .microbatch import MicroBatcher
from .reference import autocast_for, mean_squares, reference_residuals
from .reference_cache import NoiseSeeds, ReferenceCache, extended, measured_by
from .term_batches import TermSource

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..families.parameterisation import Weighting
    from ..lora.adapter import LoraAdapter
    from ..preferences.buckets import Stream


def turns(dealt: Callable[[int], Sequence[int]], batches: int, pairs: int) -> NDArray[np.int32]:
    """How often each pair was dealt before, for every place of every batch: [batches, B].

    Args:
        dealt: pairs of a batch, by its index.
        batches: in the whole run.
        pairs: how many there are.
    """
    before = [0] * pairs
    rows = []
    for index in range(batches):
        row = []
        for pair in dealt(index):
            row.append(before[pair])
            before[pair] += 1
        rows.append(row)
    return np.asarray(rows, dtype=np.int32)


class FixedNoise:
    """A feed in which a pair's draws come up in turn: the first, the second ... the last, the first again."""

    def __init__(
        self,
        stream: Stream,
        keys: Sequence[str],
        dice: NoiseSeeds,
        draws: int,
        batches: int,
        device: torch.device,
        team: ProcessGroup | None = None,
        terms: TermSource | None = None,
    ) -> None:
        """Plan the whole run; `prepare` then makes it ready.

        Args:
            stream: deals the pairs.
            keys: of the pairs in the cache of latents, in the stream's order.
            dice: that decide each draw.
            draws: for each pair.
            batches: in the whole run, accumulated ones counted one by one.
            device: where portions are wanted.
            team: of the processes that train together.
            terms: makes the rows of the single-image terms, whose reference is asked in every step.
        """
        self._terms = terms
        self._stream, self._keys, self._dice, self._device = stream, list(keys), dice, device
        self._team = team or SingleProcess()
        times = turns(stream.dealt, batches, len(keys))
        own = len(stream.indices(0))
        first = own * self._team.rank
        self._numbers = times[:, first : first + own] % draws
        self.wanted = [0] * len(keys)
        for index, row in enumerate(times):
            for pair, turn in zip(stream.dealt(index), row, strict=True):
                self.wanted[pair] = max(self.wanted[pair], min(draws, int(turn) + 1))
        self._errors = torch.full((len(keys), max(self.wanted), 2), torch.nan)

    def prepare(
        self,
        model: LoadedModel,
        adapter: LoraAdapter,
        weighting: Weighting,
        portions: MicroBatcher,
        kept: Callable[[int], ReferenceCache],
        progress: Callable[[int, int], None],
    ) -> None:
        """Measure the reference on every draw of the run that the cache does not hold; others do their share.

        Args:
            model: the base.
            adapter: the LoRA in its denoiser.
            weighting: of the errors.
            portions: how many draws of a pair there is memory for in one forward pass.
            kept: what was measured with so many draws at once; receives what is.
            progress: is told how many of how many pairs are ready.

        Raises:
            ScdpoError: the reference's errors are no numbers, the cache fails, or see `MicroBatcher.attempt`.
        """

        def measure(pair: int, numbers: range) -> Tensor:
            batch = self._stream.pairs([pair] * len(numbers))
            shape = tuple(batch.latents.shape[2:])
            noise_sample = self._dice.draws(
                [(self._keys[pair], each) for each in numbers], shape, model.device
            )
            with autocast_for(model):
                residuals = reference_residuals(model, adapter, batch, noise_sample, weighting)
            return mean_squares(residuals).float().cpu()

        def short(pair: int) -> bool:
            return len(found[pair]) < self.wanted[pair]

        def look_up(pair: int, sizes: Sequence[int]) -> Tensor:
            for size in sizes:
                errors = kept(size).get(self._keys[pair])
                if len(errors) >= self.wanted[pair]:
                    return errors
            return torch.empty(0, 2)

        def extend(pair: int) -> None:
            """Measure what is missing, in groups of one size: that decides how sums are rounded."""
            size, key = portions.size, self._keys[pair]
            found[pair] = extended(
                kept(size).get(key), self.wanted[pair], size, lambda numbers: measure(pair, numbers)
            )

        sizes = portions.sizes
        todo = [pair for pair, wanted in enumerate(self.wanted) if wanted]
        found = {pair: look_up(pair, sizes[:1]) for pair in todo}
        # Nobody writes before all have looked, so that all see the same.
        missing = self._team.broadcast([pair for pair in todo if short(pair)])
        mine = share_of(missing, self._team)
        for number, pair in enumerate(mine):
            progress(number, len(mine))
            portions.attempt(partial(extend, pair))
            if not self._team.sharded or self._team.rank == 0:
                kept(portions.size).put(self._keys[pair], found[pair])
        self._team.barrier()
        # Some may have had less memory than others.
        reached = [size for size in sizes if self._team.any(portions.size <= size)]
        for pair in filter(short, todo):
            found[pair] = look_up(pair, reached)
            if short(pair):  # written to a disk that this process does not see
                portions.attempt(partial(extend, pair))
        for pair, errors in found.items():
            self._errors[pair, : self.wanted[pair]] = errors[: self.wanted[pair]]
        self._errors = self._errors.to(self._device)
        progress(len(mine), len(mine))

    def __call__(self, index: int) -> TrainBatch:
        """See `BatchSource`."""
        pairs, numbers = self._stream.indices(index), self._numbers[index].tolist()
        batch = self._stream.pairs(pairs)
        which = [(self._keys[pair], number) for pair, number in zip(pairs, numbers, strict=True)]
        noise_sample = self._dice.draws(which, tuple(batch.latents.shape[2:]), self._device)
        places = sent(torch.tensor([pairs, numbers]), self._device)
        rows = () if self._terms is None else self._terms(index, batch, noise_sample)
        return TrainBatch(batch, noise_sample, self._errors[places[0], places[1]], rows)


def deal(
    settings: TrainSettings,
    model: LoadedModel,
    adapter: LoraAdapter,
    stream: Stream,
    *,
    keys: Sequence[str],
    network: str,
    folder: Path,
    team: ProcessGroup,
    progress: Callable[[int, int], None],
    emit: Callable[[Event], None] = lambda event: None,
    terms: TermSource | None = None,
    empty: Conditioning | None = None,
) -> BatchSource:
    """The feed that the settings ask for, ready for its first portion.

    Args:
        settings: of the run.
        model: the base.
        adapter: the LoRA in its denoiser.
        stream: deals the pairs.
        keys: of the pairs in the cache of latents, in the stream's order.
        network: the model's `denoiser_id`; read only where draws are fixed.
        folder: for the errors of the reference.
        team: the processes that train together.
        progress: is told how many of how many pairs the reference has been measured on.
        emit: is told when memory runs out meanwhile.
        terms: makes the rows of the single-image terms; None where there are none.
        empty: the empty prompt, as long as those of the pairs; None where no prompt is dropped.

    Raises:
        ScdpoError: see `FixedNoise.prepare`.
    """
    objective, optim = settings.objective, settings.optim
    law, weighting = timestep_law(settings), weighting_of(objective)
    if objective.reference_draws == 0:
        share = settings.data.caption_dropout
        dropout = None if empty is None else CaptionDropout(share, empty, optim.seed, team)
        return FreshNoise(stream, model, law, optim.seed, team, terms, dropout)
    dice = NoiseSeeds(optim.seed, law, model.timesteps)
    batches = optim.max_train_steps * optim.accumulation
    feed = FixedNoise(stream, keys, dice, objective.reference_draws, batches, model.device, team, terms)
    own = settings.model
    others = (own.compile, own.channels_last, "real sizes" if settings.data.real_sizes else "")

    @cache
    def kept(at_once: int) -> ReferenceCache:
        return ReferenceCache(folder, measured_by(model, network, weighting, dice, at_once, others))

    portions = MicroBatcher(
        settings,
        model.device,
        emit,
        team,
        together=False,
        what="draws of a pair",
        unchanged="what the reference says of them",
    )
    feed.prepare(model, adapter, weighting, portions, kept, progress)
    return feed
