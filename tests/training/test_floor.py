"""What a step does beyond the network's own passes, counted in operations, which no busy machine changes."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.matrix import handed_out, images_computed
from benchmarks.step import CACHED, FLOOR, FLOOR_REFERENCE, NO_TEXT, OURS, OWN_FLOOR, REDIRECT, build

OPTIONS = {
    "shape": "small", "size": 64, "batch_size": 1, "rank": 4, "device": "cpu", "precision": "fp32",
    "channels_last": "auto", "compile": "off", "peer": "adapter-off", "external": None,
}  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_hands_out_next_to_nothing_beyond_the_floor(tmp_path: Path, checkpointing: bool) -> None:
    _, _, variants, _ = build(Namespace(**OPTIONS, gradient_checkpointing=checkpointing), tmp_path)
    calls = {kind: handed_out(variants[kind].step) for kind in (FLOOR, FLOOR_REFERENCE, OURS, CACHED)}
    # Noise, the loss and its figures, the norm and the optimizer.
    assert 0 < calls[OURS] - calls[FLOOR_REFERENCE] < 320
    assert 0 < calls[CACHED] - calls[FLOOR] < 320
    # Checkpointing computes the blocks' forward pass once more, in ours no more often than in the floor.
    assert calls[OURS] < 1.05 * calls[FLOOR_REFERENCE]
    assert calls[CACHED] < 1.05 * calls[FLOOR]


def test_a_step_of_redirect_and_keep_computes_its_images_and_next_to_nothing_else(tmp_path: Path) -> None:
    options = Namespace(**{**OPTIONS, "batch_size": 4}, gradient_checkpointing=False)
    model, _, variants, _ = build(options, tmp_path)
    images = {kind: images_computed(one.step, model.denoiser) for kind, one in variants.items()}
    assert images[OURS] == (8, 8) and images[CACHED] == (8, 0)
    # Two harmful and two benign pairs: 4 images for the policy, 2 of them for the reference too. To both, one
    # under the empty prompt (a quarter a pair) and three that the base model drew (three quarters a pair).
    assert images[REDIRECT] == images[OWN_FLOOR[REDIRECT]] == (8, 6)
    assert images[NO_TEXT] == images[OWN_FLOOR[NO_TEXT]] == (5, 3)
    for kind, floor in OWN_FLOOR.items():
        calls, least = (handed_out(variants[name].step) for name in (kind, floor))
        assert 0 < calls - least < 320 and calls < 1.05 * least


def test_redirect_and_keep_is_left_out_where_its_images_differ_from_step_to_step(tmp_path: Path) -> None:
    _, _, variants, _ = build(Namespace(**OPTIONS, gradient_checkpointing=False), tmp_path)
    assert not {REDIRECT, NO_TEXT} & variants.keys()
