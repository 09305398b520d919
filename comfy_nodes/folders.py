"""Folders and files that are typed into a node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import folder_paths

from ..scdpo_core.types import ScdpoError


def roots() -> dict[str, Path]:
    """ComfyUI's own folders in which a user's images lie, by the names that the menus show."""
    return {
        "output": Path(folder_paths.get_output_directory()),
        "input": Path(folder_paths.get_input_directory()),
    }


def typed_folder(text: str) -> Path:
    """The folder that somebody means.

    A whole path is taken as it is. A part of one is looked for in ComfyUI's output and input folders, with
    or without that folder's name before it, and never in the folder that ComfyUI was started from.

    Raises:
        ScdpoError: a part of a path that neither folder has.
    """
    return _typed(text, "folder", Path.is_dir)


def typed_file(text: str) -> Path:
    """The file that somebody means, likewise.

    Raises:
        ScdpoError: as `typed_folder`.
    """
    return _typed(text, "file", Path.is_file)


def _typed(text: str, kind: str, is_there: Callable[[Path], bool]) -> Path:
    path = Path(unquoted(text)).expanduser()
    if path.is_absolute():
        return path
    named = roots()
    candidates = [root / path for root in named.values()]
    if path.parts and path.parts[0] in named:
        candidates.insert(0, named[path.parts[0]].joinpath(*path.parts[1:]))
    match = next((candidate for candidate in candidates if is_there(candidate)), None)
    if match is None:
        searched = " nor in ".join(map(str, named.values()))
        raise ScdpoError(
            f"There is no {kind} '{path}' in {searched}. Write the name of a {kind} there, or a whole path."
        )
    return match


def typed_folder_or_none(text: str | None) -> Path | None:
    """The same; None where nothing was typed.

    Raises:
        ScdpoError: as `typed_folder`.
    """
    return typed_folder(text) if unquoted(text or "") else None


def unquoted(text: str) -> str:
    """A typed path without the spaces and quotation marks that come along when it is pasted."""
    return text.strip().strip('"').strip()
