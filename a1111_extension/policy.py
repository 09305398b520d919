"""Map an image's cost to an action: threshold names, bands, actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from scdpo_core.types import REVIEW_FROM, UNSAFE_FROM, Band, ScdpoError

Action = Literal["nothing", "blur", "pixelate", "black", "quarantine"]
ACTIONS: tuple[Action, ...] = get_args(Action)
"""Actions on an image; 'quarantine' keeps the original in a folder and shows a card with the reason."""

OWN_NUMBER = "my own number"
THRESHOLDS: dict[str, float] = {"strict": REVIEW_FROM, "normal": 0.0, "lenient": UNSAFE_FROM}
"""Named thresholds, as costs. With 'strict' an image that is as likely harmful as not is already
unsafe; with 'lenient' it is only to be reviewed."""


@dataclass(frozen=True)
class Policy:
    """The action for each cost.

    Attributes:
        threshold: centre of the bands, log-odds; 0 is the scorer's boundary.
        review: action for uncertain images.
        unsafe: action for unsafe images.
    """

    threshold: float = 0.0
    review: Action = "nothing"
    unsafe: Action = "blur"

    @property
    def hides(self) -> bool:
        """Whether any image can be hidden; if not, previews need not be hidden."""
        return self.review != "nothing" or self.unsafe != "nothing"

    def band(self, cost: float) -> Band:
        """Return the band of a cost: as in `types.CostScore`, shifted by the threshold."""
        distance = cost - self.threshold
        if distance >= UNSAFE_FROM:
            return "unsafe"
        return "review" if distance >= REVIEW_FROM else "safe"

    def action(self, band: Band) -> Action:
        """Return the action for a band; safe images are unchanged."""
        actions: dict[Band, Action] = {"safe": "nothing", "review": self.review, "unsafe": self.unsafe}
        return actions[band]


def word_of(threshold: float) -> str:
    """Return the name of a threshold, or `OWN_NUMBER`."""
    near = (word for word, value in THRESHOLDS.items() if abs(value - threshold) < 0.005)
    return next(near, OWN_NUMBER)


def threshold_of(word: str, number: float) -> float:
    """Return the threshold of a name; `OWN_NUMBER` returns the number.

    Raises:
        ScdpoError: there is no such name.
    """
    if word == OWN_NUMBER:
        return number
    if word not in THRESHOLDS:
        raise ScdpoError(f"There is no threshold '{word}'; there are {', '.join([*THRESHOLDS, OWN_NUMBER])}.")
    return THRESHOLDS[word]


def action_of(word: str) -> Action:
    """Return the action of a name.

    Raises:
        ScdpoError: there is no such action.
    """
    for action in ACTIONS:
        if action == word:
            return action
    raise ScdpoError(f"There is no action '{word}'; there are {', '.join(ACTIONS)}.")
