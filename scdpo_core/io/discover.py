"""Finding the images: recursive, in a fixed order, each real file once, no loop without an end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..preferences.listing import passed_over
from ..types import Problem
from .image_frames import suffixes
from .image_types import FOREIGN_SUFFIXES, IMAGE_SUFFIXES, starts_as_image


@dataclass(frozen=True)
class Found:
    """The files to score.

    Attributes:
        files: absolute paths, sorted within each folder; each real file once, under its first name.
        problems: places that could not be looked into.
        repeats: how many further names (symbolic links, overlapping folders) led to files already found.
        notes: folders that a system made for itself, which were passed over.
    """

    files: Sequence[Path]
    problems: Sequence[Problem]
    repeats: int
    notes: Sequence[Problem] = ()


def find_images(places: Sequence[Path], skip: Sequence[Path] = ()) -> Found:
    """List the images in folders and among files.

    In folders, files with an image's ending are taken, hidden ones (leading dot) left out; symbolic links
    are followed. A file that is named itself is taken whatever its name.

    Args:
        places: folders and files.
        skip: folders that are not looked into, such as the one that flagged images are moved to.
    """
    problems: list[Problem] = []
    notes: list[Problem] = []
    entered = {os.path.realpath(folder) for folder in skip}
    files: dict[str, Path] = {}
    names = 0
    for place in places:
        path = Path(os.path.abspath(place.expanduser()))
        if path.is_dir():
            taken = _walk(path, entered, problems, notes)
        elif os.path.lexists(path):
            taken = iter([path])
        else:
            problems.append(Problem(path, "there is no such file or folder. Check its name."))
            continue
        for file in taken:
            names += 1
            files.setdefault(os.path.realpath(file), file)
    return Found(list(files.values()), problems, names - len(files), notes)


def _walk(folder: Path, entered: set[str], problems: list[Problem], notes: list[Problem]) -> Iterator[Path]:
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in entered:
            continue
        entered.add(real)
        try:
            with os.scandir(here) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            what = f"the folder cannot be looked into ({error.strerror or error})."
            problems.append(Problem(here, what))
            continue
        inside = []
        for entry in found:
            path = Path(entry.path)
            if (note := passed_over(path)) is not None and _is_folder(entry):
                notes.append(note)
                continue
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                inside.append(path)
            elif _is_image(path):
                yield path
        waiting += reversed(inside)


def _is_image(path: Path) -> bool:
    """Files of kinds that nothing here can read get a row too, which says so."""
    ending = path.suffix.lower()
    if not ending:
        return starts_as_image(path)
    return ending in suffixes() or ending in IMAGE_SUFFIXES or ending in FOREIGN_SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    # A link that leads to itself.
    except OSError:
        return False
