"""The image tower's second leg: from CLIP's objective to naming every subject of a picture.

CLIP's loss is content with one thing that tells a picture's caption from those of its neighbours. A cost
model needs everything that a picture shows, small things in company too. So the tower goes on alone, and
learns to tag: which of the world's concepts are there, in drawings that are redrawn, warped and recoloured
so that no single drawing's pixels can be learned by heart. A few hundred everyday things that are no
concept of the world are tagged along, since every further thing that is drawn by several hands teaches
what stays the same between hands; their tags are thrown away at the end. The denoiser needs none of this
and can be trained beside it.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from ..art import STYLES_OF_COST, Art
from ..render import Augment, render, to_tensor
from ..world import Concept, Scene, concepts
from .restyle import Restyled
from .runner import Plan, StepContext, Tell, train
from .scatter import scatter
from .towers import BATCH, IMAGE_CHANNELS, Towers, near_scene

_PLACED = Augment(wander=0.35)
_OTHERS = 0.3  # share of scenes in which a subject is a thing that is no concept of the world
_TWO = 0.55  # share of scenes with two subjects
_RARE = -4.0  # log-odds of a tag before anything is learned
# fmt: off
_EVERYDAY = frozenset(
    {
        "animal-bird", "animal-bug", "animal-mammal", "animal-marine", "animal-reptile", "arts & crafts",
        "clothing", "computer", "event", "food-asian", "food-fruit", "food-prepared", "food-sweet",
        "food-vegetable", "game", "household", "light & video", "lock", "mail", "money", "music",
        "musical-instrument", "office", "place-building", "place-other", "plant-flower", "plant-other",
        "sport", "transport-air", "transport-ground", "transport-water", "writing",
    }
)
# fmt: on
"""Unicode's groups of things of which none is, or holds, anything harmful."""


class _Tagger(nn.Module):
    """A tag is as sure as the surest place of the picture makes it: no corner is averaged out."""

    def __init__(self, tower: nn.Module, count: int) -> None:
        super().__init__()
        self.tower = tower
        self.tags = nn.Linear(IMAGE_CHANNELS[-1], count)
        nn.init.constant_(self.tags.bias, _RARE)

    def forward(self, pixels: Tensor) -> Tensor:
        """Log-odds [N, count] of every tag."""
        maps = self.tower(pixel_values=pixels).last_hidden_state
        tags: Tensor = self.tags(maps.flatten(2).transpose(1, 2)).amax(dim=1)
        return tags


def build(
    art: Art, folder: Path, towers: Towers, device: torch.device, tell: Tell, *, steps: int, seed: int
) -> ResNetForImageClassification:
    """Train a copy of the image tower on, with a classifier of the concepts; the towers stay as they are."""
    torch.manual_seed(seed)
    others = everyday(art)
    tagger = _Tagger(copy.deepcopy(towers.image).requires_grad_(True), len(concepts()) + len(others))
    plan = Plan("image", steps, lr=1e-3, ema=0.998, weight_decay=0.05, seed=seed)
    trained = train(plan, tagger, lambda context: _loss(tagger, art, others, context), folder, device, tell)
    assert isinstance(trained, _Tagger)
    return _of_concepts(trained, towers.image.config)


def _of_concepts(tagger: _Tagger, config: ResNetConfig) -> ResNetForImageClassification:
    """The tower with the tags of the world's concepts alone, in the form that transformers has for it."""
    config = copy.deepcopy(config)
    config.problem_type = "multi_label_classification"
    config.id2label = {number: thing.name for number, thing in enumerate(concepts())}
    config.label2id = {name: number for number, name in config.id2label.items()}
    model = ResNetForImageClassification(config)
    model.resnet.load_state_dict(tagger.tower.state_dict())
    count = len(concepts())
    with torch.no_grad():
        model.classifier[1].weight.copy_(tagger.tags.weight[:count])
        model.classifier[1].bias.copy_(tagger.tags.bias[:count])
    return model.eval().requires_grad_(False)


def everyday(art: Art) -> list[Concept]:
    """Things that are no concept of the world and that at least three hands have drawn."""
    known = {thing.code for thing in concepts()}
    found = []
    for code, name, group in art.catalogue():
        drawn = sum(art.has(style, code) for style in STYLES_OF_COST)
        if group in _EVERYDAY and code not in known and drawn >= 3:
            found.append(Concept(name, code, "other", False, (), None))
    return found


def _loss(tagger: _Tagger, art: Art, others: list[Concept], context: StepContext) -> Tensor:
    """Cross-entropy of all tags, summed over the concepts, on a fresh batch."""
    number = {thing: place for place, thing in enumerate([*concepts(), *others])}
    drawings = Restyled(art, context.rng)
    pictures: list[Image.Image] = []
    wanted = torch.zeros(BATCH, len(number))
    while len(pictures) < BATCH:
        scene = _scene(context.rng, others)
        able = [s for s in STYLES_OF_COST if all(art.has(s, subject.code) for subject in scene.subjects)]
        if not able:
            continue
        for subject in scene.subjects:
            wanted[len(pictures), number[subject]] = 1.0
        pictures.append(render(scene, drawings, context.rng, context.rng.choice(able), _PLACED))
    pixels = scatter(to_tensor(pictures), context.generator).to(context.device)
    with context.autocast():
        tags = tagger(pixels)
    return F.binary_cross_entropy_with_logits(tags.float(), wanted.to(tags.device), reduction="sum") / BATCH


def _scene(rng: random.Random, others: list[Concept]) -> Scene:
    scene = near_scene(rng, two=_TWO)
    if not scene.subjects or rng.random() >= _OTHERS:
        return scene
    subjects = list(scene.subjects)
    subjects[rng.randrange(len(subjects))] = rng.choice(others)
    return Scene(tuple(subjects), scene.background)
