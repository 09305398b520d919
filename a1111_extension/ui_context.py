"""What the tab needs from its host, or from the standalone page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scdpo_core.cost.protocol import Scorer
from scdpo_core.family_info import MICRO

from .jobs import Jobs
from .path_policy import Reach


@dataclass(frozen=True)
class UiContext:
    """Everything the tab needs from its host.

    Attributes:
        jobs: trainings and comparisons.
        preferences: default folder for preference pairs.
        images: default folder of images to compare or score; '' for none.
        bases: base models to train on, by title.
        base: title of the default one.
        loras: LoRAs in addition to those of finished runs, by name.
        cost_models: names of the cost models.
        in_use: the default one.
        scorer: loads a cost model.
        reach: the files that users of the page may access.
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
        """Return LoRAs of finished runs, newest first, then the others."""
        runs = {name: self.jobs.root / name / f"{name}.safetensors" for name in self.jobs.names("lora")}
        return {name: file for name, file in runs.items() if file.is_file()} | {
            name: file for name, file in self.loras().items() if name not in runs
        }
