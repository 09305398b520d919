"""The region that is drawn anew: growth and soft edges, and what a blend leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scdpo_core.cost.heatmap import Heatmap
from scdpo_core.pairs.region import FIRST, MORE, Mask, Region, blend, feather, grow, hot, to_image, union


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    cells = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    return np.array(cells, np.float32).reshape(height, width)


def test_a_dot_grows_into_a_square() -> None:
    mask = np.zeros((5, 6), np.float32)
    mask[1, 2] = 1
    assert grow(mask, 1).tolist() == [
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_an_edge_falls_off_over_three_pixels() -> None:
    mask = np.zeros((1, 8), np.float32)
    mask[0, 0] = 1
    # Grown by one: 1 1 0 0 ...; the mean of three, of which the first place has but two.
    assert feather(mask, 1)[0] == pytest.approx([1, 2 / 3, 1 / 3, 0, 0, 0, 0, 0])


@given(masks(), st.integers(0, 5), st.integers(0, 5))
def test_growth_adds_up_and_never_shrinks(mask: Mask, first: int, second: int) -> None:
    once, twice = grow(mask, first + second), grow(grow(mask, first), second)
    assert np.array_equal(once, twice)
    assert (once >= mask).all() and set(np.unique(once)) <= {0.0, 1.0}
    assert once.any() == mask.any()


@given(masks(), masks(), st.integers(0, 4))
def test_what_holds_more_grows_into_more(mask: Mask, other: Mask, pixels: int) -> None:
    if mask.shape == other.shape:
        both = union(mask, other)
        assert np.array_equal(grow(both, pixels), union(grow(mask, pixels), grow(other, pixels)))


@given(masks(), st.integers(0, 4))
def test_a_soft_edge_lies_outside_and_ends(mask: Mask, pixels: int) -> None:
    soft = feather(mask, pixels)
    assert soft.shape == mask.shape and soft.dtype == np.float32
    assert (soft[mask == 1] == 1).all()
    assert ((soft >= 0) & (soft <= 1)).all()
    assert not soft[grow(mask, 2 * pixels) == 0].any()


@given(st.integers(0, 6))
def test_each_try_redraws_more(tries: int) -> None:
    core = np.zeros((64, 48), np.float32)
    core[30:34, 20:24] = 1
    now, then = Region(core, tries).mask, Region(core, tries + 1).mask
    assert (then >= now).all() and then.sum() > now.sum()
    reach = round((FIRST + MORE * tries) * 64)
    assert now[30 - reach, 22] == 1 and now[max(0, 30 - reach - 5), 22] < 1


def test_the_hottest_places_are_the_region() -> None:
    heat = torch.zeros(8, 8)
    heat[2:4, 2:4] = 2.0
    heat[6, 6] = 0.1
    found = hot(Heatmap(heat, (8, 8), 3.0, "occlusion"))
    assert found[2:4, 2:4].all() and not found[6, 6] and found.shape == (8, 8)


def test_where_nothing_stands_out_all_is_the_region() -> None:
    assert hot(Heatmap(torch.zeros(4, 4), (6, 5), 3.0, "occlusion")).tolist() == np.ones((5, 6)).tolist()


def test_what_is_not_masked_stays_the_same_to_the_byte() -> None:
    dice = np.random.default_rng(0)
    old, new = (Image.fromarray(dice.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(2))
    mask = np.zeros((16, 16), np.float32)
    mask[4:8, 4:8] = 1
    made = np.asarray(blend(old, new, mask))
    assert np.array_equal(made[4:8, 4:8], np.asarray(new)[4:8, 4:8])
    outside = mask == 0
    assert np.array_equal(made[outside], np.asarray(old)[outside])
    assert to_image(mask).mode == "L" and to_image(mask).size == (16, 16)
