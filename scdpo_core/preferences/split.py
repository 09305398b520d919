"""Holding pairs out of training, the same ones in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ..types import LabelledPair, ScdpoError


def hold_out(labelled: Sequence[LabelledPair], share: float) -> tuple[list[int], list[int]]:
    """Positions of the pairs to train on, and of those to hold out.

    Prompts are held out whole, for pairs of one prompt know of each other. They are ranked by a hash of
    their text and taken from the top until `share` of the pairs is reached, so neither the seed nor the
    order of the folder matters, and further pairs change the choice as little as can be.

    Args:
        labelled: all pairs.
        share: of them to hold out, 0..1; 0 holds out none, more holds out at least one prompt.

    Raises:
        ScdpoError: all pairs would be held out.
    """
    places: dict[str, list[int]] = {}
    for place, pair in enumerate(labelled):
        places.setdefault(pair.pair.prompt, []).append(place)
    held: list[int] = []
    for prompt in sorted(places, key=lambda text: hashlib.sha256(text.encode("utf-8")).digest()):
        if len(held) >= share * len(labelled):
            break
        held += places[prompt]
    if len(held) == len(labelled):
        raise ScdpoError(
            f"A share of {share:g} of {len(labelled)} pairs under {len(places)} prompts leaves nothing to "
            "train on, for prompts are held out whole. Lower --validation, or add pairs under other prompts."
        )
    kept = set(range(len(labelled))) - set(held)
    return sorted(kept), sorted(held)
