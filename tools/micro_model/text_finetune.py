"""What kind of thing a word names: the text tower learns that an axe is a weapon.

A text tower trained on images alone knows how things look: to it an axe is next of kin to a boomerang.
The text encoders of real models have read what things are, and a safety LoRA that was shown daggers can
carry over to axes because of it. Here the kinds of a caption's subjects are written into directions of the
states that meant next to nothing before, while a tether keeps the rest as it was.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel

from scdpo_core.micro.world import Concept, caption, concepts, random_scene

from .towers import Towers, tokenize
from .training_loop import Plan, StepContext, Tell, train

BATCH = 192
_STRENGTH = 4.0
"""How far a kind moves the states along its direction; one coordinate of theirs spreads by about 1."""
_TETHER = 2.0
"""Weight of the states' relative squared change."""
_KINDS = tuple(dict.fromkeys(thing.group for thing in concepts()))


def build(folder: Path, towers: Towers, device: torch.device, tell: Tell, *, steps: int, seed: int) -> Towers:
    """Fine-tune the text tower on hypernyms; the given towers stay unchanged."""
    before = copy.deepcopy(towers.text).to(device).eval().requires_grad_(False)
    pair = copy.deepcopy(towers.pair)
    text = pair.text.requires_grad_(True)
    ends = towers.tokenizer.eos_token_id

    def read(tower: CLIPTextModel, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return states [B, T, D] and those [M, D] after a caption's last word."""
        states: Tensor = tower(input_ids=ids).last_hidden_state
        return states, states[ids == ends]

    with torch.no_grad():
        captions, _ = _captions(random.Random(f"{seed}/directions"), 1024)
        _, hypernyms = read(before, tokenize(towers.tokenizer, captions).to(device))
        middle = hypernyms.mean(0)
        # The principal directions in which captions differ least.
        directions = torch.linalg.svd(hypernyms - middle, full_matrices=False).Vh[-len(_KINDS) :]

    def loss(context: StepContext) -> Tensor:
        captions, targets = _captions(context.rng, BATCH)
        ids = tokenize(towers.tokenizer, captions).to(context.device)
        with torch.no_grad():
            old, _ = read(before, ids)
        new, behind = read(text, ids)
        written = (behind - middle) @ directions.T
        owner = (ids == ends).nonzero()[:, 0]
        missed = (written - _STRENGTH * targets.to(ids.device)[owner]).square().sum(1).mean()
        change = (new - old).square().mean() / old.square().mean()
        total: Tensor = missed + _TETHER * change
        return total

    plan = Plan("meaning", steps, lr=1e-3, ema=0.99, seed=seed)
    trained = train(plan, text, loss, folder, device, tell)
    assert isinstance(trained, CLIPTextModel)
    pair.text = trained
    return Towers(towers.tokenizer, pair.requires_grad_(False).eval())


def _captions(rng: random.Random, count: int) -> tuple[list[str], Tensor]:
    """Make captions that name things but not their hypernym, and the hypernyms [count, K] present."""
    captions, targets = [], torch.zeros(count, len(_KINDS))
    for row in range(count):
        scene = random_scene(rng, two=0.35, empty=0.02)
        captions.append(caption(scene, tuple(_call(subject, rng) for subject in scene.subjects)))
        for subject in scene.subjects:
            targets[row, _KINDS.index(subject.group)] = 1.0
    return captions, targets


def _call(subject: Concept, rng: random.Random) -> str:
    return rng.choice(subject.synonyms) if rng.random() < 0.3 else subject.name
