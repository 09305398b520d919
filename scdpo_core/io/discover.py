"""Walk folders of images: in a fixed order, each real folder once, hidden and system folders left out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..types import Problem
from .image_types import is_image, suffixes

_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
# Made by network storage, desktops and archives: thumbnails and deleted files, not the artist's images.
_SYSTEM_FOLDERS = frozenset(
    {
        "@eadir",
        "#recycle",
        "@recycle",
        ".@__thumb",
        "#snapshot",
        ".appledouble",
        "__macosx",
        ".thumbnails",
        ".trashes",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)


@dataclass(frozen=True)
class Found:
    """The files to score.

    Attributes:
        files: absolute paths, sorted within each folder; each real file once, under its first name.
        problems: paths that could not be read.
        repeats: number of further names (symbolic links, overlapping folders) of files already found.
        notes: system folders, which were left out.
    """

    files: Sequence[Path]
    problems: Sequence[Problem]
    repeats: int
    notes: Sequence[Problem] = ()


def find_images(paths: Sequence[Path], skip: Sequence[Path] = ()) -> Found:
    """List the images in folders and among files.

    In folders, files with an image's suffix are listed; those of kinds that cannot be read here too, so that
    scoring reports them. A file that is named itself is listed whatever its name.

    Args:
        paths: folders and files.
        skip: folders that are left out, such as the one that flagged images are moved to.
    """
    problems: list[Problem] = []
    visited = {os.path.realpath(folder) for folder in skip}
    files: dict[str, Path] = {}
    names = 0
    for path in (Path(os.path.abspath(path.expanduser())) for path in paths):
        if path.is_dir():
            images: Iterator[Path] = (
                file
                for file in files_below(path, problems, visited)
                if is_image(file) or file.suffix.lower() in suffixes()
            )
        elif os.path.lexists(path):
            images = iter([path])
        else:
            problems.append(Problem(path, "there is no such file or folder. Check its name."))
            continue
        for file in images:
            names += 1
            files.setdefault(os.path.realpath(file), file)
    fatal = [problem for problem in problems if problem.fatal]
    notes = [problem for problem in problems if not problem.fatal]
    return Found(list(files.values()), fatal, names - len(files), notes)


def files_below(folder: Path, problems: list[Problem], visited: set[str] | None = None) -> Iterator[Path]:
    """Yield every file below a folder that is not hidden: its files by name, then its subfolders.

    Symbolic links are followed, but no real folder is entered twice.

    Args:
        folder: to walk.
        problems: receives folders that cannot be read, and notes about system folders, which are left out.
        visited: real paths of folders that are not entered; grows.
    """
    visited = set() if visited is None else visited
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        if (real := os.path.realpath(current)) in visited:
            continue
        visited.add(real)
        try:
            with os.scandir(current) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            problems.append(unreadable_folder(current, error))
            continue
        subfolders = []
        for entry in entries:
            path, name = Path(entry.path), entry.name.casefold()
            if is_system_folder(name) and _is_folder(entry):
                what = "this folder belongs to the system (thumbnails, deleted files) and is ignored."
                problems.append(Problem(path, what, fatal=False))
            elif name.startswith(".") or name in _SYSTEM_FILES:
                continue
            elif _is_folder(entry):
                subfolders.append(path)
            else:
                yield path
        waiting += reversed(subfolders)


def is_system_folder(name: str) -> bool:
    """Return whether a folder of this name is made by systems and passed over by every walk."""
    return name.casefold() in _SYSTEM_FOLDERS


def unreadable_folder(folder: Path, error: OSError) -> Problem:
    """Say that a folder cannot be read."""
    what = f"this folder cannot be read ({error.strerror or error}). Give your user permission to read it."
    return Problem(folder, what)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
