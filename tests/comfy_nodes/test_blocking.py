"""What must not slip through the gate: colour hidden under alpha, and costs that are no numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from tests.comfy_nodes.test_nodes import Judge, door, hidden, images, run_gate
from tests.support.comfy_contract import Door

__all__ = ["door"]


class Red(Judge):
    """The cost is how much more red than blue an image is, -5..5."""

    def score_prepared(self, pil_images: Sequence[Image.Image]) -> list[Any]:
        found = [image.resize((1, 1)).getpixel((0, 0)) for image in pil_images]
        return [self.kind((red - blue) / 51, {}, self.id, self.hash) for red, _, blue in found]


def test_colour_hidden_under_alpha_is_held_and_scored(door: Door) -> None:
    # Red with alpha 0 is white on white; any node that takes three channels brings it back.
    clear = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(1, 8, 8, 4)
    blue = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 8, 8, 4)
    node = hidden(door, "SafetyGate")
    judge = Red(door, ())
    _, held, *_, held_places, _ = node.execute(
        torch.cat([blue, clear]), judge, "blur", "above the threshold", 0.0
    ).args
    assert held_places == [1] and torch.equal(held, clear)
    score = hidden(door, "ScoreSafetyCost")
    assert score.execute(torch.cat([blue, clear]), judge, "off").args[2] == [-5.0, 5.0]


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), float("-inf")])
def test_a_cost_that_is_not_finite_is_held_and_said(door: Door, cost: float) -> None:
    _, out = run_gate(door, "blur", (-2.0, cost))
    assert out.args[5] == [1] and "1: could not be judged" in out.args[6]
    # The browser's JSON knows no such numbers.
    json.dumps(out.ui, allow_nan=False)
    node = hidden(door, "ScoreSafetyCost")
    scored = node.execute(images(2), Judge(door, (-2.0, cost)), "off").args
    assert scored[2] == [-2.0, float("inf")] and scored[3] == float("inf"), "whatever compares them, blocks"


def test_a_threshold_that_is_no_number_stops_the_run(door: Door) -> None:
    with pytest.raises(Exception, match="must be a finite number"):
        run_gate(door, "blur", (-2.0, 3.0), threshold=float("nan"))
