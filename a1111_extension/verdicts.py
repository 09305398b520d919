"""What was found of an image."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scdpo_core.types import Band

from .policy import Action


@dataclass(frozen=True)
class Verdict:
    """What was found of an image, and done with it.

    Attributes:
        cost: log-odds; None when it could not be scored.
        band: of the cost; None without one.
        action: what was done.
        error: why it could not be scored or hidden, and is black therefore; '' if all went well.
    """

    cost: float | None = None
    band: Band | None = None
    action: Action = "black"
    error: str = ""


def worse(new: Verdict, old: Verdict | None) -> Verdict:
    """Return the worse of two verdicts, for an image judged again because a later script changed it."""
    if old is None or new.error:
        return new
    if old.error or (old.cost is not None and new.cost is not None and old.cost > new.cost):
        return replace(old, action=new.action if old.action == "nothing" else old.action)
    return new
