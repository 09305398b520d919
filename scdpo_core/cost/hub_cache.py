"""Find models in the Hugging Face cache; nothing is downloaded."""

from __future__ import annotations

import os
import re
from pathlib import Path


def is_hub_name(spec: str) -> bool:
    """Return whether this could be a model's name on the hub, 'owner/name'."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", spec) is not None


def cached_snapshot(repository: str) -> Path | None:
    """Return the newest snapshot of a model in the hub's cache, or None.

    Args:
        repository: its name on the hub, 'owner/name'.
    """
    home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    folder = hub / f"models--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    if not main.is_file():
        return None
    snapshot = folder / "snapshots" / main.read_text(encoding="utf-8").strip()
    return snapshot if snapshot.is_dir() else None
