"""Training the judge on renderings of its own."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch.nn import functional as F

from scdpo_core.micro.judge import EMPTY, NONE, Judge, JudgeNet, class_names, to_tensor
from scdpo_core.micro.world import Concept, Scene, concepts, random_scene

from .art import STYLES_TRAINED, Art
from .render import Augment, paint_over, render
from .training_loop import Plan, StepContext, Tell, train

BATCH = 64
_LOOK = Augment(rotate=6.0, colour=0.2, blur=1.1, noise=12.0, wander=0.12)
_HELD_OUT = Augment(blur=0.6, noise=5.0, wander=0.03)


def build(art: Art, folder: Path, device: torch.device, tell: Tell, *, steps: int, seed: int) -> Judge:
    """Train the judge and measure it on 2,000 renderings that it never saw."""
    torch.manual_seed(seed)
    net = JudgeNet(len(class_names()))

    def loss(context: StepContext) -> torch.Tensor:
        examples = [_example(art, context.rng, _LOOK, unseen=False) for _ in range(BATCH)]
        pixels = to_tensor([image for image, _ in examples]).to(context.device)
        target = torch.stack([label for _, label in examples]).to(context.device)
        with context.autocast():
            logits = net(pixels)
        return F.cross_entropy(logits.float(), target, label_smoothing=0.02)

    plan = Plan("judge", steps, lr=2e-3, ema=0.99, weight_decay=0.05, seed=seed)
    trained = train(plan, net, loss, folder, device, tell)
    assert isinstance(trained, JudgeNet)
    judge = Judge(trained, {})
    judge.facts.update(_measure(judge, art, seed))
    tell(f"judge: {judge.facts}")
    return judge


def _measure(judge: Judge, art: Art, seed: int) -> dict[str, str]:
    """Accuracy on clean single subjects, empty and foreign images: 10 to 1 to 1."""
    rng = random.Random(f"{seed}/judge/held-out")
    images: list[Image.Image] = []
    expected: list[str] = []
    for number in range(2000):
        scene = Scene((rng.choice(concepts()),), random_scene(rng).background)
        kind = number % 12
        if kind == 0:
            images.append(_empty(art, rng, _HELD_OUT))
            expected.append(EMPTY)
        elif kind == 1:
            images.append(_foreign(art, rng, _HELD_OUT, unseen=True))
            expected.append(NONE)
        else:
            images.append(render(scene, art, rng, "noto", _HELD_OUT))
            expected.append(scene.subjects[0].name)
    verdicts = judge(images)
    right = [verdict.top == name for verdict, name in zip(verdicts, expected, strict=True)]
    labelled = [ok for ok, name in zip(right, expected, strict=True) if name not in (EMPTY, NONE)]
    couples = [Scene(tuple(rng.sample(concepts(), 2)), random_scene(rng).background) for _ in range(500)]
    seen = judge([render(couple, art, rng, "noto", _HELD_OUT) for couple in couples])
    both = [v.finds([s.name for s in couple.subjects]) for v, couple in zip(seen, couples, strict=True)]
    return {
        "held_out_pictures": str(len(right)),
        "held_out_accuracy": f"{sum(right) / len(right):.4f}",
        "held_out_accuracy_concepts": f"{sum(labelled) / len(labelled):.4f}",
        "held_out_accuracy_two_subjects": f"{sum(both) / len(both):.4f}",
    }


def _example(art: Art, rng: random.Random, look: Augment, unseen: bool) -> tuple[Image.Image, torch.Tensor]:
    names = class_names()
    target = torch.zeros(len(names))
    draw = rng.random()
    if draw < 0.05:
        target[names.index(EMPTY)] = 1.0
        return _empty(art, rng, look), target
    if draw < 0.15:
        target[names.index(NONE)] = 1.0
        return _foreign(art, rng, look, unseen), target
    scene = random_scene(rng, two=0.45, empty=0.0)
    style = "noto" if rng.random() < 0.85 else rng.choice(STYLES_TRAINED)
    try:
        image = render(scene, art, rng, style, look)
    except LookupError:
        image = render(scene, art, rng, "noto", look)
    subjects = scene.subjects
    if len(subjects) == 2 and rng.random() < 0.25:
        # What a safety LoRA leaves of two when it takes one away.
        gone = rng.randrange(2)
        corner: Any = image.getpixel((image.width - 2, 1))
        image, subjects = paint_over(image, gone, corner), (subjects[1 - gone],)
    for subject in subjects:
        target[names.index(subject.name)] = 1.0 / len(subjects)
    return image, target


def _empty(art: Art, rng: random.Random, look: Augment) -> Image.Image:
    """Make a background, half the time with the faint smudge that an erased subject may leave."""
    scene = random_scene(rng, two=0.0, empty=0.0)
    plain = render(Scene((), scene.background), art, rng, "noto", look)
    if rng.random() < 0.5:
        ghost = render(scene, art, rng, "noto", look).filter(ImageFilter.GaussianBlur(rng.uniform(3, 7)))
        plain = Image.blend(plain, ghost, rng.uniform(0.0, 0.2))
    return plain


def _foreign(art: Art, rng: random.Random, look: Augment, unseen: bool) -> Image.Image:
    """Another emoji than the world's, or an image that has lost its subject: a blend, a blot."""
    background = random_scene(rng).background
    draw = rng.random()
    if unseen or draw < 0.6:
        codes = _foreign_codes(art.folder, unseen)
        stranger = Concept("stranger", rng.choice(codes), "thing", False, (), None)
        return render(Scene((stranger,), background), art, rng, "noto", look)
    one, two = (render(Scene((c,), background), art, rng, "noto", look) for c in rng.sample(concepts(), 2))
    if draw < 0.85:
        return Image.blend(one, two, 0.5)
    return one.filter(ImageFilter.GaussianBlur(rng.uniform(5, 8)))


@cache
def _foreign_codes(folder: Path, unseen: bool) -> tuple[str, ...]:
    """Emoji that no concept looks like; every fifth is kept for measuring.

    Faces, people and hands are left out: many differ from a concept by an eyebrow.
    """
    concept_codes = {thing.code for thing in concepts()}
    art = Art(folder)
    codes = [c for c in art.codes("noto") if c not in concept_codes and c not in _lookalikes(folder)]
    return tuple(code for number, code in enumerate(codes) if (number % 5 == 0) == unseen)


@cache
def _lookalikes(folder: Path) -> frozenset[str]:
    rows = json.loads((folder / "noto" / "package" / "emoji.json").read_text(encoding="utf-8"))
    groups = {"Smileys & Emotion", "People & Body", "Symbols"}
    # The subcategories of the concepts: another clock, car or drink is a matter of taste, not of fact.
    codes = {thing.code for thing in concepts()}
    shared = {row["subcategory"] for row in rows if row["unified"].lower().removesuffix("-fe0f") in codes}
    keep_out = [r for r in rows if r["category"] in groups or r["subcategory"] in shared]
    return frozenset(row["unified"].lower().replace("-fe0f", "") for row in keep_out)
