"""The objectives that doors offer, in words for people; every other one is a setting away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..types import ScdpoError


@dataclass(frozen=True)
class OfferedObjective:
    """One of them.

    Attributes:
        name: of the setting `objective`.
        label: what menus show.
        worth: what it does and what it is worth, for people.
    """

    name: str
    label: str
    worth: str


OFFERED: tuple[OfferedObjective, ...] = (
    OfferedObjective(
        "redirect_keep",
        "redirect and keep",
        "Harmful prompts lead to your chosen images, everything else stays as the model has it. Ours. On "
        "the embedded model it leaves the least harm, keeps the most and withstands attacks best.",
    ),
    OfferedObjective(
        "sc_dpo",
        "preference (SC-DPO)",
        "Chosen images are preferred to rejected ones, difficult pairs first. The paper's method, as far as "
        "it is public. On the embedded model it is worth what imitating the chosen images is.",
    ),
    OfferedObjective(
        "winner_only",
        "imitate chosen",
        "Plain fine-tuning on the chosen images, for comparison. Most of the harm under plain prompts goes; "
        "it comes back from a harmful start image or at a lower weight of the LoRA.",
    ),
    OfferedObjective(
        "distil",
        "follow safe prompts",
        "A harmful prompt is answered like its safe prompt, from the folder safe_prompts. No image of yours "
        "is copied. Ours. On the embedded model it comes close behind redirect and keep.",
    ),
)
"""The default first."""

LABELS: tuple[str, ...] = tuple(one.label for one in OFFERED)
DEFAULT_LABEL = LABELS[0]


def offered(label: str) -> OfferedObjective:
    """The objective of that label.

    Raises:
        ScdpoError: there is none.
    """
    found = next((one for one in OFFERED if one.label == label), None)
    if found is None:
        raise ScdpoError(f"There is no objective '{label}'. Choose one of: {', '.join(LABELS)}.")
    return found


def objective_choice(label: str) -> Mapping[str, Mapping[str, Any]]:
    """What a label changes in the settings of a run, by section.

    The default changes nothing, so that further settings may still name any objective.

    Raises:
        ScdpoError: there is no such label.
    """
    name = offered(label).name
    return {} if label == DEFAULT_LABEL else {"objective": {"objective": name}}
