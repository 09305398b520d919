"""Schedules, optimisers and the average of the LoRA: numbers by hand, and resuming to the same bytes."""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scdpo_core.config.settings import OptimSettings
from scdpo_core.training import checkpoint, optimizers
from scdpo_core.training.ema import Ema
from scdpo_core.training.optimizers import FALLS, OPTIMIZERS, build_optimizer, learning_rate, set_rate
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_sd_folder
from tests.training.test_loop import Bench

CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


def test_schedules_as_worked_by_hand() -> None:
    own: dict[str, Any] = {"max_train_steps": 10, "warmup": 0.2, "lr": 4.0}
    # Two steps of warm-up, then eight: at step 6 half of them are gone.
    power = OptimSettings(**own, schedule="polynomial", schedule_power=3.0)
    assert learning_rate(6, power) == pytest.approx(4 * 0.5**3)
    assert learning_rate(2, power) == 4.0
    # Two cycles of four steps: the second begins at step 6, at the top.
    again = OptimSettings(**own, schedule="restarts", schedule_cycles=2)
    assert [learning_rate(step, again) for step in (2, 4, 6, 8)] == pytest.approx([4, 2, 4, 2])
    assert learning_rate(9, again) == pytest.approx(2 * (1 + math.cos(0.75 * math.pi)))


@pytest.mark.parametrize("schedule", FALLS)
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.99])
def test_no_step_is_without_a_rate_and_none_above_the_highest(schedule: Any, warmup: float) -> None:
    own = OptimSettings(max_train_steps=7, warmup=warmup, schedule=schedule, lr=0.5)
    rates = [learning_rate(step, own) for step in range(7)]
    assert all(0 < rate <= 0.5 for rate in rates)


def test_the_average_as_worked_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([10.0]))
    ema = Ema([weight], 0.5)
    for value in (20.0, 30.0):
        weight.data.fill_(value)
        ema.update()
    # d = min(0.5, 1/10) = 0.1: 0.1 * 10 + 0.9 * 20 = 19; then d = 2/11: 2/11 * 19 + 9/11 * 30 = 28.
    with ema.applied():
        assert weight.item() == pytest.approx(28.0)
    assert weight.item() == 30.0
    with pytest.raises(ValueError, match="other weights"):
        Ema([nn.Parameter(torch.zeros(2))], 0.5).load_state(ema.state())


def test_the_average_is_what_is_drawn_and_the_weights_go_on(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path, max_train_steps=3, ema=0.9, sample_every=2)
    drawn: list[dict[str, bytes]] = []
    trainer = bench.trainer(on_sample=lambda _: drawn.append(bench.weights()))
    trainer.run()
    plain = Bench(base, tmp_path / "plain", max_train_steps=3, sample_every=2)
    plain.trainer(on_sample=lambda _: drawn.append(plain.weights())).run()
    assert drawn[0] != drawn[1]
    assert bench.weights() == plain.weights()
    with trainer.averaged():
        assert bench.weights() != plain.weights()


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adamw", "ema": 0.9, "schedule": "restarts"},
        {"optimizer": "prodigy", "lr": 1.0},
        {"optimizer": "adafactor"},
        # A rank that makes every weight of the tiny LoRA large enough to be kept in 8 bits.
        pytest.param(
            {"optimizer": "adamw8bit", "rank": 256},
            marks=pytest.mark.skipif(
                find_spec("bitsandbytes") is None, reason="only the extra adam8bit has bitsandbytes"
            ),
        ),
    ],
    ids=lambda change: change["optimizer"],
)
def test_every_optimizer_resumes_to_the_same_bytes(
    base: Path, tmp_path: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"max_train_steps": 6, **change}
    whole = Bench(base, tmp_path / "whole", **options)
    before = whole.weights()
    whole.trainer().run()
    assert whole.weights() != before
    first = Bench(base, tmp_path / "parts", **options)
    first.trainer(stop_at=3).run()
    second = Bench(base, tmp_path / "parts", **options)
    state, _ = checkpoint.latest(second.folder)
    assert state is not None and state.step == 3
    trainer = second.trainer()
    trainer.resume(state)
    trainer.run()
    paths = [checkpoint.path_of(bench.folder, 6) for bench in (whole, second)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    # The core prints nothing, and nobody in it.
    assert capsys.readouterr().out == ""


def test_what_cannot_be_had_is_said(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Bench(base, tmp_path).adapter
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ScdpoError, match=r"bitsandbytes.*\[adam8bit\]"):
        build_optimizer(adapter, OptimSettings(optimizer="adamw8bit"), torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(ScdpoError, match=r"prodigyopt.*\[prodigy\]"):
        build_optimizer(adapter, OptimSettings(optimizer="prodigy", lr=1.0), CPU)
    with pytest.raises(ScdpoError, match=r"no optimiser 'sgd'.*adamw, adamw8bit, prodigy, adafactor"):
        build_optimizer(adapter, OptimSettings(optimizer="sgd"), CPU)  # type: ignore[arg-type]
    assert set(OPTIMIZERS) == {"adamw", "adamw8bit", "prodigy", "adafactor"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (OptimSettings(optimizer="prodigy"), "give --lr 1"),
        (OptimSettings(optimizer="prodigy", lr=1.0, text_lr=0.5), "one rate for all"),
    ],
)
def test_figures_that_an_optimizer_would_not_take(settings: OptimSettings, sentence: str) -> None:
    assert sentence in "".join(optimizers.invalid(settings))
    assert not list(optimizers.invalid(OptimSettings()))
    assert not list(optimizers.invalid(OptimSettings(optimizer="prodigy", lr=1.0)))


def test_adafactor_moves_weights_that_start_at_zero_by_the_rate(base: Path, tmp_path: Path) -> None:
    adapter = Bench(base, tmp_path).adapter
    up = adapter.parameters()[1]
    assert not bool(up.any())
    optimizer = build_optimizer(adapter, OptimSettings(optimizer="adafactor", weight_decay=0.0), CPU)
    set_rate(optimizer, 0.01)
    up.grad = torch.full_like(up, 3.0)
    optimizer.step()
    # An even gradient is the same everywhere once it is divided by its own size: minus the rate.
    torch.testing.assert_close(up.detach(), torch.full_like(up, -0.01))
