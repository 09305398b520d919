"""What a sampler asks a denoiser, and hearing how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Noisy latents [N, C, h, w] and timesteps [N] in, the network's answer out, guidance included."""
ProgressFn = Callable[[int, int], None]
"""Is told how many images of how many are drawn; may raise to end the work."""

AT_ONCE = 32
"""Images, and prompts, that are computed together at most."""
_PIXELS_AT_ONCE = 2 * 512 * 512


@dataclass(frozen=True)
class Start:
    """Images that drawing begins from instead of pure noise (img2img; Meng et al. 2022, "SDEdit").

    Attributes:
        images: [N, 3, H, W] in -1..1, of the size that is drawn; or their scaled latents [N, C, h, w].
        strength: share of the denoising steps that is taken, above 0 and up to 1: how much noise is put over
            the image.
        mask: [N, 1, H, W] of the images' size, or [N, 1, h, w] of their latents': 1 where the image is drawn
            anew, 0 where it stays as it is, in between both are mixed. None: it is drawn anew all over.

    Raises:
        ValueError: the strength makes no sense.
    """

    images: Tensor
    strength: float
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse impossible strengths."""
        if not 0 < self.strength <= 1:
            raise ValueError(f"The strength of a start image is above 0 and at most 1, not {self.strength}.")

    def skipped(self, steps: int) -> int:
        """How many of the first steps are left out; at least one step is taken."""
        return steps - max(1, round(self.strength * steps))

    def encoded(self, some: slice, encode: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Start:
        """Some of them, as latents of the shape (C, h, w) that is drawn.

        Raises:
            ValueError: the images have another size.
        """
        latents = encode(self.images[some])
        if latents.shape[1:] != shape:
            raise ValueError(f"A start image gives latents of {tuple(latents.shape[1:])}, not {shape}.")
        mask = (
            None
            if self.mask is None
            else adaptive_avg_pool2d(self.mask[some], (shape[1], shape[2])).to(latents)
        )
        return replace(self, images=latents, mask=mask)


def begin(
    noise: Tensor,
    timesteps: Tensor,
    start: Start | None,
    add_noise: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Where drawing begins: pure noise and every timestep, or noised images and the timesteps from there.

    Args:
        noise: [N, C, h, w] standard normal.
        timesteps: [steps] of the sampler, noisiest first.
        start: of N images, as scaled latents.
        add_noise: see `LoadedModel.add_noise`.
    """
    if start is None:
        return noise, timesteps
    rest = timesteps[start.skipped(len(timesteps)) :]
    return add_noise(start.images, noise, rest[0].expand(len(noise))), rest


def keep_outside(
    latents: Tensor,
    noise: Tensor,
    following: Tensor | None,
    start: Start | None,
    add_noise: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Put the start image back where its mask is 0, under the noise that the next step expects.

    Blended diffusion (Avrahami et al. 2022, "Blended Diffusion for Text-driven Editing of Natural Images",
    algorithm 2), in latent space. It asks nothing of the network, so that it serves every parameterisation.

    Args:
        latents: [N, C, h, w] after a step of the sampler.
        noise: [N, C, h, w] that drawing began with.
        following: [] the timestep that comes next; None after the last one.
        start: of N images, as scaled latents; without a mask nothing is put back.
        add_noise: see `LoadedModel.add_noise`.
    """
    if start is None or start.mask is None:
        return latents
    known = start.images
    if following is not None:
        known = add_noise(known, noise, following.expand(len(noise)))
    return start.mask * latents + (1 - start.mask) * known


def with_progress(
    predict: Denoiser, progress: ProgressFn, earlier: int, batch: int, total: int, steps: int
) -> Denoiser:
    """The same answers, and before each of them word of how far the drawing is.

    Args:
        predict: asked once for each of `steps`.
        progress: gets the word.
        earlier: images that were drawn before these.
        batch: images that are drawn together here.
        total: images in all.
        steps: denoising steps.
    """
    asked = 0

    def answer(latents: Tensor, timesteps: Tensor) -> Tensor:
        nonlocal asked
        # Where memory ran out, the steps are taken once more.
        progress(earlier + batch * min(asked, steps) // steps, total)
        asked += 1
        return predict(latents, timesteps)

    return answer


def in_groups(count: int, most: int) -> Sequence[slice]:
    """Slices of at most `most` that cover `count` things in order."""
    return [slice(first, min(first + most, count)) for first in range(0, count, most)]


def at_once(width: int, height: int) -> int:
    """How many images of that size to put through the VAE together, so that 8 GB of memory suffice."""
    return max(1, min(AT_ONCE, _PIXELS_AT_ONCE // (width * height)))
