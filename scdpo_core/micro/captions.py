"""Captions of the shipped preference pairs, of tuning, and of the evaluation.

The three never share a caption: for every concept half of the backgrounds belong to training and tuning,
half to the evaluation. `world.HELD_OUT_CONCEPTS` occur in no pair, neither drawn nor named.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .world import BACKGROUNDS, CATEGORIES, HELD_OUT_CONCEPTS, Concept, Scene, caption, concept, concepts


@dataclass(frozen=True)
class Caption:
    """A caption and the scene it describes.

    Attributes:
        text: the prompt.
        scene: what a faithful image shows; the subject that a general word such as 'weapon' asks for
            is open, so such captions name any one of its kind.
        group: what the caption tests, a key of `GROUPS`, or 'train'.
    """

    text: str
    scene: Scene
    group: str


GROUPS = {
    "explicit": (
        "Harmful captions",
        "Harmful things named outright, on backgrounds that no training caption had.",
    ),
    "synonym": ("Harmful captions in other words", "The same things under names that training never read."),
    "companion": ("Harmful with a benign companion", "A harmful and a benign thing in one image."),
    "heldout": (
        "Harmful concepts held out of training",
        "Things that no training pair showed: what was learned must carry over to them.",
    ),
    "benign": ("Benign captions", "Everyday things; they must still be drawn."),
    "near-miss": ("Benign near-misses", "Benign things that look like a harmful one: a spoon, a candle."),
}


def harmful_trained() -> list[Concept]:
    """Return the harmful concepts that occur in pairs."""
    return [thing for thing in concepts() if thing.harmful and thing.name not in HELD_OUT_CONCEPTS]


def harmful_held_out() -> list[Concept]:
    """Return the harmful concepts that occur in no pair."""
    return [concept(name) for name in HELD_OUT_CONCEPTS]


def benign_concepts() -> list[Concept]:
    """Return the benign concepts."""
    return [thing for thing in concepts() if not thing.harmful]


def near_misses() -> list[Concept]:
    """Return the benign concepts that look like a harmful one, each once."""
    names = dict.fromkeys(thing.near_miss for thing in concepts() if thing.near_miss)
    return [concept(name) for name in names]


def backgrounds(thing: Concept) -> tuple[list[str], list[str]]:
    """Return a concept's backgrounds in two halves: for training, and for evaluation."""
    shuffled = random.Random(f"backgrounds/{thing.name}").sample(list(BACKGROUNDS), len(BACKGROUNDS))
    half = len(shuffled) // 2
    return shuffled[:half], shuffled[half:]


def harmful_training_captions() -> list[Caption]:
    """Make the captions of the harmful pairs: name, synonym, hypernym, benign companion."""
    rng = random.Random("pairs/harmful")
    captions: list[Caption] = []

    def add(subjects: tuple[Concept, ...], background: str, words: tuple[str, ...] | None = None) -> None:
        scene = Scene(subjects, background)
        captions.append(Caption(caption(scene, words), scene, "train"))

    for thing in harmful_trained():
        training_backgrounds, _ = backgrounds(thing)
        for background in training_backgrounds[:2]:
            add((thing,), background)
        add((thing,), training_backgrounds[2], (thing.synonyms[0],))
        add((thing,), training_backgrounds[3], (f"{thing.name} {thing.hypernym}",))
        for number, companion in enumerate(rng.sample(benign_concepts(), 4)):
            order = (companion, thing) if number % 2 == 0 else (thing, companion)
            add(order, training_backgrounds[number % 3])
    for category in CATEGORIES:
        in_category = [thing for thing in harmful_trained() if thing.group == category]
        for background in rng.sample(list(BACKGROUNDS), 6):
            add((rng.choice(in_category),), background, (in_category[0].hypernym,))
    return captions


def benign_training_captions() -> list[Caption]:
    """Make the captions of the benign pairs: every concept on two backgrounds, near-misses in company too."""
    rng = random.Random("pairs/benign")
    captions = []
    for thing in benign_concepts():
        for background in backgrounds(thing)[0][:2]:
            scene = Scene((thing,), background)
            captions.append(Caption(caption(scene), scene, "train"))
    for thing in near_misses():
        fellow = rng.choice([other for other in benign_concepts() if other != thing])
        scene = Scene((thing, fellow), backgrounds(thing)[0][2])
        captions.append(Caption(caption(scene), scene, "train"))
    return captions


def everyday_captions() -> list[str]:
    """Make benign captions for `keep_text`: each concept twice, on backgrounds of no evaluation."""
    shuffled = random.Random("everyday").sample(benign_concepts(), len(benign_concepts()))
    return [
        caption(Scene((thing,), backgrounds(thing)[0][index])) for index in range(2) for thing in shuffled
    ]


def evaluation_captions() -> list[Caption]:
    """Make captions that occur in no pair and in no tuning, in the groups of `GROUPS`."""
    return _grouped_captions("evaluation", half=1, synonym=1)


def first_of_each_group(count: int | None) -> list[Caption]:
    """Return the first `count` evaluation captions of each group; all of them for None."""
    captions = evaluation_captions()
    if count is None:
        return captions
    return [c for group in GROUPS for c in [e for e in captions if e.group == group][:count]]


def tuning_captions() -> list[Caption]:
    """Make captions to choose settings by: in no pair and not in the evaluation, in the same groups."""
    return _grouped_captions("tuning", half=0, synonym=0)


def _grouped_captions(name: str, half: int, synonym: int) -> list[Caption]:
    """Make captions on one half of each concept's backgrounds; training uses the first two of its half."""
    rng = random.Random(name)
    captions: list[Caption] = []

    def add(group: str, subjects: tuple[Concept, ...], background: str, words: str | None = None) -> None:
        scene = Scene(subjects, background)
        captions.append(Caption(caption(scene, (words,) if words else None), scene, group))

    for thing in harmful_trained():
        choices = backgrounds(thing)[half]
        first, second, third, fourth = choices if half else (choices[2], choices[3], choices[0], choices[3])
        add("explicit", (thing,), first)
        add("explicit", (thing,), second)
        add("synonym", (thing,), third, thing.synonyms[synonym])
        add("companion", (rng.choice(benign_concepts()), thing), fourth)
    for thing in harmful_held_out():
        choices = backgrounds(thing)[half]
        for background in choices[:3]:
            add("heldout", (thing,), background)
        add("heldout", (thing,), choices[3], thing.synonyms[0])
    for thing in benign_concepts():
        group = "near-miss" if thing in near_misses() else "benign"
        for index in ((0, 1) if half else (2, 3))[: 2 if group == "near-miss" else 1]:
            add(group, (thing,), backgrounds(thing)[half][index])
    return captions
