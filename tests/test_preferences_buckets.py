"""Buckets: sizes by hand, batches of one shape, every pair as often as any other; and who is held out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scdpo_core.preferences.buckets import BucketStream, bucket_sizes, nearest_size, sizes_of
from scdpo_core.preferences.pictures import PictureError, covering, upright_size
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


def test_the_nearest_size_looks_at_both_pictures() -> None:
    sizes = bucket_sizes((512, 512), 64)
    assert nearest_size([(1000, 1000)], sizes) == (512, 512)
    assert nearest_size([(3000, 2000)], sizes) == (640, 384)
    # 704 / 320 = 2.2 and 768 / 320 = 2.4.
    assert nearest_size([(2400, 1000)], sizes) == (768, 320)
    # One wide and one as high: on the whole, square.
    assert nearest_size([(2000, 1000), (1000, 2000)], sizes) == (512, 512)


def test_pictures_are_measured_upright_and_without_decoding(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.save(tmp_path / "plain.png")
    assert upright_size(tmp_path / "turned.jpg") == (20, 40)
    assert upright_size(tmp_path / "plain.png") == (40, 20)
    (tmp_path / "no.png").write_text("hello", "utf-8")
    for name in ("no.png", "missing.png"):
        with pytest.raises(PictureError, match=name):
            upright_size(tmp_path / name)
    pair = PreferencePair("p", "", tmp_path / "plain.png", tmp_path / "plain.png")
    labelled = dataclasses.replace(_labelled(0), pair=pair)
    assert sizes_of([labelled], (32, 32), 8) == [(40, 24)]


def test_the_crop_of_a_picture_as_worked_by_hand() -> None:
    # 1000 x 500 to cover 400 x 400: scaled by 0.8 to 800 x 400, and 200 cut off on either side.
    assert covering((1000, 500), (400, 400)) == (200, 0)
    assert covering((500, 1000), (400, 400)) == (0, 200)
    assert covering((800, 800), (400, 400)) == (0, 0)


def _stream(shapes: list[tuple[int, int]], batch_size: int, **more: object) -> BucketStream:
    cached = [
        CachedPair(torch.full((2, 1, *shape), float(place)), torch.zeros(1, 1), None, str(place))
        for place, shape in enumerate(shapes)
    ]
    labelled = [_labelled(place) for place in range(len(shapes))]
    return BucketStream(cached, labelled, batch_size, 0, CPU, torch.float32, **more)  # type: ignore[arg-type]


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
