"""From labelled pairs to batches: their sizes, what is encoded of them, who is held out, in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import TrainSettings
from ..preferences.batches import BatchStream, Room
from ..preferences.buckets import BucketStream, Size, Stream, sizes_of
from ..preferences.cache import Cache, MemoryCache, PairCache, build_cache
from ..preferences.pictures import covering, upright_size
from ..preferences.split import hold_out
from ..types import CachedPair, LabelledPair, ScdpoError
from .provenance import categories, dataset_hash
from .team import Team
from .validation import HeldOut

if TYPE_CHECKING:
    from ..families.base import LoadedModel


@dataclass(frozen=True)
class Dataset:
    """The pairs of a run, encoded.

    Attributes:
        cached: all of them.
        labelled: the same, in the same order.
        trained: positions of those that are trained on.
        held: positions of those that are held out.
        sizes: [pairs, 6] see `Conditioning.sizes`; None where none are told.
        room: on the device, for those that are trained on and those that are held out.
    """

    cached: Sequence[CachedPair]
    labelled: Sequence[LabelledPair]
    trained: Sequence[int]
    held: Sequence[int] = field(default_factory=list)
    sizes: Tensor | None = None
    room: Room = field(default_factory=Room)

    @property
    def hash(self) -> str:
        """See `provenance.dataset_hash`."""
        return dataset_hash(self.cached, self.labelled)

    @property
    def categories(self) -> dict[str, int]:
        """How many of the pairs that are trained on are of which kind; '' where none is said."""
        return categories([self.labelled[place] for place in self.trained])

    @property
    def keys(self) -> list[str]:
        """Of the pairs that are trained on, in the cache."""
        return [self.cached[place].key for place in self.trained]

    def stream(self, settings: TrainSettings, device: torch.device, team: Team) -> Stream:
        """What training deals from."""
        cached, labelled, sizes = self._part(self.trained)
        several = len({tuple(pair.latents.shape) for pair in cached}) > 1
        kind = BucketStream if several else BatchStream
        optim = settings.optim
        return kind(
            cached,
            labelled,
            optim.batch_size,
            optim.seed,
            device,
            torch.float32,
            settings.data.benign_share,
            sizes=sizes,
            share=(team.rank, team.size),
            room=self.room,
        )

    def held_out(self, settings: TrainSettings, device: torch.device) -> HeldOut:
        """What the LoRA is tried on."""
        cached, labelled, sizes = self._part(self.held)
        return HeldOut(cached, labelled, settings.optim.batch_size, device, sizes, self.room)

    def _part(self, places: Sequence[int]) -> tuple[list[CachedPair], list[LabelledPair], Tensor | None]:
        sizes = None if self.sizes is None else self.sizes[list(places)]
        return [self.cached[p] for p in places], [self.labelled[p] for p in places], sizes


def encode(
    labelled: Sequence[LabelledPair],
    model: LoadedModel,
    settings: TrainSettings,
    folder: Path,
    team: Team,
    progress: Callable[[int, int], None],
) -> Dataset:
    """Encode all pairs and decide who is held out.

    Args:
        labelled: the pairs, at least one.
        model: encodes them.
        settings: of the run.
        folder: for the cache, where the settings name none.
        team: the processes that train together; each encodes its share, and all find it on the disk.
        progress: is told how many of how many pairs are ready.

    Raises:
        ScdpoError: as `build_cache` and `hold_out`; a bucket's size does not fit the model; real sizes are
            asked for and the family is told none.
    """
    data = settings.data
    if data.real_sizes and model.family != "sdxl":
        raise ScdpoError(
            f"--real-sizes is for SDXL, which is told the sizes of pictures; {model.family} is not. "
            "Leave it out."
        )
    trained, held = hold_out(labelled, settings.validation.validation)
    area = data.size or model.default_size
    sizes = sizes_of(labelled, area, data.bucket_step) if data.buckets else [area] * len(labelled)
    for size in set(sizes):
        model.latent_shape(size)
    cache: Cache = MemoryCache() if data.cache_in == "ram" else PairCache(data.cache or folder)
    ready: dict[int, CachedPair] = {}
    for size in dict.fromkeys(sizes):
        own = [place for place, each in enumerate(sizes) if each == size]
        pairs = [labelled[place] for place in own]
        if team.size > 1 and data.cache_in == "disk":
            build_cache(pairs[team.rank :: team.size], model, size, cache, progress)
            team.wait()

        def told_all(count: int, _: int, done: int = len(ready)) -> None:
            progress(done + count, len(labelled))

        found = build_cache(pairs, model, size, cache, told_all)
        ready |= dict(zip(own, found, strict=True))
    told = None
    if data.real_sizes:
        told = torch.tensor([real_sizes(each, size) for each, size in zip(labelled, sizes, strict=True)])
    return Dataset([ready[place] for place in range(len(labelled))], labelled, trained, held, told)


def real_sizes(labelled: LabelledPair, size: Size) -> list[float]:
    """What SDXL is told of a pair at a training size, see `Conditioning.sizes`.

    The chosen picture's own size and crop, for the rejected one as well: told apart, the two would teach the
    network which sizes to prefer.
    """
    width, height = upright_size(labelled.pair.chosen)
    left, top = covering((width, height), size)
    return [height, width, top, left, size[1], size[0]]
