"""The image tower's second leg: from CLIP's objective to naming every subject of an image.

CLIP's loss is content with one thing that tells an image's caption from those of its neighbours. A cost
model needs everything that an image shows, small things in company too. So the tower goes on alone, and
learns to tag: which of the world's concepts are there, in drawings that are redrawn, warped and recoloured
so that no single drawing's pixels can be learned by heart. It begins with CLIP's own answers as tags, and
with images at their own size, where a batch costs a quarter; at twice that size it sees more. A few
hundred everyday things that are no concept of the world are tagged along, since every further thing that is
drawn by several hands teaches what stays the same between hands; their tags are thrown away at the end. The
denoiser needs none of this and can be trained beside it.
"""

from __future__ import annotations

import copy
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from scdpo_core.micro.world import Concept, concepts

from .art import STYLES_OF_TOWER, Art
from .augment import scatter
from .render import SIZE
from .scene_cache import Bank
from .towers import IMAGE_CHANNELS, Towers, tokenize
from .training_loop import Plan, StepContext, Tell, checkpoint_of, train

IMAGE_SIZE = 128  # pixels along an edge that the tower sees; the world's images are half as large
_SMALL_BATCH = 128
_CHECKPOINT = 100  # steps between checkpoints: minutes on two cores
_LOOKED_AT = 256  # images that say how CLIP's answers spread
_VERSIONS = 16  # redrawn versions of every drawing
_OTHERS = 0.3  # share of scenes in which a subject is a thing that is no concept of the world
_TWO = 0.55  # share of scenes with two subjects
_EMPTY = 0.02  # share of scenes with none
_NEAR = 0.25  # share of single subjects that are a harmful thing or its near-miss
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
    """A tag is as sure as the surest place of the image makes it: no corner is averaged out."""

    def __init__(self, tower: nn.Module, count: int) -> None:
        super().__init__()
        self.tower = tower
        self.tags = nn.Linear(IMAGE_CHANNELS[-1], count)
        nn.init.constant_(self.tags.bias, _RARE)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute log-odds [N, count] of every tag."""
        maps = self.tower(pixel_values=pixels).last_hidden_state
        tags: Tensor = self.tags(maps.flatten(2).transpose(1, 2)).amax(dim=1)
        return tags


def build(
    art: Art,
    folder: Path,
    towers: Towers,
    device: torch.device,
    tell: Tell,
    *,
    small_steps: int,
    steps: int,
    batch: int,
    seed: int,
) -> ResNetForImageClassification:
    """Train a copy of the image tower on, with a classifier of the concepts; the towers stay as they are.

    Args:
        art: what is drawn.
        folder: where the checkpoints live.
        towers: what CLIP's objective has made of the tower.
        device: where to train.
        tell: gets a line about progress now and then.
        small_steps: steps on images at their own size, before
        steps: those at twice that size; 0 for none.
        batch: images in each of the latter.
        seed: of everything random.
    """
    torch.manual_seed(seed)
    things = [*concepts(), *everyday(art)]

    @cache
    def bank() -> Bank:  # minutes, which a finished build need not spend again
        hands = len(STYLES_OF_TOWER)
        tell(f"image: drawing {len(things)} things in {hands} styles, {1 + _VERSIONS} times each")
        return Bank.fill(art, things, STYLES_OF_TOWER, _VERSIONS, device)

    def loss(size: int, count: int, context: StepContext) -> Tensor:
        return _loss(tagger, bank(), size, count, context)

    # The name holds the batch, so that no checkpoint of another batch is gone on from.
    legs = [("image-small", small_steps, SIZE, _SMALL_BATCH), (f"image-{batch}", steps, IMAGE_SIZE, batch)]
    legs = [leg for leg in legs if leg[1]]
    tagger = _Tagger(copy.deepcopy(towers.image), len(things)).to(device)
    if not any(checkpoint_of(folder, name).exists() for name, *_ in legs):
        _begin_with_words(tagger, towers, bank(), seed)
    for name, length, size, count in legs:
        plan = Plan(name, length, lr=1e-3, ema=0.999, weight_decay=0.05, seed=seed)
        trained_tower = partial(loss, size, count)
        trained = train(plan, tagger.requires_grad_(True), trained_tower, folder, device, tell, _CHECKPOINT)
        assert isinstance(trained, _Tagger)
        tagger = trained
    return _of_concepts(tagger, towers.image.config)


@torch.no_grad()
def _begin_with_words(tagger: _Tagger, towers: Towers, bank: Bank, seed: int) -> None:
    """Let the tags of the world's concepts begin as what CLIP's towers answer to their names."""
    device, pair = bank.rows.device, towers.pair.to(bank.rows.device)
    ids = tokenize(towers.tokenizer, [thing.name for thing in concepts()]).to(device)
    words = F.normalize(pair.text(input_ids=ids).pooler_output, dim=-1) @ pair.projection.weight
    generator = torch.Generator(device).manual_seed(seed)
    pixels = bank.draw(_scenes(_LOOKED_AT, len(bank.rows), generator), generator)
    maps = tagger.eval().tower(pixel_values=pixels).last_hidden_state
    answers = maps.flatten(2).transpose(1, 2) @ words.T
    spread, middle = answers.std(dim=(0, 1)), answers.mean(dim=(0, 1))
    tagger.tags.weight[: len(words)] = words / spread[:, None]
    tagger.tags.bias[: len(words)] = _RARE - 1 - middle / spread


def _of_concepts(tagger: _Tagger, config: ResNetConfig) -> ResNetForImageClassification:
    """Reduce the tower to the tags of the world's concepts, in transformers' format."""
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
    """List things that are no concept of the world and exist in at least three drawing styles."""
    concept_codes = {thing.code for thing in concepts()}
    names = []
    for code, name, group in art.catalogue():
        drawn = sum(art.has(style, code) for style in STYLES_OF_TOWER)
        if group in _EVERYDAY and code not in concept_codes and drawn >= 3:
            names.append(Concept(name, code, "other", False, (), None))
    return names


def _loss(tagger: _Tagger, bank: Bank, size: int, batch: int, context: StepContext) -> Tensor:
    """Cross-entropy of all tags, summed over them, on a fresh batch of images of that size."""
    generator = torch.Generator(context.device).manual_seed(context.rng.getrandbits(48))
    count = len(bank.rows)
    subjects = _scenes(batch, count, generator)
    targets = torch.zeros(batch, count + 1, device=context.device)
    targets.scatter_(1, torch.where(subjects < 0, count, subjects), 1.0)
    pixels = scatter(bank.draw(subjects, generator), generator)
    if size != SIZE:
        pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False)
    with context.autocast():
        tags = tagger(pixels)
    return F.binary_cross_entropy_with_logits(tags.float(), targets[:, :count], reduction="sum") / batch


def _scenes(batch: int, count: int, generator: torch.Generator) -> Tensor:
    """Subjects [batch, 2] of as many scenes: numbers of things, of which the world's own come first; -1
    for none. The tower has to tell harmful things from their near-misses, so these are shown more often."""
    device = generator.device
    uniform = partial(torch.rand, batch, generator=generator, device=device)

    def any_of(high: int) -> Tensor:
        return torch.randint(high, (batch,), generator=generator, device=device)

    world = concepts()
    number = {thing.name: position for position, thing in enumerate(world)}
    near = torch.tensor([[number[t.name], number[t.near_miss]] for t in world if t.near_miss], device=device)
    first = any_of(len(world))
    second = (first + 1 + any_of(len(world) - 1)) % len(world)
    kind = uniform()
    two, empty = kind < _TWO, kind > 1 - _EMPTY
    first = torch.where(~two & (uniform() < _NEAR), near[any_of(len(near)), any_of(2)], first)
    other, put = len(world) + any_of(count - len(world)), uniform()
    half = torch.where(two, _OTHERS / 2, _OTHERS)
    first = torch.where(put < half, other, first)
    second = torch.where(put > 1 - _OTHERS / 2, other, second)
    return torch.stack([first.masked_fill(empty, -1), second.masked_fill(~two, -1)], dim=1)
