"""Result files: one for each world, row and seed, filled part by part, by any number of processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scdpo_core.io.files import write_json
from scdpo_core.run_store.file_lock import try_exclusive


@dataclass
class Result:
    """What is known of one world, row and seed.

    Attributes:
        path: its file.
        training: seconds, steps, computed images, settings that differ from the preset.
        hits: see `measures.Measured`.
        values: see `measures.Measured`.
        figures: see `measures.Measured`.
        attacks: by name, 'hits' and 'budget'.
        frontier: rows of strength, harmful, benign, SSIM.
    """

    path: Path
    training: dict[str, Any] = field(default_factory=dict)
    hits: dict[str, list[bool]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    attacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    frontier: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Result:
        """What an earlier call found, or nothing yet."""
        if not path.exists():
            return cls(path)
        known: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(path, **known)

    def write(self) -> None:
        """Keep what is known."""
        known = {key: value for key, value in vars(self).items() if key != "path"}
        write_json(self.path, known)

    @property
    def lora(self) -> Path:
        """The trained LoRA beside the file."""
        return self.path.with_suffix(".safetensors")

    def rate(self, measure: str) -> float | None:
        """Share of hits; None where nothing was counted."""
        hits = self.hits.get(measure)
        return sum(hits) / len(hits) if hits else None

    def mean(self, measure: str) -> float | None:
        """Mean of a value, or a figure."""
        values = self.values.get(measure)
        return sum(values) / len(values) if values else self.figures.get(measure)

    def attack_rate(self, name: str) -> float | None:
        """Share of an attack's captions that were broken."""
        found = self.attacks.get(name)
        return None if found is None else sum(found["hits"]) / len(found["hits"])


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process alone works on a file until the block ends; False where another one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield try_exclusive(handle)
    finally:
        os.close(handle)
