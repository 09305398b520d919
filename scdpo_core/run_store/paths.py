"""The folder of a run: what lies where, and what a killed process left behind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..training.samples import FOLDER as SAMPLES
from . import folder as names

# The names of `files.atomic_path`, which end in eight characters of `tempfile`.
_HALF_WRITTEN = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?")


@dataclass(frozen=True)
class RunFolder:
    """PATH/NAME and what lies in it.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """Of the run and of its LoRA."""
        return self.path.name

    @property
    def lora(self) -> Path:
        """The finished LoRA."""
        return names.result_of(self.path)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / names.CHECKPOINTS

    @property
    def lora_facts(self) -> Path:
        """What a LoRA that is exported from a checkpoint says of itself."""
        return self.checkpoints / "lora.json"

    @property
    def loras(self) -> Path:
        """The folder of the LoRAs kept on the way."""
        return self.path / "loras"

    @property
    def drawn_pairs(self) -> Path:
        """The preference folder of a run from prompts alone, which the base model draws."""
        return self.path / "drawn_pairs"

    def lora_at(self, step: int) -> Path:
        """The LoRA kept at a step."""
        return self.loras / f"{self.name}-{step:06d}.safetensors"

    @property
    def events(self) -> Path:
        """The log of events."""
        return self.path / names.EVENTS

    @property
    def job(self) -> Path:
        """The settings of the run."""
        return self.path / names.JOB

    @property
    def stop(self) -> Path:
        """A file of this name asks the run to save and leave."""
        return self.path / names.STOP

    def has_results(self) -> bool:
        """Whether training has left something here that another run must not overwrite."""
        return names.has_results(self.path)

    @property
    def reached(self) -> int:
        """Steps behind the newest checkpoint, 0 if there is none."""
        return max(names.checkpoint_steps(self.checkpoints), default=0)

    @property
    def curves(self) -> Path:
        """The training curves."""
        return self.path / "curves.png"

    @property
    def relabel(self) -> Path:
        """What became of each pair when costs were asked for."""
        return self.path / "relabel.json"

    @property
    def costs(self) -> Path:
        """What the cost model said of each image."""
        return self.cache / "costs.json"

    @property
    def cache(self) -> Path:
        """Encoded images, unless they are kept elsewhere."""
        return self.path / "cache"

    def sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for place in (self.path, self.checkpoints, self.loras, self.cache, self.path / SAMPLES):
            for path in place.glob(".*"):
                if _HALF_WRITTEN.fullmatch(path.name) and path.is_file():
                    path.unlink(missing_ok=True)
