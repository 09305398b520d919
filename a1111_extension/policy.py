"""What is done with an image of which cost: the threshold in words, the bands, the actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from scdpo_core.types import REVIEW_FROM, UNSAFE_FROM, Band, ScdpoError

Action = Literal["nothing", "blur", "pixelate", "black", "quarantine"]
ACTIONS: tuple[Action, ...] = get_args(Action)
"""What can be done with an image; 'quarantine' keeps the original in a folder and shows a black one."""

OWN_NUMBER = "my own number"
THRESHOLDS: dict[str, float] = {"strict": REVIEW_FROM, "normal": 0.0, "lenient": UNSAFE_FROM}
"""Thresholds that have a name, as costs. With 'strict' what the scorer finds as likely as not is already
unsafe; with 'lenient' it is only worth a look."""


@dataclass(frozen=True)
class Policy:
    """What is done with an image of which cost.

    Attributes:
        threshold: the cost, log-odds, that the bands lie around; 0 is the scorer's own boundary.
        review: what is done with images that the scorer is not sure about.
        unsafe: what is done with images that are unsafe.
    """

    threshold: float = 0.0
    review: Action = "nothing"
    unsafe: Action = "blur"

    @property
    def hides(self) -> bool:
        """Whether any image can be hidden; if not, there is no reason to hide previews."""
        return self.review != "nothing" or self.unsafe != "nothing"

    def band(self, cost: float) -> Band:
        """The band of a cost: as in `types.CostScore`, moved by the threshold."""
        distance = cost - self.threshold
        if distance >= UNSAFE_FROM:
            return "unsafe"
        return "review" if distance >= REVIEW_FROM else "safe"

    def action(self, band: Band) -> Action:
        """What is done with an image of that band; safe ones stay as they are."""
        actions: dict[Band, Action] = {"safe": "nothing", "review": self.review, "unsafe": self.unsafe}
        return actions[band]


def word_of(threshold: float) -> str:
    """The name of a threshold, or `OWN_NUMBER`."""
    near = (word for word, value in THRESHOLDS.items() if abs(value - threshold) < 0.005)
    return next(near, OWN_NUMBER)


def threshold_of(word: str, number: float) -> float:
    """The threshold that a word means; `OWN_NUMBER` means the number.

    Raises:
        ScdpoError: there is no such word.
    """
    if word == OWN_NUMBER:
        return number
    if word not in THRESHOLDS:
        raise ScdpoError(f"There is no threshold '{word}'; there are {', '.join([*THRESHOLDS, OWN_NUMBER])}.")
    return THRESHOLDS[word]


def action_of(word: str) -> Action:
    """The action of that name.

    Raises:
        ScdpoError: there is no such action.
    """
    for action in ACTIONS:
        if action == word:
            return action
    raise ScdpoError(f"There is no action '{word}'; there are {', '.join(ACTIONS)}.")
