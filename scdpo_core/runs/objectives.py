"""The objectives that doors offer, with labels and explanations; others are available as a setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..types import ScdpoError


@dataclass(frozen=True)
class OfferedObjective:
    """An objective with its label and explanation.

    Attributes:
        name: of the setting `objective`.
        label: what menus show.
        worth: what it does and how well, for artists.
    """

    name: str
    label: str
    worth: str


OFFERED: tuple[OfferedObjective, ...] = (
    OfferedObjective(
        "redirect_keep",
        "redirect and keep",
        "Harmful prompts lead to your chosen images; everything else stays as it was. Ours. On "
        "the embedded model it leaves the least harm, keeps the most and withstands attacks best.",
    ),
    OfferedObjective(
        "sc_dpo",
        "preference (SC-DPO)",
        "Chosen images are preferred to rejected ones, difficult pairs first. The paper's method, as far as "
        "it is public. On the embedded model it does as well as imitating the chosen images.",
    ),
    OfferedObjective(
        "winner_only",
        "imitate chosen",
        "Plain fine-tuning on the chosen images, for comparison. Removes most harm under plain prompts, but "
        "harm returns from a harmful start image or at a lower LoRA weight.",
    ),
    OfferedObjective(
        "distil",
        "follow safe prompts",
        "A harmful prompt is drawn like its safe prompt, from the folder safe_prompts. None of your images "
        "is copied. Ours. On the embedded model it comes close behind redirect and keep.",
    ),
)
"""The default first."""

LABELS: tuple[str, ...] = tuple(one.label for one in OFFERED)
DEFAULT_LABEL = LABELS[0]


def offered(label: str) -> OfferedObjective:
    """Return the objective of a label.

    Raises:
        ScdpoError: there is none.
    """
    match = next((one for one in OFFERED if one.label == label), None)
    if match is None:
        raise ScdpoError(f"There is no objective '{label}'. Choose one of: {', '.join(LABELS)}.")
    return match


def objective_choice(label: str) -> Mapping[str, Mapping[str, Any]]:
    """Return what a label changes in the settings of a run, by section.

    The default changes nothing, so that further settings can still name any objective.

    Raises:
        ScdpoError: there is no such label.
    """
    name = offered(label).name
    return {} if label == DEFAULT_LABEL else {"objective": {"objective": name}}
