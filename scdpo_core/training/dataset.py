"""From labelled pairs to batches: their sizes, what is encoded of them, who is held out, in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config.settings import TrainSettings
from ..io.images import covering, upright_size
from ..preferences.batches import BatchStream, Room
from ..preferences.buckets import BucketStream, Size, Stream, sizes_of
from ..preferences.cache import Cache, MemoryCache, PairCache, build_cache
from ..preferences.masks import latent_mask
from ..preferences.split import hold_out
from ..types import CachedPair, Conditioning, LabelledPair, ScdpoError
from .caption_dropout import empty_prompt
from .distributed import ProcessGroup
from .lora_metadata import categories, dataset_hash
from .validation import HeldOut

if TYPE_CHECKING:
    from ..families.base import LoadedModel

_SHOWN = 60
_ENLARGED = 1.1


@dataclass(frozen=True)
class Dataset:
    """The pairs of a run, encoded.

    Attributes:
        cached: all of them.
        labelled: the same, in the same order.
        trained: positions of those that are trained on, each as often as it comes in an epoch.
        held: positions of those that are held out.
        sizes: [pairs, 6] see `Conditioning.sizes`; None where none are told.
        room: on the device, for those that are trained on and those that are held out.
        empty: the empty prompt, as long as theirs; None where no prompt is dropped.
    """

    cached: Sequence[CachedPair]
    labelled: Sequence[LabelledPair]
    trained: Sequence[int]
    held: Sequence[int] = field(default_factory=list)
    sizes: Tensor | None = None
    room: Room = field(default_factory=Room)
    empty: Conditioning | None = None

    @property
    def hash(self) -> str:
        """See `provenance.dataset_hash`."""
        return dataset_hash(self.cached, self.labelled)

    @property
    def categories(self) -> dict[str, int]:
        """How many of the pairs that are trained on are of which kind; '' where none is said."""
        return categories([self.labelled[place] for place in sorted(set(self.trained))])

    @property
    def training_pairs(self) -> list[LabelledPair]:
        """The pairs that are trained on, each as often as it comes in an epoch."""
        return [self.labelled[place] for place in self.trained]

    def harmful_share(self, benign_share: float | None) -> float:
        """Part of the pairs in a batch that are harmful, 0..1, on average.

        Args:
            benign_share: that the settings ask for; None: as in the folder.
        """
        if benign_share is not None:
            return 1 - benign_share
        pairs = self.training_pairs
        return sum(not pair.is_benign for pair in pairs) / len(pairs)

    @property
    def keys(self) -> list[str]:
        """Of the pairs that are trained on, in the cache."""
        return [self.cached[place].key for place in self.trained]

    def stream(self, settings: TrainSettings, device: torch.device, team: ProcessGroup) -> Stream:
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
    team: ProcessGroup,
    progress: Callable[[int, int], None],
    notice: Callable[[str], None] = lambda sentence: None,
) -> Dataset:
    """Encode all pairs and decide who is held out.

    Args:
        labelled: the pairs, at least one.
        model: encodes them.
        settings: of the run.
        folder: for the cache, where the settings name none.
        team: the processes that train together; each encodes its share, and all find it on the disk.
        progress: is told how many of how many pairs are ready.
        notice: is told what is odd but stops nothing.

    Raises:
        ScdpoError: as `build_cache` and `hold_out`; a bucket's size does not fit the model; real sizes are
            asked for and the family is told none.
    """
    data = settings.data
    if data.real_sizes and model.family != "sdxl":
        raise ScdpoError(
            f"--real-sizes is for SDXL, which is told the sizes of images; {model.family} is not. "
            "Leave it out."
        )
    trained, held = hold_out(labelled, settings.validation.validation)
    area = data.size or model.default_size
    sizes = sizes_of(labelled, area, data.bucket_step) if data.buckets else [area] * len(labelled)
    for size in set(sizes):
        model.latent_shape(size)
    enlarged = [pair.pair.id for pair, size in zip(labelled, sizes, strict=True) if is_enlarged(pair, size)]
    if enlarged:
        names = ", ".join(enlarged[:3]) + (", ..." if len(enlarged) > 3 else "")
        notice(
            f"{len(enlarged)} of {len(labelled)} pairs have an image smaller than the training size: it is "
            f"enlarged and teaches blur ({names}). Lower --width and --height, or leave them out."
        )
    cache: Cache = MemoryCache() if data.cache_in == "ram" else PairCache(data.cache or folder)
    # Known references are those of whole prompts and of images as they are.
    fresh = settings.objective.reference_draws == 0
    mirrored = set(trained) if data.flip and fresh else set[int]()
    total, ready, mirrors = len(labelled) + len(mirrored), dict[int, CachedPair](), dict[int, CachedPair]()

    def build(places: Sequence[int], size: Size, done: int, mirror: bool) -> dict[int, CachedPair]:
        pairs = [labelled[place] for place in places]
        texts = {labelled[place].pair.prompt: ready[place].prompt for place in places if place in ready}
        if team.size > 1 and data.cache_in == "disk":
            build_cache(pairs[team.rank :: team.size], model, size, cache, progress, mirror, texts)
            team.barrier()

        def progress_of_all(count: int, _: int) -> None:
            progress(done + count, total)

        found = build_cache(pairs, model, size, cache, progress_of_all, mirror, texts)
        return dict(zip(places, found, strict=True))

    for size in dict.fromkeys(sizes):
        own = [place for place, each in enumerate(sizes) if each == size]
        ready |= _masked(build(own, size, len(ready) + len(mirrors), False), labelled, model, size)
        also = [place for place in own if place in mirrored]
        if also:
            mirrors |= build(also, size, len(ready) + len(mirrors), True)
    cached = level_prompts([ready[place] for place in range(len(labelled))], model)
    for place, mirror in mirrors.items():
        cached[place] = replace(cached[place], mirrored=mirror.latents)
    image_sizes = None
    if data.real_sizes:
        image_sizes = torch.tensor(
            [real_sizes(each, size) for each, size in zip(labelled, sizes, strict=True)]
        )
    drops = data.caption_dropout > 0 and settings.objective.has_pair_loss and fresh
    empty = empty_prompt(model, cached[0].prompt) if drops else None
    repeated = [place for place in trained for _ in range(labelled[place].pair.repeats)]
    return Dataset(cached, labelled, repeated, held, image_sizes, empty=empty)


def level_prompts(cached: Sequence[CachedPair], model: LoadedModel) -> list[CachedPair]:
    """Bring the embeddings of all pairs to one length; see `LoadedModel.level_prompts`.

    Pairs whose embeddings change get another key, for the reference answers them differently; padding that a
    mask leaves out changes no answer.
    """
    if len({len(pair.embeddings) for pair in cached}) < 2:
        return list(cached)
    # Pairs of one prompt share a tensor, and go on sharing it.
    alone = {id(pair.embeddings): pair.prompt for pair in cached}
    leveled = dict(zip(alone, model.level_prompts(list(alone.values())), strict=True))
    return [
        pair
        if len((prompt := leveled[id(pair.embeddings)]).embeddings) == len(pair.embeddings)
        else pair.with_prompt(
            prompt, pair.key if prompt.attention_mask is not None else f"{pair.key}-{len(prompt.embeddings)}"
        )
        for pair in cached
    ]


def unread_prompts(labelled: Sequence[LabelledPair], model: LoadedModel) -> list[str]:
    """What of the prompts no text encoder reads: a sentence for each limit that is passed."""
    passed: dict[str, list[tuple[str, str]]] = {}
    for prompt in dict.fromkeys(each.pair.prompt for each in labelled):
        for reader, end in model.unread(prompt).items():
            passed.setdefault(reader, []).append((prompt, end))
    return [
        f"{reader} of a prompt, and {_longer(len(prompts))}: the rest is cut off. Of "
        f"'{_shown(prompts[0][0])}' that is '{_shown(prompts[0][1])}'."
        for reader, prompts in passed.items()
    ]


def _longer(count: int) -> str:
    return "1 prompt is longer" if count == 1 else f"{count} prompts are longer"


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _masked(
    cached: Mapping[int, CachedPair], labelled: Sequence[LabelledPair], model: LoadedModel, size: Size
) -> dict[int, CachedPair]:
    """The pairs with their masks, which are made anew in every run: they cost next to nothing."""
    shape = model.latent_shape(size)
    masks = {place: labelled[place].pair.mask for place in cached}
    return {
        place: pair if (mask := masks[place]) is None else replace(pair, mask=latent_mask(mask, size, shape))
        for place, pair in cached.items()
    }


def is_enlarged(labelled: LabelledPair, size: Size) -> bool:
    """Whether an image of a pair has to grow by more than a tenth to cover a training size."""
    sides = (upright_size(path) for path in (labelled.pair.chosen, labelled.pair.rejected))
    return any(max(size[0] / width, size[1] / height) > _ENLARGED for width, height in sides)


def real_sizes(labelled: LabelledPair, size: Size) -> list[float]:
    """What SDXL is told of a pair at a training size, see `Conditioning.sizes`.

    The chosen image's own size and crop, for the rejected one as well: told apart, the two would teach the
    network which sizes to prefer.
    """
    width, height = upright_size(labelled.pair.chosen)
    left, top = covering((width, height), size)
    return [height, width, top, left, size[1], size[0]]
