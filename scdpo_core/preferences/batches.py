"""Dealing pairs into batches that a step number alone decides, so that resuming needs no state."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ..devices import free_memory, sent
from ..types import CachedPair, Conditioning, LabelledPair, PairBatch, ScdpoError

RESIDENT_LIMIT = 2 * 2**30
"""Bytes of latents and embeddings of a run's pairs that may lie on the training device."""
_SHARE = 20
# Salts of `ShuffledIndices` are 0 to 2.
_MIRROR = 3


class Room:
    """What is left on the training device for pairs; one for all that a run holds there."""

    def __init__(self, size: int | None = None) -> None:
        """Room for `size` bytes.

        Args:
            size: None: a twentieth of what the device has free when the first pairs come, at most
                `RESIDENT_LIMIT`. A small GPU needs its memory for the step.
        """
        self._left = size

    def take(self, size: int, device: torch.device) -> bool:
        """Reserve bytes on the device; False if there is not enough memory left."""
        if self._left is None:
            free = free_memory(device)
            self._left = RESIDENT_LIMIT if free is None else min(RESIDENT_LIMIT, free // _SHARE)
        if size > self._left:
            return False
        self._left -= size
        return True


class BatchStream:
    """An endless stream of batches with random access.

    Without `benign_share` every pair is used exactly once an epoch, in an order shuffled for each epoch
    from the seed; a batch may span two epochs. With it, benign and other pairs are two such streams with
    epochs of their own, and the first s batches together hold floor(s * batch_size * benign_share) benign
    pairs: the same number in each batch where batch_size * benign_share is whole, else one more in some.
    """

    def __init__(
        self,
        cached: Sequence[CachedPair],
        labelled: Sequence[LabelledPair],
        batch_size: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        benign_share: float | Fraction | None = None,
        sizes: Tensor | None = None,
        share: tuple[int, int] = (0, 1),
        room: Room | None = None,
    ) -> None:
        """Stack all pairs once, so that a step does no work for each of them.

        Args:
            cached: the pairs' tensors, all of one shape.
            labelled: the same pairs in the same order.
            batch_size: pairs in a batch of one process, at least 1.
            seed: decides every order; 0 or more.
            device: where batches are wanted.
            dtype: of latents and embeddings; weights, labels and costs are float32.
            benign_share: part of each batch, 0..1, that is taken from the pairs of the category 'benign';
                None: as they come.
            sizes: [pairs, 6] of each pair's images, see `Conditioning.sizes`; None: none are told.
            share: number of this process and of all of them. Together they deal what one process would with
                a batch of `batch_size` times their number; each gets its part of that batch.
            room: for the pairs on the device; where it is too small, they wait on the CPU and only batches
                travel. None: a `Room()` for them alone.

        Raises:
            ScdpoError: no pairs are left to train on, or none of the kind that `benign_share` asks for.
            ValueError: `cached` and `labelled` do not match, their shapes differ, or a number makes no sense.
        """
        if len(cached) != len(labelled):
            raise ValueError(f"{len(cached)} cached pairs, but {len(labelled)} labelled ones.")
        if batch_size < 1 or seed < 0 or not 0.0 <= (benign_share or 0.0) <= 1.0:
            raise ValueError("batch_size must be at least 1, seed at least 0, benign_share within 0..1.")
        self._batch_size = batch_size
        self._share, benign, others = kinds_of(labelled, benign_share)
        self._benign, self._others = ShuffledIndices(benign, seed, 1), ShuffledIndices(others, seed, 0)
        self._rank, self._processes = share
        self._seed, self._mirrors = seed, any(pair.mirrored is not None for pair in cached)
        self._store = PairStore(cached, labelled, device, dtype, room, sizes)

    def indices(self, step: int) -> list[int]:
        """Return which pairs this process's batch `step` holds, as positions in what the stream was made of.

        Raises:
            ValueError: `step` is negative.
        """
        first = self._rank * self._batch_size
        return self.dealt(step)[first : first + self._batch_size]

    def dealt(self, step: int) -> list[int]:
        """Return which pairs batch `step` holds in all processes together, in the order of processes.

        Raises:
            ValueError: `step` is negative.
        """
        if step < 0:
            raise ValueError("Steps count from 0.")
        size = self._batch_size * self._processes
        start, end = step * size, (step + 1) * size
        benign = range(int(start * self._share), int(end * self._share))
        others = range(start - benign.start, end - benign.stop)
        return [*map(self._benign.at, benign), *map(self._others.at, others)]

    def batch(self, step: int) -> PairBatch:
        """Batch `step`, counted from 0: always the same for the same pairs, batch size, seed and share.

        Raises:
            ValueError: `step` is negative.
        """
        return self._store.gather(torch.tensor(self.indices(step)), self._mirrored(step))

    def pairs(self, indices: Sequence[int]) -> PairBatch:
        """Return the pairs at these positions, none of them mirrored; one may come several times."""
        return self._store.gather(torch.tensor(indices))

    def _mirrored(self, step: int) -> Tensor | None:
        """Return [B] whether each pair of this process's batch is mirrored; None where none ever is."""
        if not self._mirrors:
            return None
        chance = np.random.default_rng((self._seed, _MIRROR, step))
        every = chance.integers(2, size=self._batch_size * self._processes)
        first = self._rank * self._batch_size
        return torch.from_numpy(every[first : first + self._batch_size] == 1)


def kinds_of(
    labelled: Sequence[LabelledPair], benign_share: float | Fraction | None
) -> tuple[Fraction, list[int], list[int]]:
    """Return the exact share of benign pairs, and the positions of benign and of other pairs.

    Without a share all pairs count as others.

    Raises:
        ScdpoError: there are no pairs, or none of a kind that the share asks for.
    """
    if not labelled:
        raise ScdpoError(
            "No pairs are left to train on. The relabelling report says why each was dropped; add pairs, "
            "or choose another cost model or rule for unsafe pairs."
        )
    if benign_share is None:
        return Fraction(0), [], list(range(len(labelled)))
    # 0.29 * 100 is a little less than 29.
    exact = (
        benign_share
        if isinstance(benign_share, Fraction)
        else Fraction(benign_share).limit_denominator(10000)
    )
    benign = [index for index, pair in enumerate(labelled) if pair.is_benign]
    others = sorted(set(range(len(labelled))) - set(benign))
    if (exact > 0 and not benign) or (exact < 1 and not others):
        raise ScdpoError(
            f"A share of {float(exact):g} benign pairs is asked for, but {len(benign)} of the "
            f"{len(labelled)} pairs are of the category 'benign'. Put such pairs into chosen/benign/ and "
            "rejected/benign/ and the others beside these folders, or ask for no share."
        )
    return exact, benign, others


class ShuffledIndices:
    """Members in a random order, all of them once an epoch, with a new order for each epoch."""

    def __init__(self, members: list[int], seed: int, salt: int) -> None:
        """Shuffle `members`; `seed` and `salt` decide every order."""
        self._members = members
        self._seed = (seed, salt)
        self._epoch = -1
        self._order: list[int] = []

    def at(self, position: int) -> int:
        """Return the member at that position, counted from 0 over all epochs."""
        epoch, index = divmod(position, len(self._members))
        if epoch != self._epoch:
            self._order = np.random.default_rng((*self._seed, epoch)).permutation(self._members).tolist()
            self._epoch = epoch
        return self._order[index]


class PairStore:
    """All pairs as a few tensors; embeddings once a prompt."""

    def __init__(
        self,
        cached: Sequence[CachedPair],
        labelled: Sequence[LabelledPair],
        device: torch.device,
        dtype: torch.dtype,
        room: Room | None = None,
        sizes: Tensor | None = None,
    ) -> None:
        """Stack all pairs; arguments and errors as of `BatchStream`."""
        texts: dict[str, CachedPair] = {}
        for pair, label in zip(cached, labelled, strict=True):
            texts.setdefault(label.pair.prompt, pair)
        numbers = {prompt: number for number, prompt in enumerate(texts)}
        parts = [
            _stack([pair.latents for pair in cached], dtype),
            _stack([pair.embeddings for pair in texts.values()], dtype),
        ]
        masks = [pair.attention_mask for pair in texts.values() if pair.attention_mask is not None]
        pooled = [pair.pooled for pair in texts.values() if pair.pooled is not None]
        mirrored = [pair.mirrored for pair in cached if pair.mirrored is not None]
        for some, whole, name in ((pooled, texts, "pooled state"), (mirrored, cached, "mirrored version")):
            if some:
                if len(some) != len(whole):
                    raise ValueError(f"Some pairs have a {name} and some have none.")
                parts.append(_stack(some, dtype))
        total = sum(part.numel() * part.element_size() for part in parts)
        home = device if (room or Room()).take(total, device) else torch.device("cpu")
        self._device = device
        self._latents, self._embeddings, *rest = (part.to(home) for part in parts)
        self._mirrored = rest.pop() if mirrored else None
        self._pooled = rest[0] if rest else None
        if masks and len(masks) != len(texts):
            raise ValueError("Some pairs have an attention mask and some have none.")
        self._attention_mask = _stack(masks, torch.bool).to(home) if masks else None
        self._sizes = None if sizes is None else sizes.to(device, torch.float32)
        self._prompts = [pair.pair.prompt for pair in labelled]
        self._benign = [pair.is_benign for pair in labelled]
        self._mask = _masks(cached)
        self._text = torch.tensor([numbers[prompt] for prompt in self._prompts])
        unknown = float("nan")
        costs = [[unknown if c is None else c for c in (p.chosen_cost, p.rejected_cost)] for p in labelled]
        self._cost = torch.tensor(costs, dtype=torch.float32, device=device)
        self._weight = torch.tensor([pair.weight for pair in labelled], dtype=torch.float32, device=device)
        self._label = torch.tensor([pair.label for pair in labelled], dtype=torch.float32, device=device)

    def gather(self, index: Tensor, mirrored: Tensor | None = None) -> PairBatch:
        """Return the pairs at these positions.

        Args:
            index: [B] int64 on the CPU.
            mirrored: [B] bool on the CPU, whether each is wanted mirrored, its mask with it; None: none is.
        """
        latents = self._pick(self._latents, index)
        mask = None if self._mask is None else self._pick(self._mask, index)
        if mirrored is not None and self._mirrored is not None:
            at = sent(mirrored, self._device)
            latents = torch.where(at.view(-1, 1, 1, 1, 1), self._pick(self._mirrored, index), latents)
            mask = None if mask is None else torch.where(at.view(-1, 1, 1, 1), mask.flip(-1), mask)
        text = self._text[index]
        device_index = sent(index, self._device)
        pooled, attention_mask = (
            None if states is None else self._pick(states, text)
            for states in (self._pooled, self._attention_mask)
        )
        sizes = None if self._sizes is None else self._sizes[device_index]
        return PairBatch(
            latents=latents,
            conditioning=Conditioning(
                self._pick(self._embeddings, text), pooled, sizes, attention_mask=attention_mask
            ),
            weight=self._weight[device_index],
            label=self._label[device_index],
            cost=self._cost[device_index],
            prompts=tuple(self._prompts[position] for position in index.tolist()),
            benign=tuple(self._benign[position] for position in index.tolist()),
            mask=mask,
        )

    def _pick(self, source: Tensor, index: Tensor) -> Tensor:
        # The batch is pinned and not the source: what is picked from pinned memory is not pinned itself.
        return sent(source[sent(index, source.device)], self._device)


def _masks(cached: Sequence[CachedPair]) -> Tensor | None:
    """Return [pairs, 1, h, w], all 1 of a pair that has no mask; None where no pair has one."""
    if all(pair.mask is None for pair in cached):
        return None
    whole = torch.ones(1, *cached[0].latents.shape[2:])
    return torch.stack([whole if pair.mask is None else pair.mask.float() for pair in cached])


def _stack(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) != 1:
        raise ValueError(f"Pairs of different shapes cannot share a batch: {sorted(shapes)}.")
    # A VAE's answer may lie in another order in memory than what comes from the cache; networks round by it.
    return torch.stack([tensor.to(dtype).contiguous() for tensor in tensors])
