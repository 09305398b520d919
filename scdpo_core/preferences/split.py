"""Holding pairs out of training, the same ones in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ..types import LabelledPair, ScdpoError


def hold_out(labelled: Sequence[LabelledPair], share: float) -> tuple[list[int], list[int]]:
    """Return the indexes of the pairs to train on, and of those to hold out.

    Prompts are held out whole, for pairs of one prompt know of each other. They are ranked by a hash of
    their text and taken from the top until `share` of the pairs is reached, so neither the seed nor the
    order of the folder matters, and further pairs change the choice as little as can be.

    Args:
        labelled: all pairs.
        share: of them to hold out, 0..1; 0 holds out none, more holds out at least one prompt.

    Raises:
        ScdpoError: all pairs would be held out.
    """
    by_prompt: dict[str, list[int]] = {}
    for index, pair in enumerate(labelled):
        by_prompt.setdefault(pair.pair.prompt, []).append(index)
    held_out: list[int] = []
    for prompt in sorted(by_prompt, key=lambda text: hashlib.sha256(text.encode("utf-8")).digest()):
        if len(held_out) >= share * len(labelled):
            break
        held_out += by_prompt[prompt]
    if len(held_out) == len(labelled):
        raise ScdpoError(
            f"A share of {share:g} of {len(labelled)} pairs under {len(by_prompt)} prompts leaves nothing to "
            "train on, because prompts are never split. Lower --validation, or add pairs under other prompts."
        )
    training = set(range(len(labelled))) - set(held_out)
    return sorted(training), sorted(held_out)
