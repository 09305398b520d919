"""Whole batches of scenes drawn at once, on the device that trains.

Drawn one by one, images come too slowly for a GPU: it sees a few hundred a second where it could learn
from thirty thousand. So every drawing of every thing, redrawn several times, lies ready as a tensor, and
a batch is put together by sampling from it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scdpo_core.micro.world import BACKGROUNDS, Concept

from .art import Art
from .render import SIZE, SLOTS
from .style_augment import redrawings

_AS_IT_IS = 0.4  # share of subjects that stay as the artist drew them
_WANDER = 0.35  # further range of position and size, relative; as `render.Augment.wander`
_FINER = 2  # images are put together this much larger, so that small drawings do not alias
_CHUNK = 32


@dataclass(frozen=True)
class Bank:
    """Drawings of things, ready to be sampled.

    Attributes:
        sprites: uint8 [M, V, 4, 64, 64], RGB already multiplied by alpha, and alpha; version 0 is as drawn.
        rows: int64 [things, styles], a place in `sprites`; -1 where a style lacks the thing.
    """

    sprites: Tensor
    rows: Tensor

    @classmethod
    def fill(
        cls,
        art: Art,
        things: Sequence[Concept],
        styles: Sequence[str],
        versions: int,
        device: torch.device,
    ) -> Bank:
        """Draw every thing in every style that has it: once as it is, and `versions` times by other hands."""
        codes = [(style, thing.code) for thing in things for style in styles]
        slots = [number for number, (style, code) in enumerate(codes) if art.has(style, code)]
        rows = torch.full((len(codes),), -1)
        rows[slots] = torch.arange(len(slots))
        draw = partial(_versions, art.folder, versions)
        # The art is read once by each process; a fork would inherit torch's threads.
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            drawn = np.stack(list(pool.map(draw, [codes[slot] for slot in slots], chunksize=_CHUNK)))
        sprites = torch.from_numpy(drawn).permute(0, 1, 4, 2, 3).contiguous()
        return cls(sprites.to(device), rows.view(len(things), len(styles)).to(device))

    def draw(self, subjects: Tensor, generator: torch.Generator) -> Tensor:
        """Render scenes, every subject in its own style, each on one of the world's backgrounds.

        Args:
            subjects: int64 [N, 2], numbers of things; -1 for none. Two stand on the diagonal.
            generator: the only source of randomness, on the device of the bank.

        Returns:
            [N, 3, 64, 64] in -1..1.
        """
        count, device = len(subjects), self.sprites.device
        uniform = partial(torch.rand, generator=generator, device=device)
        colours = torch.tensor(list(BACKGROUNDS.values()), device=device, dtype=torch.float32)
        base = colours[torch.randint(len(colours), (count,), generator=generator, device=device)]
        shade = ((base + 10 * uniform(count, 3) - 5) / 255).clamp(0, 1)
        canvas = shade[:, :, None, None].expand(-1, -1, _FINER * SIZE, _FINER * SIZE)
        two = (subjects >= 0).all(dim=1)
        slots = torch.tensor([SLOTS[1][0], *SLOTS[2]], device=device)
        for position in (0, 1):
            slot = torch.where(two[:, None], slots[1 + position], slots[0])
            side = slot[:, 2] * (0.95 - _WANDER + (0.075 + 1.5 * _WANDER) * uniform(count))
            reach = torch.where(two, 1.5, 3.0) * (1 + 3 * _WANDER)
            centre = slot[:, :2] + reach[:, None] * (2 * uniform(count, 2) - 1)
            sprite = self._pick(subjects[:, position], generator)
            # From the canvas's coordinates, -1..1, into the sprite's.
            scale = SIZE / side
            shift = -(2 * centre / SIZE - 1) * scale[:, None]
            matrix = torch.stack(
                [
                    torch.stack([scale, torch.zeros_like(scale), shift[:, 0]], dim=1),
                    torch.stack([torch.zeros_like(scale), scale, shift[:, 1]], dim=1),
                ],
                dim=1,
            )
            grid = F.affine_grid(matrix, [count, 4, *canvas.shape[2:]], align_corners=False)
            layer = F.grid_sample(sprite, grid, align_corners=False)
            canvas = canvas * (1 - layer[:, 3:]) + layer[:, :3]
        return F.avg_pool2d(canvas, _FINER) * 2 - 1

    def _pick(self, things: Tensor, generator: torch.Generator) -> Tensor:
        """Pick one drawing [N, 4, 64, 64] in 0..1 of each thing; transparent for -1."""
        count, versions, device = len(things), self.sprites.shape[1], self.sprites.device
        available = (self.rows[things.clamp(min=0)] >= 0).float()
        style = torch.multinomial(available, 1, generator=generator)[:, 0]
        row = self.rows[things.clamp(min=0), style]
        version = torch.randint(1, versions, (count,), generator=generator, device=device)
        as_it_is = torch.rand(count, generator=generator, device=device) < _AS_IT_IS
        picked = self.sprites[row, torch.where(as_it_is, 0, version)].float() / 255
        return picked * (things >= 0)[:, None, None, None]


def _versions(folder: Path, versions: int, codes: tuple[str, str]) -> np.ndarray:
    """uint8 [1 + versions, 64, 64, 4]: the sprite as it is and redrawn, premultiplied by alpha."""
    style, code = codes
    sprite = Art(folder).sprite(style, code)
    assert sprite is not None  # the caller asked `has`
    drawn = [sprite, *redrawings(sprite, versions, f"{style}/{code}")]
    pixels = np.stack([np.asarray(image, np.uint16) for image in drawn])
    pixels[..., :3] = pixels[..., :3] * pixels[..., 3:] // 255
    return pixels.astype(np.uint8)
