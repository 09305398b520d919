"""Attacks that need no gradients: other words, other sampling, a weaker LoRA, an image to begin from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from ..judges import ImageRequest
from .base import Attacked, Budget, Sampling, Target, attacked, draw, key, to_pixels


@dataclass(frozen=True)
class Plain:
    """No attack at all: what the others are compared with."""

    name: str = "none"

    def __call__(self, target: Target, requests: Sequence[ImageRequest], sampling: Sampling) -> Attacked:
        """See `Attack`."""
        prompts = [one.caption for one in requests]
        return attacked(self.name, requests, prompts, draw(target.model, requests, sampling))


@dataclass(frozen=True)
class Img2Img:
    """Begin from a noised harmful image (Meng et al. 2022, "SDEdit").

    Attributes:
        images: one for each requested prompt.
        strength: share of the denoising steps that is taken.
    """

    images: tuple[Image.Image, ...]
    strength: float

    @property
    def name(self) -> str:
        """See `Attack`."""
        return f"img2img_{key(self.strength)}"

    def __call__(self, target: Target, requests: Sequence[ImageRequest], sampling: Sampling) -> Attacked:
        """See `Attack`."""
        from ...families.sampling import Start

        if len(self.images) != len(requests):
            raise ValueError(f"img2img has {len(self.images)} images for {len(requests)} prompts.")
        start = Start(to_pixels(self.images), self.strength)
        images = draw(target.model, requests, sampling, start=start)
        prompts = [one.caption for one in requests]
        return attacked(self.name, requests, prompts, images, Budget(images=len(self.images)))


@dataclass(frozen=True)
class LoraWeight:
    """Draw with the safety LoRA at another strength than the one it was trained for."""

    weight: float

    @property
    def name(self) -> str:
        """See `Attack`."""
        return f"weight_{key(self.weight)}"

    def __call__(self, target: Target, requests: Sequence[ImageRequest], sampling: Sampling) -> Attacked:
        """See `Attack`.

        Raises:
            ValueError: the target has no LoRA.
        """
        if target.adapter is None:
            raise ValueError("A LoRA that is folded into the weights has no strength.")
        with target.adapter.scale(self.weight):
            images = draw(target.model, requests, sampling)
        return attacked(self.name, requests, [one.caption for one in requests], images)


@dataclass(frozen=True)
class OtherSampling:
    """Draw with another guidance or another number of steps."""

    guidance: float | None = None
    steps: int | None = None

    @property
    def name(self) -> str:
        """See `Attack`."""
        parts = [] if self.guidance is None else [f"guidance_{key(self.guidance)}"]
        return "_".join([*parts, *([] if self.steps is None else [f"steps_{self.steps}"])])

    def __call__(self, target: Target, requests: Sequence[ImageRequest], sampling: Sampling) -> Attacked:
        """See `Attack`."""
        changed = replace(
            sampling,
            guidance=sampling.guidance if self.guidance is None else self.guidance,
            steps=sampling.steps if self.steps is None else self.steps,
        )
        prompts = [one.caption for one in requests]
        return attacked(self.name, requests, prompts, draw(target.model, requests, changed))


@dataclass(frozen=True)
class AppendedWords:
    """Append benign words, each prompt the next of a list."""

    words: tuple[str, ...]
    name: str = "appended"

    def __call__(self, target: Target, requests: Sequence[ImageRequest], sampling: Sampling) -> Attacked:
        """See `Attack`."""
        prompts = [f"{one.caption}{self.words[k % len(self.words)]}" for k, one in enumerate(requests)]
        return attacked(self.name, requests, prompts, draw(target.model, requests, sampling, prompts))


@dataclass(frozen=True)
class Synonyms:
    """Call things by other words.

    Attributes:
        words: what a thing is called -> what else it is called; each prompt takes the next.
    """

    words: Mapping[str, Sequence[str]]
    name: str = "synonyms"

    def __call__(self, target: Target, requests: Sequence[ImageRequest], sampling: Sampling) -> Attacked:
        """See `Attack`."""
        prompts = [self._other(one.caption, number) for number, one in enumerate(requests)]
        return attacked(self.name, requests, prompts, draw(target.model, requests, sampling, prompts))

    def _other(self, prompt: str, number: int) -> str:
        for word, others in self.words.items():
            if others and names_word(prompt, word):
                return with_word(prompt, word, others[number % len(others)])
        return prompt


def names_word(prompt: str, word: str) -> bool:
    """Return whether a prompt has a word, or several together, as a whole."""
    return re.search(rf"\b{re.escape(word)}\b", prompt) is not None


def with_word(prompt: str, word: str, other: str) -> str:
    """Return the prompt with a word, or several, replaced as a whole; 'a' and 'an' before it follow."""
    article = "an" if other[:1].lower() in "aeiou" else "a"

    def put(match: re.Match[str]) -> str:
        return f"{article} {other}" if match[1] else other

    return re.sub(rf"\b((?:an?)\s+)?{re.escape(word)}\b", put, prompt)
