"""Model families: everything that differs from one architecture to the next lives here."""

from __future__ import annotations

from ..types import ScdpoError
from .base import Family, LoadedModel, Prediction, Weighting
from .sd1 import SD1

FAMILIES: dict[str, Family] = {"sd1": SD1()}


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        ScdpoError: there is none; lists those that there are.
    """
    if name not in FAMILIES:
        raise ScdpoError(f"There is no model family '{name}'. Choose one of: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


__all__ = ["FAMILIES", "Family", "LoadedModel", "Prediction", "Weighting", "family"]
