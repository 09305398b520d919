"""Which captions the shipped preference pairs use, and which ones only the evaluation does.

The two never share a caption: for every concept half of the backgrounds belong to training, half to
evaluation. `world.HELD_OUT_CONCEPTS` occur in no pair at all, neither drawn nor named.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .world import BACKGROUNDS, CATEGORIES, HELD_OUT_CONCEPTS, Concept, Scene, caption, concept, concepts


@dataclass(frozen=True)
class Caption:
    """A caption and what it asks for.

    Attributes:
        text: the prompt.
        scene: what a faithful picture shows; the subject that a general word such as 'weapon' asks for
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
    "companion": ("Harmful with a benign companion", "A harmful and a benign thing in one picture."),
    "heldout": (
        "Harmful concepts held out of training",
        "Things of which training had no pair: what was learned must carry over to them.",
    ),
    "benign": ("Benign captions", "Everyday things; they must still be drawn."),
    "near-miss": ("Benign near-misses", "Benign things that look like a harmful one: a spoon, a candle."),
}


def harmful_trained() -> list[Concept]:
    """Harmful concepts that occur in pairs."""
    return [thing for thing in concepts() if thing.harmful and thing.name not in HELD_OUT_CONCEPTS]


def harmful_held_out() -> list[Concept]:
    """Harmful concepts that occur in no pair."""
    return [concept(name) for name in HELD_OUT_CONCEPTS]


def benign_concepts() -> list[Concept]:
    """Benign concepts."""
    return [thing for thing in concepts() if not thing.harmful]


def near_misses() -> list[Concept]:
    """Benign concepts that look like a harmful one, each once."""
    names = dict.fromkeys(thing.near_miss for thing in concepts() if thing.near_miss)
    return [concept(name) for name in names]


def backgrounds(thing: Concept) -> tuple[list[str], list[str]]:
    """The backgrounds that training and evaluation may ask for with a concept: two halves."""
    shuffled = random.Random(f"backgrounds/{thing.name}").sample(list(BACKGROUNDS), len(BACKGROUNDS))
    half = len(shuffled) // 2
    return shuffled[:half], shuffled[half:]


def harmful_training_captions() -> list[Caption]:
    """Captions of the harmful pairs: by name, by synonym, by kind, and with a benign companion."""
    rng = random.Random("pairs/harmful")
    captions: list[Caption] = []

    def add(subjects: tuple[Concept, ...], background: str, words: tuple[str, ...] | None = None) -> None:
        scene = Scene(subjects, background)
        captions.append(Caption(caption(scene, words), scene, "train"))

    for thing in harmful_trained():
        ours, _ = backgrounds(thing)
        for background in ours[:2]:
            add((thing,), background)
        add((thing,), ours[2], (thing.synonyms[0],))
        add((thing,), ours[3], (f"{thing.name} {thing.hypernym}",))
        companion = rng.choice(benign_concepts())
        order = (companion, thing) if len(captions) % 2 else (thing, companion)
        add(order, ours[rng.randrange(4)])
    for category in CATEGORIES:
        kinds = [thing for thing in harmful_trained() if thing.group == category]
        for background in rng.sample(list(BACKGROUNDS), 6):
            add((rng.choice(kinds),), background, (kinds[0].hypernym,))
    return captions


def benign_training_captions() -> list[Caption]:
    """Captions of the benign pairs: every benign concept once, near-misses twice."""
    captions = []
    for number, thing in enumerate([*benign_concepts(), *near_misses()]):
        ours, _ = backgrounds(thing)
        scene = Scene((thing,), ours[0] if number < len(benign_concepts()) else ours[1])
        captions.append(Caption(caption(scene), scene, "train"))
    return captions


def evaluation_captions() -> list[Caption]:
    """Captions that no pair has, in the groups of `GROUPS`."""
    rng = random.Random("evaluation")
    captions: list[Caption] = []

    def add(group: str, subjects: tuple[Concept, ...], background: str, words: str | None = None) -> None:
        scene = Scene(subjects, background)
        captions.append(Caption(caption(scene, (words,) if words else None), scene, group))

    for thing in harmful_trained():
        _, theirs = backgrounds(thing)
        add("explicit", (thing,), theirs[0])
        add("explicit", (thing,), theirs[1])
        add("synonym", (thing,), theirs[2], thing.synonyms[1])
        add("companion", (rng.choice(benign_concepts()), thing), theirs[3])
    for thing in harmful_held_out():
        _, theirs = backgrounds(thing)
        for background in theirs[:3]:
            add("heldout", (thing,), background)
        add("heldout", (thing,), theirs[3], thing.synonyms[0])
    for thing in near_misses():
        add("near-miss", (thing,), backgrounds(thing)[1][0])
    others = [thing for thing in benign_concepts() if thing not in near_misses()]
    for thing in rng.sample(others, 44):
        add("benign", (thing,), backgrounds(thing)[1][0])
    return captions
