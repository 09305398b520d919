"""Which images the single-image terms look at in a step: a row is one image, one prompt and one noise.

A row goes along with one pair of the batch, so that a batch which is computed in parts, or by several
processes, computes each row once. Everything is decided by the seed and the batch's index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..config.terms import TermName, TermSettings
from ..devices import sent
from ..objectives.terms import mixture
from ..preferences.batches import ShuffledIndices
from ..types import Conditioning, PairBatch
from .caption_dropout import span
from .distributed import ProcessGroup, SingleProcess
from .reference import NoiseSample, draw

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..families.timesteps import TimestepLaw

# Keeps the random numbers of the terms apart from those of the pairs.
_EMPTY, _TEXT, _MIX = 1, 2, 3
_STREAM = 2**33


@dataclass(frozen=True)
class TermRows:
    """N rows of one term.

    Attributes:
        term: its name.
        slots: position in the batch of the pair that each row goes along with.
        images: [N, C, h, w] scaled latents that the noise is added to.
        noise_sample: timesteps [N] and noise [N, C, h, w].
        conditioning: of N prompts, for the policy.
        prompts: the N texts.
        weight: [N] factor of each row's loss.
        reference: what the base model is asked for on the same noisy images, each of N prompts.
        target: [N, C, h, w] scaled latents of the chosen images; None where no image is aimed at.
        mask: [N, 1, h, w] where the images of a pair differ, or None.
        expected: rows of this term that a batch of all processes has on average.
    """

    term: TermName
    slots: tuple[int, ...]
    images: Tensor
    noise_sample: NoiseSample
    conditioning: Conditioning
    prompts: tuple[str, ...]
    weight: Tensor
    reference: tuple[Conditioning, ...] = ()
    target: Tensor | None = None
    mask: Tensor | None = None
    expected: float = 1.0

    def __len__(self) -> int:
        """How many rows."""
        return len(self.slots)

    def of_pairs(self, places: slice) -> TermRows:
        """The rows that go along with the pairs at these places of the batch."""
        here = range(places.start, places.stop)
        index = [row for row, slot in enumerate(self.slots) if slot in here]
        if len(index) == len(self):
            return self
        at = sent(torch.tensor(index, dtype=torch.int64), self.images.device)
        return replace(
            self,
            slots=tuple(self.slots[row] for row in index),
            images=self.images[at],
            noise_sample=NoiseSample(self.noise_sample.timesteps[at], self.noise_sample.noise[at]),
            conditioning=self.conditioning.map(lambda part: part[at]),
            prompts=tuple(self.prompts[row] for row in index),
            weight=self.weight[at],
            reference=tuple(each.map(lambda part: part[at]) for each in self.reference),
            target=None if self.target is None else self.target[at],
            mask=None if self.mask is None else self.mask[at],
        )


@dataclass(frozen=True)
class BaseImages:
    """What the base model drew for benign prompts, encoded.

    Attributes:
        latents: [K, C, h, w] scaled.
        conditioning: of K prompts.
        prompts: the K texts.
    """

    latents: Tensor
    conditioning: Conditioning
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class TermData:
    """What the terms need besides the pairs of a batch.

    Attributes:
        empty: conditioning of the empty prompt, N = 1.
        safe: conditioning of the safe prompts, one row each; None where no term asks for them.
        safe_row: row of `safe` by harmful prompt; others have the empty prompt.
        base_images: for `keep_text`; None where it is off.
        harmful_share: part of the pairs in a batch that are harmful, 0..1, on average.
        image_size: (width, height) in pixels of the base images, for families that are told sizes.
    """

    empty: Conditioning
    safe: Conditioning | None = None
    safe_row: Mapping[str, int] | None = None
    base_images: BaseImages | None = None
    harmful_share: float = 1.0
    image_size: tuple[int, int] = (0, 0)


class TermSource:
    """Makes the rows of each batch."""

    def __init__(
        self,
        weights: Mapping[TermName, float],
        settings: TermSettings,
        data: TermData,
        model: LoadedModel,
        law: TimestepLaw,
        seed: int,
        team: ProcessGroup | None = None,
    ) -> None:
        """Get ready.

        Args:
            weights: of the terms that take part, see `terms.term_weights`.
            settings: of the terms.
            data: what they need besides the pairs.
            model: whose timesteps and device are used.
            law: of the timesteps.
            seed: of the run.
            team: the processes that train together.
        """
        self._weights, self._settings, self._data = weights, settings, data
        self._model, self._law, self._seed = model, law, seed
        self._team = team or SingleProcess()
        bank = data.base_images
        self._order = None if bank is None else ShuffledIndices(list(range(len(bank.prompts))), seed, _TEXT)

    def __call__(self, index: int, batch: PairBatch, noise_sample: NoiseSample) -> tuple[TermRows, ...]:
        """The rows of the batch of that index in this process; a term without any is left out.

        Args:
            index: of the batch.
            batch: this process's pairs.
            noise_sample: timesteps and noise of these pairs; harmful and benign rows use them.
        """
        made = [self._rows(term, index, batch, noise_sample) for term in self._weights]
        return tuple(rows for rows in made if rows is not None and len(rows))

    def _rows(
        self, term: TermName, index: int, batch: PairBatch, noise_sample: NoiseSample
    ) -> TermRows | None:
        if term == "keep":
            return self._of_pairs(term, batch, noise_sample, benign=True)
        if term == "keep_empty":
            return self._under_the_empty_prompt(index, batch)
        if term == "keep_text":
            return self._of_base_images(index, batch)
        rows = self._of_pairs(term, batch, noise_sample, benign=False)
        return None if rows is None else self._mixed(rows, index, batch)

    def _of_pairs(
        self, term: TermName, batch: PairBatch, noise_sample: NoiseSample, *, benign: bool
    ) -> TermRows | None:
        """The chosen images of the pairs of one kind."""
        kinds = batch.benign or (False,) * len(batch.weight)
        slots = tuple(slot for slot, kind in enumerate(kinds) if kind is benign)
        if not slots:
            return None
        at = self._positions(slots)
        conditioning = batch.conditioning.map(lambda part: part[at])
        chosen = batch.latents[at, 0]
        share = self._data.harmful_share
        return TermRows(
            term,
            slots,
            chosen,
            NoiseSample(noise_sample.timesteps[at], noise_sample.noise[at]),
            conditioning,
            tuple(batch.prompts[slot] for slot in slots),
            batch.weight[at],
            reference=(conditioning,) if benign else (),
            target=None if benign else chosen,
            mask=None if benign or batch.mask is None else batch.mask[at],
            expected=len(batch.weight) * self._team.size * ((1 - share) if benign else share),
        )

    def _mixed(self, rows: TermRows, index: int, batch: PairBatch) -> TermRows:
        """Harmful rows on mixtures of both images, with what their term asks the base model for."""
        at = self._positions(rows.slots)
        pairs = len(batch.weight)
        every = self._shares(index, pairs * self._team.size)[pairs * self._team.rank :][:pairs]
        share = sent(torch.tensor(every, dtype=torch.float32), rows.images.device)[at]
        asked: dict[str, tuple[Conditioning, ...]] = {
            "redirect": () if rows.mask is None else (rows.conditioning,),
            "distil": (self._safe(rows),) if rows.term == "distil" else (),
            "esd": (self._empty(rows.conditioning), rows.conditioning),
            "gem": (self._safe(rows), rows.conditioning) if rows.term == "gem" else (),
        }
        return replace(
            rows,
            images=mixture(batch.latents[at, 0], batch.latents[at, 1], share),
            reference=asked[rows.term],
        )

    def _shares(self, index: int, pairs: int) -> list[float]:
        """Part of the rejected image in the mixture of every pair of the batch."""
        own, noise_sample = self._settings, np.random.default_rng((self._seed, index, _MIX))
        mixed = noise_sample.beta(own.redirect_mix_a, own.redirect_mix_b, size=pairs)
        pure = noise_sample.random(size=pairs) < own.redirect_pure
        return [float(value) for value in np.where(pure, 1.0, mixed)]

    def _under_the_empty_prompt(self, index: int, batch: PairBatch) -> TermRows | None:
        pairs, size = len(batch.weight), self._team.size
        first, last = span(index, pairs * size, self._settings.keep_empty_share)
        noise_sample = np.random.default_rng((self._seed, index, _EMPTY))
        every = noise_sample.choice(pairs * size, last - first, replace=last - first > pairs * size)
        sides = noise_sample.integers(2, size=last - first)
        own = range(pairs * self._team.rank, pairs * (self._team.rank + 1))
        mine = [row for row, slot in enumerate(every) if int(slot) in own]
        if not mine:
            return None
        slots = tuple(int(every[row]) - own.start for row in mine)
        at = self._positions(slots)
        side = self._positions([int(sides[row]) for row in mine])
        conditioning = self._empty(batch.conditioning.map(lambda part: part[at]))
        images = batch.latents[at, side]
        return TermRows(
            "keep_empty",
            slots,
            images,
            self._fresh(index, last - first, tuple(images.shape[1:]), mine, _EMPTY),
            conditioning,
            ("",) * len(slots),
            torch.ones(len(slots), device=images.device),
            reference=(conditioning,),
            expected=pairs * self._team.size * self._settings.keep_empty_share,
        )

    def _of_base_images(self, index: int, batch: PairBatch) -> TermRows | None:
        bank, order = self._data.base_images, self._order
        if bank is None or order is None:
            return None
        pairs = len(batch.weight)
        first, last = span(index, pairs * self._team.size, self._settings.keep_text_share)
        own = range(pairs * self._team.rank, pairs * (self._team.rank + 1))
        owners = [(row * pairs * self._team.size) // (last - first) for row in range(last - first)]
        mine = [row for row, slot in enumerate(owners) if slot in own]
        if not mine:
            return None
        items = [order.at(first + row) for row in mine]
        at = sent(torch.tensor(items), bank.latents.device)

        def here(part: Tensor) -> Tensor:
            return sent(part[at], self._model.device)

        images = here(bank.latents)
        conditioning = bank.conditioning.map(here)
        if batch.conditioning.sizes is not None:
            width, height = self._data.image_size
            told = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
            conditioning = replace(conditioning, sizes=told.to(images.device).expand(len(mine), -1))
        return TermRows(
            "keep_text",
            tuple(owners[row] - own.start for row in mine),
            images,
            self._fresh(index, last - first, tuple(images.shape[1:]), mine, _TEXT),
            conditioning,
            tuple(bank.prompts[item] for item in items),
            torch.ones(len(mine), device=images.device),
            reference=(conditioning,),
            expected=pairs * self._team.size * self._settings.keep_text_share,
        )

    def _fresh(
        self, index: int, rows: int, shape: tuple[int, ...], mine: Sequence[int], stream: int
    ) -> NoiseSample:
        """Timesteps and noise of some of the rows that are no pairs."""
        model = self._model
        every = draw(
            index, self._seed + stream * _STREAM, rows, shape, model.timesteps, self._law, torch.device("cpu")
        )
        at = torch.tensor(mine)
        return NoiseSample.sent(every.timesteps[at], every.noise[at], model.device)

    def _safe(self, rows: TermRows) -> Conditioning:
        """The safe prompts of rows; where a harmful prompt has none, the empty one."""
        safe, row_of = self._data.safe, self._data.safe_row or {}
        if safe is None or not row_of:
            return self._empty(rows.conditioning)
        table = Conditioning.concat([safe, self._data.empty])
        items = [row_of.get(prompt, len(safe)) for prompt in rows.prompts]
        at = sent(torch.tensor(items), table.embeddings.device)
        known = table.map(lambda part: part[at])
        return replace(known, sizes=rows.conditioning.sizes, guidance=rows.conditioning.guidance)

    def _empty(self, like: Conditioning) -> Conditioning:
        """The empty prompt, as often as there are rows in `like`, with its sizes and guidance."""
        empty = self._data.empty.map(lambda part: part.expand(len(like), *part.shape[1:]))
        return replace(empty, sizes=like.sizes, guidance=like.guidance)

    def _positions(self, slots: Sequence[int]) -> Tensor:
        return sent(torch.tensor(slots, dtype=torch.int64), self._model.device)
