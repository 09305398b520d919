"""Batches: a step number alone decides them, and everybody gets their turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scdpo_core.preferences.batches import BatchStream, Room
from scdpo_core.types import CachedPair, LabelledPair, PairBatch, PreferencePair, ScdpoError

CPU = torch.device("cpu")


def _data(
    categories: Sequence[str], prompts: Sequence[str] = ("a cat", "a hat"), pooled: bool = False
) -> tuple[list[CachedPair], list[LabelledPair]]:
    """Pair i has latents i (chosen) and i + 0.5 (rejected), and embeddings of its prompt's number."""
    cached, labelled = [], []
    for index, category in enumerate(categories):
        which = index % len(prompts)
        latents = torch.stack([torch.full((1, 2, 2), float(index)), torch.full((1, 2, 2), index + 0.5)])
        state = torch.full((2,), 10.0 + which) if pooled else None
        cached.append(CachedPair(latents, torch.full((3, 2), float(which)), state, f"key{index}"))
        pair = PreferencePair(str(index), prompts[which], Path("a"), Path("b"), category)
        cost = None if index % 3 == 0 else -float(index)
        labelled.append(LabelledPair(pair, cost, float(index), False, 1.0 + index, 0.5 + index / 100, ""))
    return cached, labelled


def _stream(
    categories: Sequence[str], batch_size: int, seed: int = 0, share: float | None = None, **options: Any
) -> BatchStream:
    return BatchStream(*_data(categories), batch_size, seed, CPU, torch.float32, share, **options)


def _deal(stream: BatchStream, steps: int) -> list[int]:
    return [index for step in range(steps) for index in stream.indices(step)]


def test_a_batch_holds_the_pairs_that_it_names() -> None:
    cached, labelled = _data([""] * 7, pooled=True)
    stream = BatchStream(cached, labelled, 3, 5, CPU, torch.float32)
    for step in range(6):
        batch, indices = stream.batch(step), stream.indices(step)
        assert batch.latents.shape == (3, 2, 1, 2, 2)
        assert batch.conditioning.embeddings.shape == (3, 3, 2)
        assert batch.conditioning.pooled is not None
        for row, index in enumerate(indices):
            assert torch.equal(batch.latents[row], cached[index].latents)
            assert torch.equal(batch.conditioning.embeddings[row], cached[index].embeddings)
            assert batch.conditioning.pooled[row, 0] == 10 + index % 2
            assert batch.weight[row] == 1 + index
            assert batch.label[row] == pytest.approx(0.5 + index / 100)
            assert batch.cost[row, 1] == index
            if index % 3 == 0:
                assert batch.cost[row, 0].isnan()
            else:
                assert batch.cost[row, 0] == -index


def test_dtype_and_missing_pooled_state() -> None:
    batch = BatchStream(*_data([""] * 2), 2, 0, CPU, torch.bfloat16).batch(0)
    assert batch.latents.dtype == batch.conditioning.embeddings.dtype == torch.bfloat16
    assert batch.weight.dtype == batch.label.dtype == batch.cost.dtype == torch.float32
    assert batch.conditioning.pooled is None


@settings(deadline=None)
@given(st.integers(1, 13), st.integers(1, 9), st.integers(0, 2**40), st.integers(1, 4))
def test_every_pair_is_dealt_once_an_epoch(count: int, size: int, seed: int, epochs: int) -> None:
    # `count` batches are `size` epochs, whole ones.
    dealt = _deal(_stream([""] * count, size, seed), count * epochs)
    for start in range(0, len(dealt), count):
        assert sorted(dealt[start : start + count]) == list(range(count))


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.sampled_from([None, 0.3]))
def test_any_step_can_be_had_in_any_order(steps: list[int], share: float | None) -> None:
    categories = ["benign", "weapon", "", "benign", "drug"]
    straight = _stream(categories, 3, 7, share)
    expected = [straight.indices(step) for step in range(61)]
    jumping = _stream(categories, 3, 7, share)
    assert [jumping.indices(step) for step in steps] == [expected[step] for step in steps]


def test_seed_and_epoch_change_the_order() -> None:
    first, second = _stream([""] * 50, 50, seed=1), _stream([""] * 50, 50, seed=2)
    orders = [stream.indices(step) for stream in (first, second) for step in range(3)]
    assert len({tuple(order) for order in orders}) == 6
    assert orders[0] != sorted(orders[0])
    assert _stream([""] * 50, 50, seed=1).indices(2) == orders[2]


def test_a_whole_share_is_the_same_in_every_batch() -> None:
    # 3 of 12 pairs are benign; 0.5 of a batch of 4 is 2.
    categories = ["weapon"] * 9 + ["benign", "Benign", "benign"]
    stream = _stream(categories, 4, share=0.5)
    for step in range(20):
        assert sum(index >= 9 for index in stream.indices(step)) == 2
    # Either kind has epochs of its own: 18 batches deal 36 of each, 12 times 3 and 4 times 9.
    counts = Counter(_deal(stream, 18))
    assert [counts[index] for index in range(12)] == [4] * 9 + [12] * 3


@settings(deadline=None)
@given(st.integers(1, 16), st.integers(0, 100), st.integers(1, 40))
def test_any_share_is_kept_over_time(size: int, percent: int, steps: int) -> None:
    stream = _stream(["benign"] * 3 + ["weapon"] * 5, size, share=percent / 100)
    batches = [stream.indices(step) for step in range(steps)]
    benign = [sum(index < 3 for index in batch) for batch in batches]
    assert all(len(batch) == size for batch in batches)
    # In whole numbers: 0.29 * 100 is less than 29.
    assert sum(benign) == steps * size * percent // 100
    assert max(benign) - min(benign) <= 1


def test_share_without_pairs_of_that_kind() -> None:
    with pytest.raises(ScdpoError, match=r"0\.25 benign pairs is asked for, but 0 of the 2"):
        _stream(["weapon", ""], 2, share=0.25)
    with pytest.raises(ScdpoError, match="2 of the 2"):
        _stream(["benign", "benign"], 2, share=0.25)
    assert set(_deal(_stream(["benign", "weapon"], 2, share=1.0), 3)) == {0}
    assert set(_deal(_stream(["weapon", "weapon"], 2, share=0.0), 3)) == {0, 1}


def _same(one: PairBatch, other: PairBatch) -> bool:
    return torch.equal(one.latents, other.latents) and torch.equal(
        one.conditioning.embeddings, other.conditioning.embeddings
    )


def test_large_sets_wait_on_the_cpu_and_give_the_same() -> None:
    resident = _stream([""] * 9, 4)
    travelling = _stream([""] * 9, 4, room=Room(0))
    assert all(_same(resident.batch(step), travelling.batch(step)) for step in range(5))
    # A device without memory: what is kept on it and what is not can be told apart on any machine.
    meta = torch.device("meta")
    cached, labelled = _data([""] * 4)
    # 4 pairs of 2 * 4 latents and 2 prompts of 3 * 2 embeddings, 4 bytes each: 44 * 4 = 176 bytes.
    inside = BatchStream(cached, labelled, 2, 0, meta, torch.float32, room=Room(176))
    beyond = BatchStream(cached, labelled, 2, 0, meta, torch.float32, room=Room(175))
    assert inside._store._latents.device.type == "meta"
    assert beyond._store._latents.device.type == "cpu"
    assert beyond.batch(0).latents.device.type == "meta"


def test_nothing_to_train_on() -> None:
    with pytest.raises(ScdpoError, match="No pairs are left"):
        BatchStream([], [], 2, 0, CPU, torch.float32)


def test_numbers_that_make_no_sense() -> None:
    cached, labelled = _data([""] * 2)
    with pytest.raises(ValueError, match="2 cached pairs, but 1"):
        BatchStream(cached, labelled[:1], 2, 0, CPU, torch.float32)
    for size, seed, share in ((0, 0, None), (1, -1, None), (1, 0, 1.5), (1, 0, -0.1)):
        with pytest.raises(ValueError, match="at least"):
            BatchStream(cached, labelled, size, seed, CPU, torch.float32, share)
    with pytest.raises(ValueError, match="count from 0"):
        BatchStream(cached, labelled, 1, 0, CPU, torch.float32).indices(-1)
    odd = CachedPair(torch.zeros(2, 1, 4, 4), cached[1].embeddings, None, "odd")
    with pytest.raises(ValueError, match="different shapes"):
        BatchStream([cached[0], odd], labelled, 1, 0, CPU, torch.float32)
    half = CachedPair(cached[1].latents, cached[1].embeddings, torch.zeros(2), "half")
    with pytest.raises(ValueError, match="pooled"):
        BatchStream([cached[0], half], labelled, 1, 0, CPU, torch.float32)
