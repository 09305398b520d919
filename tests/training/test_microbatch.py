"""The small parts of a training job: sentences for errors, devices, samples, curves, the meter."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from scdpo_core.errors import explain, sentence_of
from scdpo_core.run_store.events import Progress, Record, Validated
from scdpo_core.training import checks
from scdpo_core.training.plots import draw_curves, series
from scdpo_core.training.running_metrics import Meter
from scdpo_core.training.samples import choose_prompts, preview
from scdpo_core.types import PreferencePair, ScdpoError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ScdpoError("as it is"), "as it is"),
        (OSError(errno.ENOSPC, "x"), "disk is full"),
        (
            PermissionError(errno.EACCES, "Permission denied", "some/file"),
            r"\(some/file\): Permission denied",
        ),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "--vae-tiling"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "--vae-tiling"),
        (KeyboardInterrupt(), "--resume"),
    ],
)
def test_errors_that_an_artist_can_mend_become_sentences(error: BaseException, words: str) -> None:
    with pytest.raises(ScdpoError, match=words):
        raise ScdpoError(sentence_of(error) if isinstance(error, Exception) else explain(error))
    assert explain(ValueError("ours")) is None
    with pytest.raises(ValueError, match="ours"):
        sentence_of(ValueError("ours"))


def test_devices_and_precisions_that_are_not_there_are_explained() -> None:
    assert checks.resolve_device("cpu") == torch.device("cpu")
    for name in ("cuda:99", "tpu9", "meta9"):
        with pytest.raises(ScdpoError, match=name):
            checks.resolve_device(name)
    cpu = torch.device("cpu")
    assert checks.resolve_dtype("auto", cpu) == torch.float32
    assert checks.resolve_dtype("bf16", cpu) == torch.bfloat16
    with pytest.raises(ScdpoError, match="fp16 needs a GPU"):
        checks.resolve_dtype("fp16", cpu)


def test_sample_prompts_are_spread_over_harm_and_benign() -> None:
    def pair(number: int, category: str) -> PreferencePair:
        return PreferencePair(str(number), f"{category} {number}", Path("a"), Path("b"), category)

    pairs = [pair(number, "benign" if number >= 10 else "weapon") for number in range(20)]
    assert choose_prompts(pairs, 4) == ["weapon 0", "weapon 5", "benign 10", "benign 15"]
    assert choose_prompts(pairs[:10], 4) == ["weapon 0", "weapon 2", "weapon 5", "weapon 7"]
    assert choose_prompts(pairs[10:], 2) == ["benign 10", "benign 15"]
    assert choose_prompts(pairs[:1] * 5, 4) == ["weapon 0"]
    assert choose_prompts(pairs, 0) == []


def test_the_preview_is_a_grid() -> None:
    images = [Image.new("RGB", (4, 2), (number, 0, 0)) for number in range(3)]
    grid = preview(images)
    assert grid is not None
    assert grid.size == (512, 256)  # 8 x 4, enlarged for a card
    assert [grid.getpixel(at) for at in ((0, 0), (256, 0), (0, 128), (256, 128))] == [
        (n, 0, 0) for n in (0, 1, 2, 0)
    ]
    assert preview([]) is None


def test_curves_need_figures(tmp_path: Path) -> None:
    assert not draw_curves([], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_the_meter_averages_and_forgets() -> None:
    meter = Meter(torch.device("cpu"))
    assert meter.take() == {}
    for value in (1.0, 2.0, 6.0):
        meter.add("a", torch.tensor(value))
    meter.add("b", torch.tensor(math.inf))
    meter.add_known("c", torch.tensor([math.nan, 3.0]))
    meter.add_known("c", torch.tensor([5.0, math.nan]))
    meter.add_known("d", torch.tensor([math.nan]))
    assert meter.take() == {"a": 3.0, "b": None, "c": 4.0, "d": None}
    assert meter.take() == {}


def test_curves_tell_held_out_pairs_from_trained_ones(tmp_path: Path) -> None:
    records = [
        Record(0.0, Progress("train", 2, 4, {"loss": 0.7, "winner_gap": 0.1})),
        Record(0.0, Validated(2, 3, {"winner_gap": 0.2, "accuracy": None})),
        Record(0.0, Progress("sample", 1, 1, {"loss": 9.0})),
        Record(0.0, Validated(4, 3, {"winner_gap": 0.3})),
    ]
    assert series(records) == {
        "loss": [(2, 0.7)],
        "winner_gap": [(2, 0.1)],
        "held_out_winner_gap": [(2, 0.2), (4, 0.3)],
    }
    assert draw_curves(records, tmp_path / "curves.png")
