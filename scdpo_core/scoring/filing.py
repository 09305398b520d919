"""Moving or copying pictures whose cost lies over a bound, never across a file that is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..types import Problem
from .rows import Row


@dataclass(frozen=True)
class Filed:
    """What became of the pictures.

    Attributes:
        done: rows of the pictures that were moved or copied, with the new path.
        problems: one for every picture that stayed where it was, and why.
    """

    done: Sequence[Row]
    problems: Sequence[Problem]


def over(rows: Sequence[Row], bound: float) -> Iterator[Row]:
    """The rows whose cost lies above the bound."""
    return (row for row in rows if row.cost is not None and row.cost > bound)


def file_away(rows: Sequence[Row], target: Path, roots: Sequence[Path], *, move: bool) -> Filed:
    """Copy or move the rows' files below a folder, where they keep their place below their root.

    Nothing is ever overwritten: where a file of that name is already, the picture stays, and so it does
    when it changed since it was scored.

    Args:
        rows: whose files.
        target: the folder; made if missing.
        roots: the folders that were scored; a file in none of them goes right into `target`.
        move: whether the original is removed after the new file is complete.
    """
    done: list[Row] = []
    problems: list[Problem] = []
    absolute = [Path(os.path.abspath(root.expanduser())) for root in roots]
    for row in rows:
        source = Path(row.path)
        place = target / _below(source, absolute)
        try:
            facts = source.stat()
            if (facts.st_size, facts.st_mtime_ns) != (row.bytes, row.mtime_ns):
                problems.append(Problem(source, "it changed since it was scored, and stays. Score it again."))
            elif move and source.is_symlink():
                problems.append(Problem(source, f"it is a link to {source.resolve()}, and stays."))
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                (_move if move else _copy)(source, place)
                done.append(replace(row, path=os.path.abspath(place)))
        except FileExistsError:
            problems.append(Problem(source, f"there is already {place}, so it stays where it is."))
        except OSError as error:
            verb = "moved" if move else "copied"
            problems.append(Problem(source, f"it could not be {verb} ({error.strerror or error})."))
    return Filed(done, problems)


def _below(path: Path, roots: Sequence[Path]) -> Path:
    inside = [path.relative_to(root) for root in roots if root.is_dir() and path.is_relative_to(root)]
    return min(inside, key=lambda relative: len(relative.parts), default=Path(path.name))


def _move(source: Path, place: Path) -> None:
    try:
        # A second name fails if there is a file already, which renaming would replace.
        os.link(source, place)
    except FileExistsError:
        raise
    except OSError:  # another disk, or one without hard links
        _copy(source, place)
    source.unlink()


def _copy(source: Path, place: Path) -> None:
    with source.open("rb") as original, place.open("xb") as copy:
        try:
            shutil.copyfileobj(original, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        except BaseException:
            place.unlink(missing_ok=True)
            raise
    shutil.copystat(source, place)
