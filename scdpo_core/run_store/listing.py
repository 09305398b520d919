"""Which runs there are in a runs root, newest first."""

from __future__ import annotations

from pathlib import Path

from . import folder as names


def runs_in(root: Path, kind: names.Kind | None = None) -> list[Path]:
    """Run folders, the one that changed last first.

    Args:
        root: their folder, which need not be there.
        kind: only those that train this; None for all.
    """
    found = [
        (max(names.changed(folder / name) for name in (names.JOB, names.EVENTS, names.LAUNCH)), folder)
        for folder in (root.iterdir() if root.is_dir() else ())
        if (folder / names.JOB).is_file() and (kind is None or names.kind_of(folder) == kind)
    ]
    return [folder for _, folder in sorted(found, reverse=True)]
