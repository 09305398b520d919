"""Move or copy images whose cost is above a bound, without overwriting any file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..io.files import atomic_path, same_file
from ..types import Problem
from .table import Row


@dataclass(frozen=True)
class Filed:
    """Result of moving or copying.

    Attributes:
        done: rows of the images that were moved or copied, with the new path.
        problems: one for every image that was not moved or copied, and why.
    """

    done: Sequence[Row]
    problems: Sequence[Problem]


def over(rows: Sequence[Row], bound: float) -> Iterator[Row]:
    """Return the rows whose cost lies above the bound."""
    return (row for row in rows if row.cost is not None and row.cost > bound)


def leads_out(path: Path, roots: Sequence[Path]) -> Path | None:
    """Return the real path if it lies outside of all scored folders; None if inside."""
    real = Path(os.path.realpath(path))
    inside = any(real.is_relative_to(os.path.realpath(root.expanduser())) for root in roots)
    return None if inside else real


def file_away(
    rows: Sequence[Row],
    target: Path,
    roots: Sequence[Path],
    *,
    move: bool,
    filed: Callable[[Row], None] = lambda row: None,
) -> Filed:
    """Copy or move the rows' files below a folder, where they keep their path relative to their root.

    Nothing is overwritten: where another file of that name exists, the image stays, and so it does
    when it changed since it was scored, or when a link leads to it from elsewhere. Where the same content
    exists, an earlier run was interrupted, and its work is completed.

    Args:
        rows: whose files.
        target: the folder; made if missing.
        roots: the folders that were scored; a file in none of them goes right into `target`.
        move: whether the original is removed after the new file is complete.
        filed: called with each row as soon as its file is in place, with the new path.
    """
    done: list[Row] = []
    problems: list[Problem] = []
    absolute = [Path(os.path.abspath(root.expanduser())) for root in roots]
    for row in rows:
        source = Path(row.path)
        destination = target / _below(source, absolute)
        try:
            facts = source.stat()
            out = leads_out(source, roots)
            if (facts.st_size, facts.st_mtime_ns) != (row.bytes, row.mtime_ns):
                problems.append(Problem(source, "it changed since it was scored, and stays. Score it again."))
            elif move and source.is_symlink():
                problems.append(Problem(source, f"it is a link to {source.resolve()}, and stays."))
            elif move and out is not None:
                what = f"a link leads to it in {out.parent}, outside the scored folders, and it stays."
                problems.append(Problem(source, what))
            else:
                _file(source, destination, move=move)
                done.append(replace(row, path=os.path.abspath(destination)))
                filed(done[-1])
        except FileExistsError:
            problems.append(Problem(source, f"{destination} already exists, so it stays where it is."))
        except OSError as error:
            verb = "moved" if move else "copied"
            problems.append(Problem(source, f"it could not be {verb} ({error.strerror or error})."))
    return Filed(done, problems)


def _below(path: Path, roots: Sequence[Path]) -> Path:
    inside = [path.relative_to(root) for root in roots if root.is_dir() and path.is_relative_to(root)]
    return min(inside, key=lambda relative: len(relative.parts), default=Path(path.name))


def _file(source: Path, destination: Path, *, move: bool) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        if move:
            _link_or_copy(source, destination)
        else:
            _copy(source, destination)
    except FileExistsError:
        if os.path.realpath(source) == os.path.realpath(destination) or not same_file(source, destination):
            raise
    if move:
        source.unlink()


def _link_or_copy(source: Path, destination: Path) -> None:
    try:
        # A second name fails if there is a file already, which renaming would replace.
        os.link(source, destination)
    except FileExistsError:
        raise
    except OSError:  # another disk, or one without hard links
        _copy(source, destination)


def _copy(source: Path, destination: Path) -> None:
    with atomic_path(destination, replace=False, like=source) as temporary:
        shutil.copyfile(source, temporary)
