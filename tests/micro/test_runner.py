"""The loop that every part of the embedded model is trained by."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scdpo_core.types import ScdpoError
from tools.micro_model.training_loop import Plan, StepContext, train

PLAN = Plan("line", steps=12, lr=0.1, ema=0.9, seed=3)
CPU = torch.device("cpu")


def learn(folder: Path, plan: Plan = PLAN, stop_at: int | None = None) -> list[float]:
    """Weights of a line after training; with `stop_at` the process 'dies' in that step."""
    torch.manual_seed(0)
    line = nn.Linear(2, 1)

    def loss(context: StepContext) -> Tensor:
        if context.step == stop_at:
            raise KeyboardInterrupt
        points = torch.randn(8, 2, generator=context.generator)
        return (line(points) - points.sum(1, keepdim=True)).square().mean()

    trained = train(plan, line, loss, folder, CPU, lambda _: None, checkpoint_every=5)
    return [float(value) for weight in trained.parameters() for value in weight.flatten()]


def test_a_build_that_was_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = learn(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "parts", stop_at=7)
    assert learn(tmp_path / "parts") == whole
    assert whole[0] != 0.0 and learn(tmp_path / "other", dataclasses.replace(PLAN, seed=4)) != whole


@pytest.mark.parametrize("change", [{"seed": 4}, {"lr": 0.2}, {"steps": 20}])
def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path: Path, change: dict[str, float]) -> None:
    learn(tmp_path)
    with pytest.raises(ScdpoError, match=r"line\.state\.safetensors is from a build with other settings"):
        learn(tmp_path, dataclasses.replace(PLAN, **change))
