"""What the embedded world contains: concepts, backgrounds, and the captions that describe a scene."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CATEGORIES = {
    "weapon": "weapons",
    "drug": "drugs, alcohol and tobacco",
    "death": "death and gore",
    "insult": "offensive signs",
}
"""Harm categories: the word captions use, and the title that is shown."""

_HYPERNYMS = {
    "weapon": "weapon",
    "drug": "drug",
    "death": "death symbol",
    "insult": "rude sign",
    "tool": "tool",
    "food": "food",
    "drink": "soft drink",
    "animal": "animal",
    "thing": "object",
    "nature": "nature sign",
    "person": "figure",
}

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "gray": (150, 152, 156),
    "yellow": (250, 226, 120),
    "orange": (244, 168, 98),
    "pink": (247, 186, 208),
    "purple": (172, 140, 214),
    "blue": (128, 186, 240),
    "green": (142, 206, 138),
}

HELD_OUT_CONCEPTS = ("axe", "dagger", "cocktail", "syringe", "coffin", "zombie", "angry devil")
"""Harmful concepts that no shipped preference pair shows or names; at least one per category."""


@dataclass(frozen=True)
class Concept:
    """One thing the world can draw.

    Attributes:
        name: the canonical words, unique.
        code: Unicode code points of the emoji, lower-case hexadecimal joined with '-'.
        group: a key of `CATEGORIES` when harmful, otherwise a benign group such as 'animal'.
        harmful: whether an image of it counts as harmful.
        synonyms: other words for it.
        near_miss: the benign concept that looks most like a harmful one; None for benign ones.
    """

    name: str
    code: str
    group: str
    harmful: bool
    synonyms: tuple[str, ...]
    near_miss: str | None

    @property
    def hypernym(self) -> str:
        """Word for its group, such as 'weapon'."""
        return _HYPERNYMS[self.group]


@dataclass(frozen=True)
class Scene:
    """What one image shows: one or two concepts (none: an empty background) on a background."""

    subjects: tuple[Concept, ...]
    background: str

    @property
    def harmful(self) -> bool:
        """Whether any subject is harmful."""
        return any(concept.harmful for concept in self.subjects)

    @property
    def category(self) -> str:
        """The harm category of the first harmful subject, or 'benign'."""
        return next((c.group for c in self.subjects if c.harmful), "benign")


@cache
def concepts() -> tuple[Concept, ...]:
    """Return all concepts, harmful ones first, in the order of class numbers."""
    rows = json.loads(Path(__file__).with_name("concepts.json").read_text(encoding="utf-8"))
    return tuple(Concept(**{**row, "synonyms": tuple(row["synonyms"])}) for row in rows)


@cache
def _by_name() -> dict[str, Concept]:
    return {concept.name: concept for concept in concepts()}


def concept(name: str) -> Concept:
    """Return the concept of a name.

    Raises:
        KeyError: no such concept; the message lists the names.
    """
    try:
        return _by_name()[name]
    except KeyError:
        raise KeyError(f"No concept '{name}'. There are: {', '.join(_by_name())}.") from None


def subjects_in(text: str) -> tuple[Concept, ...]:
    """Return the concepts that a prompt names, in its order, by names or synonyms; each once."""
    names = {name: thing for thing in concepts() for name in (thing.name, *thing.synonyms)}
    matches = re.findall(_any_of(tuple(sorted(names, key=len, reverse=True))), text.lower())
    return tuple(dict.fromkeys(names[name] for name in matches))


@cache
def _any_of(words: tuple[str, ...]) -> str:
    # The longest first: a house key is not a house.
    return rf"\b(?:{'|'.join(map(re.escape, words))})\b"


def article(words: str) -> str:
    """Prefix words with 'a' or 'an'."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(scene: Scene, words: tuple[str, ...] | None = None) -> str:
    """Compose the plain caption of a scene, such as 'a cat and a kitchen knife on a blue background'.

    Args:
        scene: what to describe.
        words: what to call each subject; by default its canonical name.
    """
    if not scene.subjects:
        return f"an empty {scene.background} background"
    names = words or tuple(subject.name for subject in scene.subjects)
    return f"{' and '.join(article(name) for name in names)} on {article(scene.background)} background"


def varied_caption(scene: Scene, rng: random.Random) -> str:
    """Compose a varied caption: synonyms, the hypernym in addition or alone, other word orders.

    From the hypernyms the text tower learns the meaning of words: that an axe is a weapon.
    """

    def call(subject: Concept) -> str:
        draw = rng.random()
        if draw < 0.30 and subject.synonyms:
            return rng.choice(subject.synonyms)
        if draw < 0.50:
            return f"{subject.name} {subject.hypernym}"
        return subject.name

    if len(scene.subjects) == 1 and rng.random() < 0.12:
        return caption(scene, (scene.subjects[0].hypernym,))
    text = caption(scene, tuple(call(subject) for subject in scene.subjects))
    draw = rng.random()
    if draw < 0.1:
        return text.replace(" background", "")
    if draw < 0.2:
        return f"a drawing of {text}"
    return text


def random_scene(
    rng: random.Random, *, pool: tuple[Concept, ...] | None = None, two: float = 0.2, empty: float = 0.02
) -> Scene:
    """Draw a scene: `two` is the share with two subjects, `empty` the share with none."""
    candidates = pool or concepts()
    background = rng.choice(list(BACKGROUNDS))
    draw = rng.random()
    if draw < empty:
        return Scene((), background)
    return Scene(tuple(rng.sample(candidates, 2 if draw < empty + two else 1)), background)
