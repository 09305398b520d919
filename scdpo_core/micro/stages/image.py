"""The image tower's second leg: from CLIP's objective to naming every subject of a picture.

CLIP's loss is content with one thing that tells a picture's caption from those of its neighbours. A cost
model needs everything that a picture shows, small things in company too. So the tower goes on alone, and
learns to tag: which of the world's concepts are there, in drawings that are warped and recoloured so that
no single drawing's pixels can be learned by heart. The denoiser needs none of this and can be trained
beside it.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ResNetModel

from ..art import STYLES_TRAINED, Art
from ..render import Augment, render, to_tensor
from ..world import concepts
from .runner import Plan, StepContext, Tell, train
from .scatter import scatter
from .towers import BATCH, IMAGE_CHANNELS, Towers, near_scene

_PLACED = Augment(wander=0.35)
_RARE = -4.0  # log-odds of a tag before anything is learned: 2 of 114 concepts are there


class _Tagger(nn.Module):
    def __init__(self, tower: ResNetModel) -> None:
        super().__init__()
        self.tower = tower
        self.tags = nn.Linear(IMAGE_CHANNELS[-1], len(concepts()))
        nn.init.constant_(self.tags.bias, _RARE)

    def forward(self, pixels: Tensor) -> Tensor:
        """Log-odds [N, concepts] of every tag."""
        tags: Tensor = self.tags(self.tower(pixel_values=pixels).pooler_output.flatten(1))
        return tags


def build(
    art: Art, folder: Path, towers: Towers, device: torch.device, tell: Tell, *, steps: int, seed: int
) -> ResNetModel:
    """Train a copy of the image tower on; the towers stay as they are."""
    torch.manual_seed(seed)
    tagger = _Tagger(copy.deepcopy(towers.image).requires_grad_(True))
    plan = Plan("image", steps, lr=1e-3, ema=0.998, weight_decay=0.05, seed=seed)
    trained = train(plan, tagger, lambda context: _loss(tagger, art, context), folder, device, tell)
    assert isinstance(trained, _Tagger)
    return trained.tower


def _loss(tagger: _Tagger, art: Art, context: StepContext) -> Tensor:
    """Cross-entropy of all tags, summed over the concepts, on a fresh batch."""
    number = {thing: place for place, thing in enumerate(concepts())}
    pictures: list[Image.Image] = []
    wanted = torch.zeros(BATCH, len(number))
    while len(pictures) < BATCH:
        scene = near_scene(context.rng, two=0.45)
        try:
            picture = render(scene, art, context.rng, context.rng.choice(STYLES_TRAINED), _PLACED)
        except LookupError:
            continue
        for subject in scene.subjects:
            wanted[len(pictures), number[subject]] = 1.0
        pictures.append(picture)
    pixels = scatter(to_tensor(pictures), context.generator).to(context.device)
    with context.autocast():
        tags = tagger(pixels)
    return F.binary_cross_entropy_with_logits(tags.float(), wanted.to(tags.device), reduction="sum") / BATCH
