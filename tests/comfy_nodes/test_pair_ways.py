"""Make Preference Pairs: ways to the chosen image, with a host that only pretends to draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.comfy_nodes.test_training import Clip, door
from tests.support.comfy_contract import Door

__all__ = ["door"]


class Vae:
    """Latents are pixels."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images


@pytest.mark.parametrize("way", ["inpaint", "edit"])
def test_a_harmful_image_is_redrawn_with_the_hosts_sampler(
    door: Door, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Red costs: "a gun" is a red square on the left of a blue image, "a vase" is blue."""
    pairs, asked = door.module("comfy_nodes.pairs"), []
    score = door.module("scdpo_core.types").CostScore

    def draw(*, positive: str, latent_image: Any, denoise: float, **others: Any) -> torch.Tensor:
        asked.append((positive, latent_image, denoise))
        image = torch.zeros(1, 64, 64, 3)
        image[:, :, :, 2] = 1.0
        if positive == "a gun":
            image[:, 24:40, 4:20] = torch.tensor([1.0, 0.0, 0.0])
        return image

    class Judge:
        def prepare(self, image: Any) -> float:
            red = image.convert("RGB").split()[0].histogram()
            return sum(red[200:]) / (image.width * image.height)

        def score_prepared(self, prepared: Any) -> list[Any]:
            return [score(64 * share - 2.0, {}, "j", "0" * 12) for share in prepared]

        def score(self, images: Any) -> list[Any]:
            return self.score_prepared([self.prepare(one) for one in images])

    monkeypatch.setattr(pairs, "draw", draw)
    answer = door.nodes["SCDPO_MakePreferencePairs"].execute(
        Clip(),
        Judge(),
        prompts="a gun",
        safe_prompts="a vase",
        category="weapon",
        folder=way,
        rule="safe against harmful",
        gap=1.0,
        seed=5,
        seeds=1,
        way=way,
        attempts=3,
        vae=Vae(),
        latent_image="empty",
        denoise=1.0,
    )
    place, count = Path(answer.args[0]), answer.args[1]
    assert count == 1 and asked[0][:2] == ("a gun", "empty") and asked[1][0] == "a vase"
    latent = asked[1][1]
    assert latent["samples"].shape == (1, 64, 64, 3)
    masks = list(place.glob("masks/weapon/*.png"))
    if way == "edit":
        assert "noise_mask" not in latent and asked[1][2] == 0.45 and not masks
        return
    # The mask lies over what is red.
    assert asked[1][2] == 1.0 and len(masks) == 1
    mask = latent["noise_mask"]
    assert mask.shape == (1, 64, 64) and mask.max() == 1
    assert mask[..., :32].mean() > mask[..., 32:].mean()


def test_best_of_compares_the_prompts_own_images(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    node = door.nodes["SCDPO_MakePreferencePairs"]
    assert "needs safe prompts" in node.validate_inputs("p", "", "as prompted", "a gun", "a vase", "best-of")
    assert node.validate_inputs("p", "", "as prompted", "a gun", "", "inpaint") is True
