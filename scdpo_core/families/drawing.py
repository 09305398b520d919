"""What a sampler asks a denoiser, and hearing how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]
"""Noisy latents [N, C, h, w] and timesteps [N] in, the network's answer out, guidance included."""
Heard = Callable[[int, int], None]
"""Is told how many pictures of how many are drawn; may raise to end the work."""


def followed(predict: Predict, heard: Heard, earlier: int, own: int, total: int, steps: int) -> Predict:
    """The same answers, and before each of them word of how far the drawing is.

    Args:
        predict: asked once for each of `steps`.
        heard: gets the word.
        earlier: pictures that were drawn before these.
        own: pictures that are drawn together here.
        total: pictures in all.
        steps: denoising steps.
    """
    asked = 0

    def answer(latents: Tensor, timesteps: Tensor) -> Tensor:
        nonlocal asked
        # Where memory ran out, the steps are taken once more.
        heard(earlier + own * min(asked, steps) // steps, total)
        asked += 1
        return predict(latents, timesteps)

    return answer


def in_groups(count: int, most: int) -> Sequence[slice]:
    """Slices of at most `most` that cover `count` things in order."""
    return [slice(first, min(first + most, count)) for first in range(0, count, most)]
