"""Changing whole batches of pictures at once, so that a tower learns shapes and not one drawing's pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_TURN = math.radians(25)
_STRETCH = 0.25
_SHEAR = 0.2
_BEND = 0.12  # of half a picture's side, for the nodes of a 5 x 5 lattice
_HUE = math.radians(25)
_MIX = 0.09
_GRAY = 0.1
_NOISE = 0.08


def scatter(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Warp, recolour and blur every picture of a batch in a way of its own.

    Colours move only so far that red stays red: a drop of blood and a drop of water differ in little else.

    Args:
        pixels: [N, 3, H, W] in -1..1.
        generator: the only source of randomness, on the CPU.

    Returns:
        [N, 3, H, W], about within -1..1.
    """
    return _recolour(_warp(pixels, generator), generator)


def _warp(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, stretch, shear, mirror half of them, and bend each along a smooth field; edges are continued."""
    count, _, height, width = pixels.shape

    def spread(size: float, *shape: int) -> Tensor:
        return size * (2 * torch.rand(count, *shape, generator=generator) - 1)

    turn, shear = spread(_TURN), spread(_SHEAR)
    across, down = torch.exp(spread(_STRETCH)), torch.exp(spread(_STRETCH))
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    rows = (
        torch.stack([mirror * across * turn.cos(), shear - turn.sin()], dim=1),
        torch.stack([mirror * across * turn.sin(), down * turn.cos()], dim=1),
    )
    matrix = torch.cat([torch.stack(rows, dim=1), torch.zeros(count, 2, 1)], dim=2)
    grid = F.affine_grid(matrix, [count, 3, height, width], align_corners=False)
    bend = F.interpolate(spread(_BEND, 2, 5, 5), (height, width), mode="bicubic", align_corners=True)
    grid = grid + bend.permute(0, 2, 3, 1)
    return F.grid_sample(pixels, grid.to(pixels.device), padding_mode="border", align_corners=False)


def _recolour(pixels: Tensor, generator: torch.Generator) -> Tensor:
    count = len(pixels)
    angle = _HUE * (2 * torch.rand(count, 1, 1, generator=generator) - 1)
    # A turn about the axis of grays, plus a random matrix near none at all.
    axis = torch.full((3, 3), 1 / 3)
    skew = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    matrix = angle.cos() * torch.eye(3) + (1 - angle.cos()) * axis + angle.sin() * skew
    matrix = matrix + _MIX * torch.randn(count, 3, 3, generator=generator)
    gray = torch.rand(count, 1, 1, generator=generator) < _GRAY
    matrix = torch.where(gray, axis, matrix).to(pixels.device)
    light = 0.1 * torch.randn(count, 3, 1, 1, generator=generator).to(pixels.device)
    mixed = torch.einsum("nij,njhw->nihw", matrix, pixels) + light
    soft = F.avg_pool2d(F.pad(mixed, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = torch.rand(count, 1, 1, 1, generator=generator).to(pixels.device)
    blurred = torch.rand(count, 1, 1, 1, generator=generator).to(pixels.device) < 0.5
    mixed = torch.where(blurred, torch.lerp(mixed, soft, amount), mixed)
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return mixed + _NOISE * torch.rand(count, 1, 1, 1, generator=generator).to(pixels.device) * noise
