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


class Shelf:
    """Keeps the scorer that was asked for last; safe to use from several threads."""

    def __init__(self) -> None:
        """Begin empty: an extension that is not used costs no memory."""
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None

    def get(self, spec: str, device: str) -> Scorer:
        """The scorer, loaded anew when it is another one or its file has changed.

        Args:
            spec: as `scorers.load_scorer`.
            device: where it runs.

        Raises:
            ScdpoError: there is none of that name, or it cannot be loaded.
        """
        file = Path(spec).expanduser()
        changed = file.stat().st_mtime_ns if file.is_file() else None
        with self._lock:
            held = self._loaded
            if held is None or (held.spec, held.device, held.changed) != (spec, device, changed):
                # Forge runs scripts in inference mode, and what is made there works nowhere else.
                with torch.inference_mode(False):
                    held = _Loaded(spec, device, changed, load_scorer(spec, device))
                self._loaded = held
            return held.scorer
