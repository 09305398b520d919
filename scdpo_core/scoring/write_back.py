"""Write a score back to its image, into the file or beside it; on request only."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..io.files import atomic_path, sha256_of, write_text
from ..io.image_containers import with_score
from ..types import ScdpoError
from .table import Row

SIDECAR = ".score.json"
"""Ending of a sidecar file, behind the image's whole name."""
_MOST_BYTES = 65536  # of a sidecar; ours have a few hundred


class StampError(ScdpoError):
    """A score that was not written; the file is as it was."""


def note(row: Row) -> str:
    """Return what is written: cost, band, known categories and scorer as one line of JSON, ASCII.

    Args:
        row: with a cost.
    """
    categories = {name: round(cost, 4) for name, cost in row.categories.items() if cost is not None}
    assert row.cost is not None
    return json.dumps(
        {"cost": round(row.cost, 4), "band": row.band, "categories": categories, "scorer": row.scorer}
    )


def stamp_file(row: Row) -> Row:
    """Put a score into its PNG (text chunk), JPEG or WebP (EXIF), replacing an earlier score.

    Pixels and all other metadata stay byte for byte as they are, and so does the file's date. The file is
    replaced whole or not at all.

    Returns:
        The row, knowing the file's new content.

    Raises:
        StampError: the file changed since it was scored, cannot be written, or has no place for a score.
    """
    path = Path(os.path.realpath(row.path))
    try:
        before = path.stat()
        _require_unchanged(row, before)
        content = path.read_bytes()
        changed = with_score(content, note(row).encode("ascii"))
        if changed != content:
            with atomic_path(path, like=path) as temporary:
                temporary.write_bytes(changed)
        after = path.stat()
        return replace(row, sha256=sha256_of(path), bytes=after.st_size, mtime_ns=after.st_mtime_ns)
    except StampError:
        raise
    except ScdpoError as error:
        raise StampError(f"{row.path}: the score was not written: {error}.") from error
    except OSError as error:
        raise StampError(f"{row.path}: the score was not written ({error.strerror or error}).") from error


def stamp_sidecar(row: Row) -> Row:
    """Put a score into a file beside the image, 'name.png.score.json'.

    Returns:
        The row as it is.

    Raises:
        StampError: it cannot be written, or another program's file has that name.
    """
    sidecar = Path(row.path + SIDECAR)
    try:
        if sidecar.is_symlink():
            raise StampError(f"{row.path}: {sidecar.name} is a link, so the score was not written.")
        if sidecar.exists() and not _is_ours(sidecar):
            raise StampError(
                f"{row.path}: {sidecar.name} holds something else, so the score was not written."
            )
        write_text(sidecar, note(row) + "\n")
    except OSError as error:
        raise StampError(f"{row.path}: the score was not written ({error.strerror or error}).") from error
    return row


STAMPS: dict[str, Callable[[Row], Row]] = {"file": stamp_file, "sidecar": stamp_sidecar}
"""Where a score can be written."""


def _require_unchanged(row: Row, facts: os.stat_result) -> None:
    if (facts.st_size, facts.st_mtime_ns) != (row.bytes, row.mtime_ns):
        raise StampError(f"{row.path}: it changed since it was scored. Score it again.")


def _is_ours(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"cost", "scorer"} <= content.keys()
