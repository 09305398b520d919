"""Resolve prompt files that are named in the page or the API, and the included examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from scdpo_core.runs.interpreter import ROOT

from .path_policy import Reach

EXAMPLES = ROOT / "examples"
PREFERENCES = EXAMPLES / "preferences"
HARMFUL, BENIGN = EXAMPLES / "prompts" / "harmful.csv", EXAMPLES / "prompts" / "benign.csv"


def named_files(reach: Reach, names: Iterable[str], dropped: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Prompt files, and folders of images that carry their prompts.

    Args:
        reach: what may be named; the shipped examples always may.
        names: paths; blank ones are left out.
        dropped: files that the browser has sent.

    Raises:
        ScdpoError: one of them may not be used, or is not there.
    """
    files = reach.dropped(dropped)
    for name in filter(None, map(str.strip, names)):
        if name in (str(HARMFUL), str(BENIGN)):
            files.append(Path(name))
            continue
        path = reach.existing(name)
        # A folder is read later, file by file: no link in it may lead out.
        files.append(reach.folder(name) if path.is_dir() else path)
    return tuple(files)


def has_examples() -> bool:
    """Return whether the examples were installed with the project."""
    return HARMFUL.is_file() and BENIGN.is_file() and PREFERENCES.is_dir()
