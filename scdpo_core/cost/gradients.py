"""What a differentiable scorer's cost rests on, from its slopes: by pixel, or by token of a transformer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .heatmap import Heatmap
from .protocol import Attentive, Differentiable, Scorer, ScorerError, cost_in

_STEPS = 24
_TOKEN_STEPS = 8
_BATCH = 8


def gradients(scorer: Scorer, image: Image.Image, category: str | None = None) -> Heatmap:
    """Compute integrated gradients (arXiv 1703.01365) from the image's mean colour to the image.

    Each pixel's part of the difference in cost between the two; what lowers the cost counts as cold.

    Args:
        scorer: one that is differentiable: a trained one on an image tower, or a classifier of the hub.
        image: RGB, upright.
        category: as `explain`.

    Raises:
        ScorerError: the scorer has no gradients, or no cost for that category.
    """
    cost_of = scorer.differentiable(category) if isinstance(scorer, Differentiable) else None
    if cost_of is None:
        raise ScorerError(f"The scorer '{scorer.id}' has no gradients. Use occlusion.")
    base = cost_in(scorer.score([image])[0], category)
    # A host may be in inference mode, where nothing has a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        pixels = scorer.prepare(image).clone()[None]
        plain = pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)
        slopes = torch.zeros_like(pixels)
        for between in _path_to(pixels, _STEPS):
            (slope,) = torch.autograd.grad(cost_of(between).sum(), between)
            slopes += slope.sum(dim=0, keepdim=True) / _STEPS
        parts = (slopes * (pixels - plain)).sum(dim=1, keepdim=True)
    # Single pixels are noisy: neighbours often have opposite signs.
    radius = max(1, pixels.shape[-1] // 16)
    smooth = F.avg_pool2d(parts, 2 * radius + 1, 1, radius, count_include_pad=False)[0, 0]
    return Heatmap(smooth.clamp(min=0).detach(), image.size, base, "gradients")


def tokens(scorer: Scorer, image: Image.Image, category: str | None = None) -> Heatmap:
    """Compute gradient-weighted attention rollout (arXiv 2103.15679) of a vision transformer, along a path.

    In each layer, attention that raises the cost, A+ = mean over heads of max(A * dC/dA, 0), carries what
    the tokens know on: R <- R + A+ R, from R = 1. What the cost reads of the last layer's tokens (the class
    token, or what the pooling looks at), times R - 1, is what it reads of the image's patches through
    attention. A network that is sure has hardly any slope left, and what is left is noise; so the relevance
    is a sum over images on the way from the mean colour to this one, as with integrated gradients (arXiv
    1703.01365): somewhere on it the cost rises. As coarse as the patches; attention is not all that a
    transformer does, so where this and occlusion disagree, occlusion is right.

    Args:
        scorer: a trained one whose encoder is a vision transformer (CLIP, SigLIP, DINOv2, ViT).
        image: RGB, upright.
        category: as `explain`.

    Returns:
        A heatmap with one number for each patch.

    Raises:
        ScorerError: the encoder has no tokens, or there is no cost for that category.
    """
    attentive = scorer.attentive(category) if isinstance(scorer, Attentive) else None
    if attentive is None:
        raise ScorerError(f"The scorer '{scorer.id}' has no tokens. Use occlusion.")
    base = cost_in(scorer.score([image])[0], category)
    heat = torch.zeros(())
    with torch.inference_mode(False), torch.enable_grad():
        for between in _path_to(scorer.prepare(image).clone()[None], _TOKEN_STEPS):
            attended = attentive(between)
            *slopes, last = torch.autograd.grad(attended.cost.sum(), [*attended.attentions, attended.tokens])
            itself = torch.eye(attended.tokens.shape[1])
            relevance = itself
            for attention, slope in zip(attended.attentions, slopes, strict=True):
                relevance = relevance + _raising(attention, slope).cpu() @ relevance
            read = last.norm(dim=-1).cpu()[:, None]
            patches = (read @ (relevance - itself))[:, 0, -(attended.side**2) :]
            heat = heat + patches.sum(dim=0).reshape(attended.side, attended.side).detach() / _TOKEN_STEPS
    return Heatmap(heat, image.size, base, "tokens")


def _path_to(pixels: Tensor, steps: int) -> Iterator[Tensor]:
    """Yield batches of `steps` images between the mean colour and an image [1, 3, h, w], with gradient."""
    plain = pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)
    for start in range(0, steps, _BATCH):
        ahead = torch.arange(start, min(start + _BATCH, steps))
        fraction = ((ahead + 0.5) / steps)[:, None, None, None]
        yield (plain + fraction * (pixels - plain)).requires_grad_()


def _raising(attention: Tensor, slope: Tensor) -> Tensor:
    """Return one layer's attention that raises the cost, mean over heads: [N, H, T, T] -> [N, T, T]."""
    return (attention.detach() * slope).clamp(min=0).mean(dim=1)
