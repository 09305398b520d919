"""The scorer in use, loaded once and kept."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from scdpo_core.cost.scorers import Scorer, load_scorer


@dataclass(frozen=True)
class _Loaded:
    spec: str
    device: str
    changed: int | None
    scorer: Scorer


class ScorerCache:
    """Keeps the last requested scorer; thread-safe."""

    def __init__(self) -> None:
        """Begin empty: an extension that is not used costs no memory."""
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None

    def get(self, spec: str, device: str) -> Scorer:
        """Return the scorer, reloaded when another one is requested or its file has changed.

        Args:
            spec: as `scorers.load_scorer`.
            device: where it runs.

        Raises:
            ScdpoError: there is none of that name, or it cannot be loaded.
        """
        file = Path(spec).expanduser()
        changed = file.stat().st_mtime_ns if file.is_file() else None
        with self._lock:
            loaded = self._loaded
            if loaded is None or (loaded.spec, loaded.device, loaded.changed) != (spec, device, changed):
                # Forge runs scripts in inference mode, and tensors made there cannot be used elsewhere.
                with torch.inference_mode(False):
                    loaded = _Loaded(spec, device, changed, load_scorer(spec, device))
                self._loaded = loaded
            return loaded.scorer
