"""From the settings to a feed: new draws in every step, or a few for each pair with their errors known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.settings import TrainSettings
from ..run_store.events import Event
from ..types import Conditioning
from .batches import BatchSource, FreshNoise, timestep_law, weighting_of
from .caption_dropout import CaptionDropout
from .distributed import ProcessGroup
from .fixed_noise import FixedNoise
from .microbatch import MicroBatcher
from .reference_cache import NoiseSeeds, ReferenceCache, measured_by
from .term_batches import TermSource

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..lora.adapter import LoraAdapter
    from ..preferences.buckets import Stream


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
