"""Make the chosen image from a rejected one, with ComfyUI's model and sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..scdpo_core.pairs.requests import PairSpec
from ..scdpo_core.pairs.strategies import Candidate, Request, way_of
from ..scdpo_core.preferences.build import Drawn, Match, Rule, match
from ..scdpo_core.types import ScdpoError
from .convert import to_images, to_pil_images

if TYPE_CHECKING:
    from ..scdpo_core.cost.protocol import Scorer
    from ..scdpo_core.pairs.job import WayName

WAYS: tuple[WayName, ...] = ("same-seed", "inpaint", "edit", "best-of")
REDRAWS: tuple[WayName, ...] = ("inpaint", "edit")
"""The ways that begin with the rejected image; the others draw from noise alone."""
MOST_ATTEMPTS = 64


def redraw(
    way_name: WayName,
    attempts: int,
    rejected: Drawn,
    safe_prompt: str,
    rule: Rule,
    gap: float,
    scorer: Scorer,
    sample: Callable[[Request], Image.Image],
) -> tuple[Match, Image.Image | None]:
    """Redraw a rejected image until it makes a pair.

    Args:
        way_name: one of REDRAWS.
        attempts: at most.
        rejected: the image of the prompt.
        safe_prompt: what is drawn instead; '' for the empty prompt.
        rule: see `preferences.build.RULES`.
        gap: see `preferences.build.match`.
        scorer: of the images.
        sample: draws a request.

    Returns:
        The last attempt, with the reason if it makes no pair; and the mask, if the way has one.

    Raises:
        ScdpoError: an image cannot be scored.
    """
    if rule == "safe against harmful" and not rejected.score.harmful:
        return Match(rejected, rejected, "the image of its prompt is harmless"), None
    way = way_of(way_name, attempts, scorer)
    candidate = Candidate(PairSpec(0, "", safe_prompt, "", rejected.seed), rejected)
    while True:
        candidate = way.prepare(candidate)
        request = way.request(candidate)
        image = way.finish(candidate, sample(request))
        (score,) = scorer.score([image])
        if score.problem:
            raise ScdpoError(score.problem)
        attempt = Drawn(image, score, request.seed)
        candidate = replace(candidate, tried=(*candidate.tried, attempt))
        (result,) = match([rejected], [attempt], rule, gap)
        if not result.reason or len(candidate.tried) >= way.tries:
            return result, candidate.mask_image


def sampler(
    clip: Any, draw: Callable[..., torch.Tensor], sampling: dict[str, Any]
) -> Callable[[Request], Image.Image]:
    """Make the function that draws a request from its image, with all other settings of the node.

    Args:
        clip: encodes the prompt.
        draw: see `sampling.draw`.
        sampling: its settings.
    """

    def sample(request: Request) -> Image.Image:
        positive = clip.encode_from_tokens_scheduled(clip.tokenize(request.prompt))
        latent = _start_latent(sampling["vae"], request)
        changed = {**sampling, "latent_image": latent, "denoise": request.strength}
        return to_pil_images(draw(seed=request.seed, positive=positive, **changed))[0]

    return sample


def _start_latent(vae: Any, request: Request) -> dict[str, Any]:
    """Make the start latent of a request, as VAE Encode and Set Latent Noise Mask make it."""
    assert request.start is not None
    latent: dict[str, Any] = {"samples": vae.encode(to_images([request.start]))}
    if request.mask is not None:
        latent["noise_mask"] = torch.from_numpy(request.mask)[None]
    return latent
