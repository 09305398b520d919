"""Buckets: sizes by hand, batches of one shape, every pair as often as any other; and who is held out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scdpo_core.io.images import ImageError, covering, upright_size
from scdpo_core.preferences.buckets import BucketStream, _Rotation, bucket_sizes, nearest_size, sizes_of
from scdpo_core.preferences.split import hold_out
from scdpo_core.types import CachedPair, LabelledPair, PreferencePair, ScdpoError

CPU = torch.device("cpu")


def _labelled(number: int, prompt: str | None = None, category: str = "") -> LabelledPair:
    pair = PreferencePair(str(number), prompt or f"prompt {number}", Path("a"), Path("b"), category)
    return LabelledPair(pair, None, None, False, 1.0, 1.0, "")


def test_sizes_as_worked_by_hand() -> None:
    # 512 * 512 = 262144: 640 leaves 409.6, so 384; 768 leaves 341.3, so 320; 832 leaves 315.1, so 256, and
    # 832 / 256 = 3.25 is too long; 448 leaves 585.1, so 576 would be the longer side, which is found as 576:
    # 262144 / 576 = 455.1, so 448.
    wanted = {(512, 512), (576, 448), (640, 384), (704, 320), (768, 320)}
    assert set(bucket_sizes((512, 512), 64)) == wanted | {(height, width) for width, height in wanted}
    with pytest.raises(ScdpoError, match="lower --bucket-step"):
        bucket_sizes((32, 32), 64)


@given(st.integers(8, 40), st.integers(8, 40), st.sampled_from([8, 16, 64]))
def test_sizes_keep_to_the_pixels_and_the_step(width: int, height: int, step: int) -> None:
    area = (width * 32, height * 32)
    for own in bucket_sizes(area, step):
        assert own[0] * own[1] <= area[0] * area[1]
        assert own[0] % step == own[1] % step == 0


def test_the_nearest_size_looks_at_both_images() -> None:
    sizes = bucket_sizes((512, 512), 64)
    assert nearest_size([(1000, 1000)], sizes) == (512, 512)
    assert nearest_size([(3000, 2000)], sizes) == (640, 384)
    # 704 / 320 = 2.2 and 768 / 320 = 2.4.
    assert nearest_size([(2400, 1000)], sizes) == (768, 320)
    # One wide and one as high: on the whole, square.
    assert nearest_size([(2000, 1000), (1000, 2000)], sizes) == (512, 512)


def test_images_are_measured_upright_and_without_decoding(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "plain.png")
    assert upright_size(tmp_path / "turned.jpg") == (20, 40)
    assert upright_size(tmp_path / "plain.png") == (40, 20)
    (tmp_path / "no.png").write_text("hello", "utf-8")
    for name in ("no.png", "missing.png"):
        with pytest.raises(ImageError, match=name):
            upright_size(tmp_path / name)
    pair = PreferencePair("p", "", tmp_path / "plain.png", tmp_path / "plain.png")
    labelled = dataclasses.replace(_labelled(0), pair=pair)
    assert sizes_of([labelled], (32, 32), 8) == [(40, 24)]


def test_the_crop_of_a_image_as_worked_by_hand() -> None:
    # 1000 x 500 to cover 400 x 400: scaled by 0.8 to 800 x 400, and 200 cut off on either side.
    assert covering((1000, 500), (400, 400)) == (200, 0)
    assert covering((500, 1000), (400, 400)) == (0, 200)
    assert covering((800, 800), (400, 400)) == (0, 0)


def _stream(
    shapes: list[tuple[int, int]], batch_size: int, kinds: Sequence[bool] = (), **more: Any
) -> BucketStream:
    """Pair i is of that shape, and benign where `kinds` says so."""
    cached = [
        CachedPair(torch.full((2, 1, *shape), float(place)), torch.zeros(1, 1), None, str(place))
        for place, shape in enumerate(shapes)
    ]
    names = ["benign" if kind else "weapon" for kind in kinds] or [""] * len(shapes)
    labelled = [_labelled(place, category=name) for place, name in enumerate(names)]
    seed = more.pop("seed", 0)
    return BucketStream(cached, labelled, batch_size, seed, CPU, torch.float32, **more)


@given(st.lists(st.sampled_from([(2, 2), (2, 4), (4, 2)]), min_size=1, max_size=9), st.integers(1, 4))
def test_every_pair_is_dealt_as_often_as_any_other(shapes: list[tuple[int, int]], batch_size: int) -> None:
    stream = _stream(shapes, batch_size)
    dealt: Counter[int] = Counter()
    for step in range(2 * len(shapes)):
        own = stream.indices(step)
        assert len(own) == batch_size
        assert len({shapes[place] for place in own}) == 1
        batch = stream.batch(step)
        assert batch.latents[:, 0, 0, 0, 0].tolist() == own
        assert batch.prompts == tuple(f"prompt {place}" for place in own)
        dealt.update(own)
    # As many batches as pairs, twice: each pair batch_size times a round.
    assert set(dealt.values()) == {2 * batch_size}


SQUARE, WIDE, TALL = (2, 2), (2, 4), (4, 2)


def test_turns_as_worked_by_hand() -> None:
    # Weights 1/2, 1/3 and 1/6: three, two and one of six batches; squares once in two, wide ones in three.
    stream = _stream([SQUARE] * 3 + [WIDE] * 2 + [TALL], 1)
    turns = [stream._bucket(step)[0] for step in range(60)]
    assert all(turns[step : step + 2].count(0) == 1 for step in range(0, 60, 2))
    assert all(turns[step : step + 3].count(1) == 1 for step in range(0, 60, 3))
    number, before = stream._bucket(6 * 10**6)
    assert before == 10**6 * (3, 2, 1)[number]
    # Of shapes whose turn comes at once the seed decides which is first.
    firsts = {_stream([SQUARE, WIDE, TALL], 1, seed=seed)._bucket(0)[0] for seed in range(20)}
    assert firsts == {0, 1, 2}


def test_buckets_that_lack_a_kind_as_worked_by_hand() -> None:
    # Benign: two square ones. Others: two square ones and four wide ones. Half of all is asked for: squares
    # have 1/2 * 1 + 1/2 * 2/6 = 2/3 of the batches, of which (1/2) / (2/3) = 3/4 is benign.
    stream = _stream([SQUARE] * 4 + [WIDE] * 4, 4, [True, True] + [False] * 6, benign_share=0.5)
    dealt = [stream.indices(step) for step in range(12)]
    assert [max(batch) < 4 for batch in dealt].count(True) == 8
    assert all(sum(place < 2 for place in batch) == (3 if max(batch) < 4 else 0) for batch in dealt)
    counts = Counter(place for batch in dealt for place in batch)
    # 24 of 48 are benign: 12 each; and 24 of six others: 4 each.
    assert counts == {0: 12, 1: 12, **dict.fromkeys(range(2, 8), 4)}


def test_shapes_of_one_kind_each_take_turns() -> None:
    stream = _stream([SQUARE, WIDE, WIDE], 2, [True, False, False], benign_share=0.25)
    dealt = [tuple(sorted(stream.indices(step))) for step in range(8)]
    assert sorted(dealt) == [(0, 0)] * 2 + [(1, 2)] * 6


def test_a_kind_that_nobody_wants_is_never_dealt() -> None:
    for share, wanted in ((1.0, {0}), (0.0, {1, 2})):
        stream = _stream([SQUARE, WIDE, SQUARE], 2, [True, False, False], benign_share=share)
        assert {place for step in range(9) for place in stream.indices(step)} == wanted


def test_a_folder_without_a_kind_is_still_refused() -> None:
    for kinds, found in (([True] * 3, "3 of the 3"), ([False] * 3, "0 of the 3")):
        with pytest.raises(ScdpoError, match=rf"0\.25 benign pairs is asked for, but {found}"):
            _stream([SQUARE, WIDE, SQUARE], 2, kinds, benign_share=0.25)
    with pytest.raises(ScdpoError, match="No pairs are left"):
        _stream([], 2)


@st.composite
def folders(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[bool]]:
    """Pairs of both kinds in some shapes, some of which lack a kind."""
    pairs = draw(
        st.lists(st.tuples(st.sampled_from([SQUARE, WIDE, TALL]), st.booleans()), min_size=2, max_size=9)
    )
    pairs += [(draw(st.sampled_from([SQUARE, WIDE, TALL])), kind) for kind in (True, False)]
    return [shape for shape, _ in pairs], [kind for _, kind in pairs]


@settings(deadline=None)
@given(folders(), st.integers(1, 4), st.integers(0, 10), st.integers(0, 9))
def test_the_share_holds_over_all_batches_and_within_a_kind_all_are_equal(
    folder: tuple[list[tuple[int, int]], list[bool]], size: int, tenths: int, seed: int
) -> None:
    shapes, kinds = folder
    stream = _stream(shapes, size, kinds, benign_share=tenths / 10, seed=seed)
    benign, others = kinds.count(True), kinds.count(False)
    # After so many batches every part of it is whole.
    steps, seen = 10 * benign * others, Counter[int]()
    for step in range(steps):
        own = stream.indices(step)
        assert len(own) == size
        assert len({shapes[place] for place in own}) == 1
        seen.update(own)
        # A shape is at most one batch ahead or behind, and rounds within its own.
        wanted = (step + 1) * size * tenths / 10
        assert abs(sum(seen[place] for place, kind in enumerate(kinds) if kind) - wanted) < 3 * (size + 1)
    for place, kind in enumerate(kinds):
        slots = tenths if kind else 10 - tenths
        assert seen[place] * 10 * (benign if kind else others) == steps * size * slots


@settings(deadline=None)
@given(folders(), st.integers(1, 3), st.sampled_from([None, 0.0, 0.3, 0.5, 1.0]), st.integers(0, 9))
def test_a_team_and_a_resumed_run_deal_the_same(
    folder: tuple[list[tuple[int, int]], list[bool]], size: int, share: float | None, seed: int
) -> None:
    shapes, kinds = folder
    more: dict[str, Any] = {"benign_share": share, "seed": seed}
    alone = _stream(shapes, 2 * size, kinds, **more)
    batches = [alone.indices(step) for step in range(40)]
    team = [_stream(shapes, size, kinds, share=(rank, 2), **more) for rank in (0, 1)]
    assert [[*team[0].indices(step), *team[1].indices(step)] for step in range(40)] == batches
    assert [team[1].dealt(step) for step in range(40)] == batches
    resumed = _stream(shapes, 2 * size, kinds, **more)
    assert [resumed.indices(step) for step in range(23, 40)] == batches[23:]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=7).filter(any), st.integers(0, 9))
def test_no_shape_is_ever_a_whole_turn_ahead_or_behind(parts: list[int], seed: int) -> None:
    weights = [Fraction(part, sum(parts)) for part in parts]
    ranks = np.random.default_rng(seed).permutation(len(parts)).tolist()
    rotation, had = _Rotation(weights, ranks), [0] * len(parts)
    for step in range(2 * sum(parts)):
        number, before = rotation.turn(step)
        assert before == had[number]
        had[number] += 1
        assert all(abs(had[each] - (step + 1) * weight) < 1 for each, weight in enumerate(weights))


def test_any_batch_may_be_asked_for_at_any_time() -> None:
    shapes = [(2, 2), (2, 4), (2, 2), (4, 2), (2, 4)]
    one, two = _stream(shapes, 2), _stream(shapes, 2)
    forwards = [one.indices(step) for step in range(12)]
    assert [two.indices(step) for step in reversed(range(12))] == forwards[::-1]
    with pytest.raises(ValueError, match="count from 0"):
        one.indices(-1)


def test_sizes_travel_with_their_pairs() -> None:
    sizes = torch.arange(18).view(3, 6)
    batch = _stream([(2, 2), (2, 4), (2, 2)], 2, sizes=sizes).batch(0)
    own = [int(latents[0, 0, 0, 0]) for latents in batch.latents]
    assert batch.conditioning.sizes is not None
    assert torch.equal(batch.conditioning.sizes, sizes[own].float())


def test_who_is_held_out_depends_on_the_prompts_alone() -> None:
    pairs = [_labelled(number, f"prompt {number // 2}") for number in range(20)]
    trained, held = hold_out(pairs, 0.25)
    # Whole prompts of two pairs each, until a quarter of 20 is reached: three prompts.
    assert len(held) == 6
    assert sorted(trained + held) == list(range(20))
    prompts = {pairs[place].pair.prompt for place in held}
    assert prompts.isdisjoint(pairs[place].pair.prompt for place in trained)
    backwards = hold_out(pairs[::-1], 0.25)[1]
    assert {pairs[::-1][place].pair.prompt for place in backwards} == prompts
    # A pair more changes who is held out by one prompt at most.
    more = [*pairs, _labelled(99, "something new")]
    again = {more[place].pair.prompt for place in hold_out(more, 0.25)[1]}
    assert len(prompts - again) <= 1
    assert hold_out(pairs, 0.0) == (list(range(20)), [])
    assert len(hold_out(pairs, 0.001)[1]) == 2
    with pytest.raises(ScdpoError, match="leaves nothing to train on"):
        hold_out(pairs[:2], 0.5)
