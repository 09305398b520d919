"""Resolve folders and files that are typed into a node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import folder_paths

from ..scdpo_core.types import ScdpoError


def roots() -> dict[str, Path]:
    """Return ComfyUI's folders of a user's images, by the names that menus show."""
    return {
        "output": Path(folder_paths.get_output_directory()),
        "input": Path(folder_paths.get_input_directory()),
    }


def typed_folder(text: str) -> Path:
    """Resolve a typed folder.

    An absolute path is used as it is. A relative one is searched in ComfyUI's output and input folders, with
    or without that folder's name before it, never in the working directory.

    Raises:
        ScdpoError: a relative path that neither folder contains.
    """
    return _typed(text, "folder", Path.is_dir)


def typed_file(text: str) -> Path:
    """Resolve a typed file like `typed_folder`.

    Raises:
        ScdpoError: as `typed_folder`.
    """
    return _typed(text, "file", Path.is_file)


def _typed(text: str, kind: str, is_there: Callable[[Path], bool]) -> Path:
    path = Path(unquoted(text)).expanduser()
    if path.is_absolute():
        return path
    by_name = roots()
    candidates = [root / path for root in by_name.values()]
    if path.parts and path.parts[0] in by_name:
        candidates.insert(0, by_name[path.parts[0]].joinpath(*path.parts[1:]))
    match = next((candidate for candidate in candidates if is_there(candidate)), None)
    if match is None:
        searched = " nor in ".join(map(str, by_name.values()))
        raise ScdpoError(
            f"There is no {kind} '{path}' in {searched}. Give the name of a {kind} there, or its full path."
        )
    return match


def typed_folder_or_none(text: str | None) -> Path | None:
    """Resolve a typed folder; None for an empty text.

    Raises:
        ScdpoError: as `typed_folder`.
    """
    return typed_folder(text) if unquoted(text or "") else None


def lora_changed_at(name: str | None) -> int:
    """Return when a LoRA of the menu was last changed; 0 if it is unknown or connected."""
    from ..scdpo_core.lora.file import changed_at

    path = None if name is None else folder_paths.get_full_path("loras", name)
    return 0 if path is None else changed_at(Path(path))


def unquoted(text: str) -> str:
    """Strip the spaces and quotation marks that are pasted along with a path."""
    return text.strip().strip('"').strip()
