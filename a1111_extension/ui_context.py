"""What the tab knows of the program that it lives in: a host, or the page that stands alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scdpo_core.cost.protocol import Scorer
from scdpo_core.family_info import MICRO

from .jobs import Jobs
from .path_policy import Reach


@dataclass(frozen=True)
class Desk:
    """The tab's surroundings.

    Attributes:
        jobs: trainings and comparisons.
        preferences: the folder that is proposed for preference pairs.
        images: the folder that is proposed for images to compare or score; '' for none.
        bases: base models to train on, by the name that the artist knows.
        base: the one that is proposed.
        loras: LoRAs to compare beside those of finished runs, by name.
        cost_models: what can score.
        in_use: which of them is proposed.
        scorer: loads one.
        reach: what somebody at the page may name.
    """

    jobs: Jobs
    preferences: Path
    images: str
    bases: Callable[[], Mapping[str, str]]
    base: Callable[[], str]
    loras: Callable[[], Mapping[str, Path]]
    cost_models: Callable[[], Sequence[str]]
    in_use: Callable[[], str]
    scorer: Callable[[str], Scorer]
    reach: Reach = field(default_factory=Reach)

    def embedded_base(self) -> str:
        """Return the name of the embedded model among the bases: every example works with it."""
        return next((name for name, value in self.bases().items() if value == MICRO), MICRO)

    def all_loras(self) -> dict[str, Path]:
        """LoRAs of finished runs, newest first, then the others."""
        runs = {name: self.jobs.root / name / f"{name}.safetensors" for name in self.jobs.names("lora")}
        return {name: file for name, file in runs.items() if file.is_file()} | {
            name: file for name, file in self.loras().items() if name not in runs
        }
