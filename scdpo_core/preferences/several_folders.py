"""Pairs of several preference folders as those of one, each folder as often as it is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..types import PreferencePair, Problem, ScdpoError
from .folder import check_folder
from .verified_images import KnownImages

_MOST_REPEATS = 1000
_REPEATED = re.compile(r"(?P<folder>.+):(?P<repeats>\d{1,9})")


@dataclass(frozen=True)
class PairFolder:
    """A preference folder, and how often each of its pairs comes in an epoch."""

    path: Path
    repeats: int = 1

    @classmethod
    def parse(cls, text: str) -> PairFolder:
        """Read FOLDER or FOLDER:REPEATS. A folder that has such a name itself counts as that.

        Raises:
            ScdpoError: the number makes no sense.
        """
        match = _REPEATED.fullmatch(text)
        if match is None or Path(text).is_dir():
            return cls(Path(text))
        repeats = int(match["repeats"])
        if not 1 <= repeats <= _MOST_REPEATS:
            raise ScdpoError(f"--more-pairs {text}: give from 1 to {_MOST_REPEATS} repeats.")
        return cls(Path(match["folder"]), repeats)


def pair_folders(first: Path | None, further: Sequence[str]) -> list[PairFolder]:
    """List the preference folders of a run.

    Args:
        first: that of --pairs, if there is one.
        further: those of --more-pairs, see `PairFolder.parse`.

    Raises:
        ScdpoError: see `PairFolder.parse`.
    """
    return [*([] if first is None else [PairFolder(first)]), *map(PairFolder.parse, further)]


def check_folders(
    folders: Sequence[PairFolder],
    *,
    notice: Callable[[Problem], None],
    progress: Callable[[int, int], None],
    decode: bool,
    known: KnownImages | None,
) -> list[PreferencePair]:
    """Return the pairs of folders that nothing is wrong with.

    Of several folders, all but the first one's pairs have the folder's name before their own, so that each id
    stays the only one of its kind.

    Args:
        folders: at least one.
        notice: see `check_folder`.
        progress: see `check_folder`; starts again with each folder.
        decode: see `check_folder`.
        known: see `check_folder`.

    Raises:
        ScdpoError: with every fatal problem of every folder.
    """
    pairs: list[PreferencePair] = []
    problems: list[str] = []
    names = set[str]()
    for number, folder in enumerate(folders):
        try:
            own = check_folder(folder.path, notice=notice, progress=progress, decode=decode, known=known)
        except ScdpoError as error:
            problems.append(str(error))
            continue
        name = _unused(folder.path.name, names) if number else ""
        names.add(name)
        pairs += [
            replace(pair, id=f"{name}/{pair.id}" if name else pair.id, repeats=folder.repeats) for pair in own
        ]
    if problems:
        raise ScdpoError("\n".join(problems))
    return pairs


def _unused(name: str, names: set[str]) -> str:
    numbered = (f"{name}-{number}" for number in range(2, len(names) + 3))
    return name if name not in names else next(each for each in numbered if each not in names)
