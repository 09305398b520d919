"""The attacks that an evaluation can be asked for, by name and strength: 'img2img' or 'img2img=0.8'."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AttackName:
    """An attack to choose from.

    Attributes:
        title: for people.
        about: one sentence on what is done.
        default: its strength where none is given; '' for one that has none.
        problem: what is wrong with a strength, a sentence; '' for nothing.
        words: whether it replaces words of the prompts.
        harmful: whether it starts from images of harmful prompts, or from nothing; the other one starts from
            benign images.
    """

    title: str
    about: str
    default: str
    problem: Callable[[str], str]
    words: bool = False
    harmful: bool = True


def _share(text: str) -> str:
    return "" if _number(text, 0, 1) else "Give a number above 0 and at most 1, such as 0.6."


def _steps(text: str) -> str:
    return "" if _number(text, 0, 10_000) and text.isdigit() else "Give a number of steps, such as 20."


def _product(text: str) -> str:
    match = re.fullmatch(r"(\d{1,2})x(\d{1,4})", text)
    return "" if match and int(match[1]) and int(match[2]) else "Give two numbers, such as 1x40."


def _file(text: str) -> str:
    return "" if Path(text).expanduser().is_file() else f"There is no LoRA {text!r}."


def _nothing(text: str) -> str:
    return f"It has no strength; leave out '={text}'." if text else ""


def _number(text: str, above: float, most: float) -> bool:
    try:
        return above < float(text) <= most
    except ValueError:
        return False


ATTACKS: dict[str, AttackName] = {
    "img2img": AttackName(
        "Begin from a harmful image",
        "The base model's image for the same prompt under noise, drawn on with the LoRA (image to image; the "
        "strength is the share of the steps that is taken).",
        "0.6",
        _share,
    ),
    "weight": AttackName(
        "The LoRA at a lower weight",
        "The same prompts with the LoRA at less than its weight.",
        "0.75",
        _share,
    ),
    "appended": AttackName(
        "Benign words appended", "The same prompts with a few benign words behind them.", "", _nothing
    ),
    "stacked": AttackName(
        "Another LoRA on top",
        "The safety LoRA folded into the weights and another LoRA put on top of it.",
        "",
        _file,
    ),
    "relearn": AttackName(
        "Relearning from benign images",
        "A new LoRA learns for a few steps from the base model's benign images, as a style LoRA would.",
        "20",
        _steps,
        harmful=False,
    ),
    "relearn-harmful": AttackName(
        "Relearning from harmful images",
        "A new LoRA learns for a few steps from the base model's images for harmful prompts.",
        "20",
        _steps,
    ),
    "inversion": AttackName(
        "Concept inversion",
        "Token embeddings are learnt from the base model's images and stand in the place of a word (textual "
        "inversion; TOKENSxSTEPS).",
        "1x40",
        _product,
        words=True,
    ),
    "search": AttackName(
        "Prompt search over the vocabulary",
        "Other words of the vocabulary are searched for that stand in the place of a word (LENGTHxROUNDS).",
        "3x2",
        _product,
        words=True,
    ),
}
"""Every attack, by its name."""


def split_spec(spec: str) -> tuple[str, str]:
    """Split 'name' or 'name=strength'; the default strength where none is given."""
    name, _, strength = spec.partition("=")
    attack = ATTACKS.get(name)
    return name, strength or (attack.default if attack else "")


def attack_problem(spec: str) -> str:
    """Return what is wrong with an attack as somebody asks for it, a sentence; '' for nothing."""
    name, strength = split_spec(spec)
    if name not in ATTACKS:
        return f"There is no attack '{name}'. Choose from: {', '.join(ATTACKS)}."
    if wrong := ATTACKS[name].problem(strength):
        return f"--attack {spec}: {wrong}"
    return ""


def needs_words(spec: str) -> bool:
    """Return whether an attack replaces words of the prompts."""
    return ATTACKS[split_spec(spec)[0]].words


def needs_harmful(spec: str) -> bool:
    """Return whether an attack does without benign images."""
    return ATTACKS[split_spec(spec)[0]].harmful
