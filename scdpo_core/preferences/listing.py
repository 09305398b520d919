"""What lies in a preference folder, before any file is opened."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..types import Problem
from .pictures import PICTURE_SUFFIXES

LAYOUT = (
    "A preference folder holds chosen/ (the preferred pictures) and rejected/ (the others) under the same "
    "names, and a .txt file with the prompt beside either: chosen/cat.png, chosen/cat.txt, rejected/cat.png."
)

_OTHER_NAMES = {
    "chosen": ("good", "win", "winner", "winners", "preferred", "accepted", "safe", "positive", "better"),
    "rejected": ("bad", "lose", "loser", "losers", "reject", "unsafe", "negative", "worse"),
}
_IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
# Pictures to the artist, though not to us: "cannot be read" helps more than "has no twin".
_FOREIGN_SUFFIXES = frozenset({".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".xcf", ".kra", ".tga"})


@dataclass
class Side:
    """The files of chosen/ or of rejected/; a stem is the path below it without its ending, '/' between.

    Attributes:
        root: the folder.
        pictures: files by stem; more than one where only the endings differ.
        prompts: .txt files by stem.
        others: what is neither.
    """

    root: Path
    pictures: dict[str, list[Path]] = field(default_factory=dict)
    prompts: dict[str, list[Path]] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)

    def in_other_case(self, stem: str) -> str | None:
        """The stem of a picture here that differs in capitals alone, if there is one."""
        return self._folded.get(stem.casefold())

    @cached_property
    def _folded(self) -> dict[str, str]:
        return {stem.casefold(): stem for stem in self.pictures}


def list_side(root: Path, problems: list[Problem]) -> Side:
    """List one half of a preference folder; folders that cannot be read are added to `problems`."""
    side = Side(root)
    for path in files_below(root, problems):
        suffix = path.suffix.lower()
        # macOS may store accents decomposed where other systems do not; twins may come from both.
        stem = unicodedata.normalize("NFC", path.relative_to(root).with_suffix("").as_posix())
        if suffix in PICTURE_SUFFIXES or suffix in _FOREIGN_SUFFIXES:
            side.pictures.setdefault(stem, []).append(path)
        elif suffix == ".txt":
            side.prompts.setdefault(stem, []).append(path)
        else:
            side.others.append(path)
    return side


def some_prompts(folder: Path, count: int) -> list[str]:
    """Prompts of a preference folder, each once, spread evenly over it; what cannot be read is left out."""
    texts: dict[str, None] = {}
    for path in sorted((folder / "chosen").rglob("*.txt")):
        try:
            texts.setdefault(" ".join(path.read_text("utf-8-sig").split()))
        except (OSError, ValueError):
            continue
    found = [text for text in texts if text]
    count = min(count, len(found))
    return [found[number * len(found) // count] for number in range(count)]


def layout_problem(folder: Path) -> Problem | None:
    """Why `folder` is no preference folder, with the layout explained and a guess at what was meant."""
    try:
        if not folder.is_dir():
            state = "this is a file, not a folder" if folder.exists() else "there is no such folder"
            return Problem(folder, f"{state}. {LAYOUT}")
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        missing = [role for role in _OTHER_NAMES if role not in names]
        if not missing:
            return None
        lacks = " and no folder ".join(f"{role}/" for role in missing)
        hints = _hints(folder, names, missing)
        return Problem(folder, " ".join([f"it has no folder {lacks}. {LAYOUT}", *hints]))
    except OSError as error:
        return _unreadable(folder, error)


def _unreadable(folder: Path, error: OSError) -> Problem:
    what = f"this folder cannot be read ({error.strerror}). Give your user permission to read it."
    return Problem(folder, what)


def files_below(folder: Path, problems: list[Problem]) -> Iterator[Path]:
    """Every file below a folder that is not hidden, sorted; links are followed, but never in a circle.

    Folders that cannot be read are added to `problems`.
    """
    yield from _files(folder, problems, set())


def _files(folder: Path, problems: list[Problem], seen: set[Path]) -> Iterator[Path]:
    try:
        real = folder.resolve()
        entries = sorted(folder.iterdir())
    except OSError as error:
        problems.append(_unreadable(folder, error))
        return
    if real in seen:
        return
    seen.add(real)
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in _IGNORED:
            continue
        if entry.is_dir():
            yield from _files(entry, problems, seen)
        else:
            yield entry


def _hints(folder: Path, names: Sequence[str], missing: Sequence[str]) -> Iterator[str]:
    """Where the pictures may be instead."""
    for role in missing:
        for name in names:
            if name.lower() == role or name.lower() in _OTHER_NAMES[role]:
                yield f"There is {name}/: rename it to {role}/ if it holds these pictures."
    real = folder.resolve()
    if real.name in _OTHER_NAMES:
        yield f"Perhaps you mean the folder above it, {real.parent}."
    for name in names:
        if all((folder / name / role).is_dir() for role in _OTHER_NAMES):
            yield f"Perhaps you mean {folder / name}."
