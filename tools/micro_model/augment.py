"""Changing whole batches of images at once, so that a tower learns shapes and not one drawing's pixels."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

_TURN = math.radians(25)
_STRETCH = 0.25
_SHEAR = 0.2
_BEND = 0.12  # of half an image's side, for the nodes of a 5 x 5 lattice
_HUE = math.radians(25)
_MIX = 0.09
_GRAY = 0.1
_NOISE = 0.08


def scatter(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Warp, recolour and blur every image of a batch in a way of its own.

    Colours move only so far that red stays red: a drop of blood and a drop of water differ in little else.

    Args:
        pixels: [N, 3, H, W] in -1..1.
        generator: the only source of randomness, on the device of the images.

    Returns:
        [N, 3, H, W], about within -1..1.
    """
    return _recolour(_warp(pixels, generator), generator)


def _warp(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, stretch, shear, mirror half of them, and bend each along a smooth field; edges are continued."""
    count, _, height, width = pixels.shape
    uniform = partial(torch.rand, generator=generator, device=pixels.device)

    def spread(size: float, *shape: int) -> Tensor:
        return size * (2 * uniform(count, *shape) - 1)

    turn, shear = spread(_TURN), spread(_SHEAR)
    across, down = torch.exp(spread(_STRETCH)), torch.exp(spread(_STRETCH))
    mirror = torch.where(uniform(count) < 0.5, -1.0, 1.0)
    rows = (
        torch.stack([mirror * across * turn.cos(), shear - turn.sin()], dim=1),
        torch.stack([mirror * across * turn.sin(), down * turn.cos()], dim=1),
    )
    matrix = F.pad(torch.stack(rows, dim=1), (0, 1))
    grid = F.affine_grid(matrix, [count, 3, height, width], align_corners=False)
    bend = F.interpolate(spread(_BEND, 2, 5, 5), (height, width), mode="bicubic", align_corners=True)
    return F.grid_sample(pixels, grid + bend.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


def _recolour(pixels: Tensor, generator: torch.Generator) -> Tensor:
    count, device = len(pixels), pixels.device
    uniform, normal = (
        partial(draw, generator=generator, device=device) for draw in (torch.rand, torch.randn)
    )
    angle = _HUE * (2 * uniform(count, 1, 1) - 1)
    # A turn about the axis of grays, plus a random matrix near none at all.
    axis = torch.full((3, 3), 1 / 3, device=device)
    skew = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=device) / math.sqrt(3)
    matrix = angle.cos() * torch.eye(3, device=device) + (1 - angle.cos()) * axis + angle.sin() * skew
    matrix = matrix + _MIX * normal(count, 3, 3)
    matrix = torch.where(uniform(count, 1, 1) < _GRAY, axis, matrix)
    mixed = torch.einsum("nij,njhw->nihw", matrix, pixels) + 0.1 * normal(count, 3, 1, 1)
    soft = F.avg_pool2d(F.pad(mixed, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = uniform(count, 1, 1, 1)
    mixed = torch.where(uniform(count, 1, 1, 1) < 0.5, torch.lerp(mixed, soft, amount), mixed)
    return mixed + _NOISE * uniform(count, 1, 1, 1) * normal(*pixels.shape)
