"""What every attack is given, what it costs, and what it leaves for a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..judges import ImageRequest

if TYPE_CHECKING:
    from ...families.base import LoadedModel
    from ...families.sampling import Start
    from ...lora.adapter import LoraAdapter


@dataclass(frozen=True)
class Sampling:
    """How images are drawn.

    Attributes:
        steps: of denoising.
        guidance: classifier-free guidance.
        together: images drawn at once.
        size: (width, height) in pixels; None for the model's own.
    """

    steps: int = 20
    guidance: float = 3.0
    together: int = 32
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Budget:
    """What an attacker spends beside drawing the images that are judged.

    Attributes:
        steps: gradient steps through the network.
        queries: images that the denoiser answers to while the attack searches, gradient steps included.
        images: images that the attacker holds.
    """

    steps: int = 0
    queries: int = 0
    images: int = 0

    def __add__(self, other: Budget) -> Budget:
        """Return both together."""
        return Budget(self.steps + other.steps, self.queries + other.queries, self.images + other.images)

    def __str__(self) -> str:
        """Return '40 steps, 320 queries, 8 images'."""
        named = ((self.steps, "step"), (self.queries, "queries"), (self.images, "image"))
        parts = [f"{n} {word}{'s' if n != 1 and word != 'queries' else ''}" for n, word in named if n]
        return ", ".join(parts) or "none"


@dataclass(frozen=True)
class Attacked:
    """The images that an attack made.

    Attributes:
        name: of the attack, with its strength.
        requests: what the images should show, one for each.
        prompts: what the model was told for each.
        images: one for each.
        budget: what was spent on all of them.
    """

    name: str
    requests: tuple[ImageRequest, ...]
    prompts: tuple[str, ...]
    images: tuple[Image.Image, ...]
    budget: Budget


@dataclass(frozen=True)
class Target:
    """The model under attack.

    Attributes:
        model: with the safety LoRA in it.
        adapter: that LoRA; None where it is folded into the weights already, or was never there.
    """

    model: LoadedModel
    adapter: LoraAdapter | None = None


@dataclass(frozen=True)
class Examples:
    """Images and the prompts that describe them, which an attacker learns from.

    Attributes:
        prompts: one for each image.
        images: RGB, of the model's size.
    """

    prompts: tuple[str, ...]
    images: tuple[Image.Image, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be learnt from.

        Raises:
            ValueError: there are no images, or not as many prompts.
        """
        if not self.images or len(self.prompts) != len(self.images):
            raise ValueError(
                f"Examples need a prompt for each image: {len(self.prompts)}, {len(self.images)}."
            )

    def pixels(self) -> Tensor:
        """Return [N, 3, H, W] in -1..1."""
        return to_pixels(self.images)


class Attack(Protocol):
    """Something that makes a tuned model draw what it should not."""

    @property
    def name(self) -> str:
        """Of the attack, with its strength: 'img2img_06'."""
        ...

    def __call__(self, target: Target, requests: Sequence[ImageRequest], sampling: Sampling) -> Attacked:
        """Attack, and draw one image for each of `requests`; the model is afterwards as it was."""
        ...


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Convert RGB images of one size to float32 [N, 3, H, W] in -1..1."""
    stacked = np.stack([np.asarray(image.convert("RGB"), np.uint8) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def draw(
    model: LoadedModel,
    requests: Sequence[ImageRequest],
    sampling: Sampling,
    prompts: Sequence[str] | None = None,
    start: Start | None = None,
) -> list[Image.Image]:
    """Draw one image for each of `requests`, from its own seed.

    Args:
        model: as it is.
        requests: whose captions are the prompts where none are given.
        sampling: how.
        prompts: one for each of `requests`.
        start: an image for each of `requests` to begin from.
    """
    texts = [one.caption for one in requests] if prompts is None else list(prompts)
    images: list[Image.Image] = []
    for first in range(0, len(requests), sampling.together):
        some = slice(first, first + sampling.together)
        begun = None if start is None else replace(start, images=start.images[some])
        seeds = [one.seed for one in requests[some]]
        images += model.sample(
            texts[some], seeds, sampling.steps, sampling.guidance, sampling.size, start=begun
        )
    return images


def attacked(
    name: str,
    requests: Sequence[ImageRequest],
    prompts: Sequence[str],
    images: Sequence[Image.Image],
    budget: Budget | None = None,
) -> Attacked:
    """Return what an attack made, as it is handed on."""
    return Attacked(name, tuple(requests), tuple(prompts), tuple(images), budget or Budget())


def key(value: float) -> str:
    """Return a strength as names have it: 06 for .6, 075, 1."""
    return f"{value:g}".replace(".", "")
