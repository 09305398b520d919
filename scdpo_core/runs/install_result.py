"""The finished file of a run, put where a host looks for such files."""

from __future__ import annotations

from pathlib import Path

from ..io.files import copy_file, sha256_of
from ..types import ScdpoError


def taken(name: str, shelf: Path, run: Path) -> str:
    """Why a run cannot put its file on a shelf under that name; '' if it can.

    Args:
        name: of the run.
        shelf: the host's folder of such files.
        run: the run folder; the file of this very run may lie on the shelf already.
    """
    there, own = shelf / f"{name}.safetensors", run / f"{name}.safetensors"
    if not there.exists() or (own.exists() and _same(there, own)):
        return ""
    return f"There is a file {there.name} in {shelf} already, of another run. Choose another output name."


def put(result: Path, shelf: Path) -> Path:
    """Copy a result, with the preview image beside it if there is one, onto a shelf.

    Returns:
        The file there, which is left alone if it holds the same.

    Raises:
        ScdpoError: another file has that name there, or it cannot be written.
    """
    there = shelf / result.name
    try:
        if there.exists():
            if not _same(there, result):
                raise ScdpoError(
                    f"{result.name} is finished, but there is another file of that name in {shelf}. "
                    f"It stays where it is: {result}"
                )
            return there
        preview = result.with_suffix(".png")
        if preview.is_file() and not (shelf / preview.name).exists():
            copy_file(preview, shelf / preview.name)
        copy_file(result, there)
    except OSError as error:
        raise ScdpoError(
            f"{result.name} is finished, but cannot be copied into {shelf} ({error.strerror or error}). "
            f"Copy it there yourself: {result}"
        ) from error
    return there


def _same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and sha256_of(one) == sha256_of(other)
