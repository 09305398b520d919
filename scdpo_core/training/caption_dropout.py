"""Caption dropout: part of the pairs of every batch are trained under the empty prompt."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..devices import sent
from ..types import Conditioning, EncodedPrompt, PairBatch
from .distributed import ProcessGroup, SingleProcess

if TYPE_CHECKING:
    from ..families.base import LoadedModel

# Keeps what chance decides here apart from what it decides for the pairs and the terms.
_CAPTION = 4


def span(index: int, pairs: int, share: float) -> tuple[int, int]:
    """Number of the first of a batch's rows and of the next one's, where each pair brings `share` rows.

    Over many batches exactly that share comes up, and a batch has the same number of rows whoever asks.
    """
    return math.floor(index * pairs * share + 1e-9), math.floor((index + 1) * pairs * share + 1e-9)


def empty_prompt(model: LoadedModel, like: EncodedPrompt) -> Conditioning:
    """The empty prompt, N = 1, at the length of the pairs' embeddings.

    Args:
        model: its text encoders in memory.
        like: the prompt of a pair.
    """
    empty = model.encode_prompts([""])
    like = replace(like, embeddings=like.embeddings.to(empty.embeddings))
    leveled = model.level_prompts([like, empty.map(lambda part: part.to(like.embeddings.device)).prompt(0)])[
        1
    ]
    mask = leveled.attention_mask
    return replace(
        empty,
        embeddings=leveled.embeddings[None],
        attention_mask=None if mask is None else mask[None],
    )


class CaptionDropout:
    """Takes the prompts from some pairs of each batch; the batch's index and the seed decide from which.

    Both images of a pair, the policy and the reference see the same prompt.
    """

    def __init__(
        self, share: float, empty: Conditioning, seed: int, team: ProcessGroup | None = None
    ) -> None:
        """Drop prompts.

        Args:
            share: of the pairs, 0..1.
            empty: see `empty_prompt`; wherever it lies.
            seed: of the run.
            team: the processes that train together; a batch of all of them loses as many prompts as one
                process would take from it.
        """
        self._share, self._empty, self._seed, self._team = share, empty, seed, team or SingleProcess()

    def dropped(self, index: int, pairs: int) -> list[bool]:
        """Which of this process's pairs in the batch of that index lose their prompt.

        Args:
            index: of the batch.
            pairs: of this process in it.
        """
        first, last = span(index, pairs * self._team.size, self._share)
        generator = np.random.default_rng((self._seed, index, _CAPTION))
        lost = set(generator.choice(pairs * self._team.size, last - first, replace=False).tolist())
        return [pairs * self._team.rank + slot in lost for slot in range(pairs)]

    def __call__(self, index: int, batch: PairBatch) -> PairBatch:
        """The batch of that index with the empty prompt in some of its places."""
        dropped = self.dropped(index, len(batch.weight))
        if not any(dropped):
            return batch
        known = batch.conditioning
        at = sent(torch.tensor(dropped), known.embeddings.device)

        def without(empty: Tensor, own: Tensor) -> Tensor:
            there = at.view(-1, *(1 for _ in own.shape[1:]))
            return torch.where(there, sent(empty, own.device).to(own.dtype), own)

        pooled, mask = known.pooled, known.attention_mask
        if pooled is not None and self._empty.pooled is not None:
            pooled = without(self._empty.pooled, pooled)
        if mask is not None and self._empty.attention_mask is not None:
            mask = without(self._empty.attention_mask, mask)
        return replace(
            batch,
            conditioning=replace(
                known,
                embeddings=without(self._empty.embeddings, known.embeddings),
                pooled=pooled,
                attention_mask=mask,
            ),
            prompts=tuple("" if gone else text for gone, text in zip(dropped, batch.prompts, strict=True)),
        )
