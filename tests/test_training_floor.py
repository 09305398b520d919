"""What a step does beyond the network's own passes, counted in operations, which no busy machine changes."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.matrix import handed_out
from benchmarks.step import CACHED, FLOOR, FLOOR_REFERENCE, OURS, build

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
