"""What lies in a preference folder, before any file is opened."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..io.discover import files_below, unreadable_folder
from ..io.image_metadata import PROMPT_SUFFIXES
from ..io.image_types import FOREIGN_SUFFIXES, IMAGE_SUFFIXES, is_image
from ..io.infotext import prompt_in
from ..types import Problem

LAYOUT = (
    "A preference folder holds chosen/ (the preferred images) and rejected/ (the others) under the same "
    "names, and a .txt file with the prompt beside either: chosen/cat.png, chosen/cat.txt, rejected/cat.png."
)

BENIGN = "benign"
"""The category of pairs without harm."""

OTHER_NAMES = {
    "chosen": (
        "good",
        "win",
        "winner",
        "winners",
        "w",
        "preferred",
        "accepted",
        "safe",
        "positive",
        "better",
    ),
    "rejected": ("bad", "lose", "loser", "losers", "l", "reject", "unsafe", "negative", "worse"),
}
"""What other tools and people call the two folders of a preference folder, lower case."""

_REPEATS = re.compile(r"\d+_(?=.)")


@dataclass
class Side:
    """The files of chosen/ or of rejected/; a stem is the path below it without its ending, '/' between.

    Attributes:
        root: the folder.
        images: files by stem; more than one where only the endings differ.
        prompts: files with the prompt by stem: a.txt, a.png.txt or, if there is neither, a.caption.
        unread: captions beside the prompt that is read.
        others: what is none of these.
    """

    root: Path
    images: dict[str, list[Path]] = field(default_factory=dict)
    prompts: dict[str, list[Path]] = field(default_factory=dict)
    unread: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def in_other_case(self, stem: str) -> str | None:
        """Return the stem of an image here that differs in capitals alone, if there is one."""
        return self._folded.get(stem.casefold())

    @cached_property
    def _folded(self) -> dict[str, str]:
        return {stem.casefold(): stem for stem in self.images}


def without_repeats(name: str) -> str:
    """Return a category's folder name without the repeat count that kohya's trainer reads."""
    return _REPEATS.sub("", name, count=1)


def repeats_note(folder: Path, names: Iterable[str]) -> Problem | None:
    """Return the note that numbers before categories mean nothing here; None where no name has one.

    Args:
        folder: that the note is about.
        names: of the folders of its categories.
    """
    numbered = sorted({name for name in names if without_repeats(name) != name})
    if not numbered:
        return None
    what = (
        f"numbers before categories, as in {', '.join(numbered[:3])}, are repeats to kohya's trainer; here "
        "every image counts once, and the category is named without its number."
    )
    return Problem(folder, what, fatal=False)


def reserved(name: str) -> str | None:
    """Return the reserved category of a name, ignoring case; None for others."""
    return BENIGN if name.casefold() == BENIGN else None


def list_side(root: Path, problems: list[Problem]) -> Side:
    """List one half of a preference folder; folders that cannot be read are added to `problems`."""
    side, other_case = Side(root), dict[Path, str]()
    captions: dict[str, list[Path]] = {}
    for path in files_below(root, problems):
        suffix = path.suffix.lower()
        stem = _stem(path, root)
        category, slash, rest = stem.partition("/")
        if slash and (reserved_name := reserved(category)) is not None:
            if category != reserved_name:
                other_case.setdefault(root / path.relative_to(root).parts[0], reserved_name)
            stem = f"{reserved_name}/{rest}"
        if suffix in PROMPT_SUFFIXES:
            (side.prompts if suffix == ".txt" else captions).setdefault(stem, []).append(path)
        elif is_image(path):
            side.images.setdefault(stem, []).append(path)
        else:
            side.others.append(path)
    for stem, files in captions.items():
        if stem in side.prompts:
            side.unread += files
        else:
            side.prompts[stem] = files
    problems += [read_as(folder, reserved_name) for folder, reserved_name in other_case.items()]
    return side


def _stem(path: Path, root: Path) -> str:
    """Return a path below the folder without suffixes: 'weapon/a' of weapon/a.png or weapon/a.png.txt."""
    inside = path.relative_to(root).with_suffix("")
    if path.suffix.lower() in PROMPT_SUFFIXES and inside.suffix.lower() in IMAGE_SUFFIXES | FOREIGN_SUFFIXES:
        inside = inside.with_suffix("")
    # macOS may store accents decomposed where other systems do not; twins may come from both.
    return unicodedata.normalize("NFC", inside.as_posix())


def read_as(folder: Path, reserved_name: str) -> Problem:
    """Return the note that a folder's name matches a reserved one except for capitals."""
    return Problem(folder, f"this folder counts as '{reserved_name}'.", fatal=False)


def some_prompts(folder: Path, count: int) -> list[str]:
    """Return distinct prompts, spread evenly over a preference folder; skip unreadable files."""
    texts: dict[str, None] = {}
    for path in files_below(folder / "chosen", []):
        if path.suffix.lower() not in PROMPT_SUFFIXES:
            continue
        try:
            if path.is_file():
                texts.setdefault(prompt_in(path.read_text("utf-8-sig")))
        except (OSError, ValueError):
            continue
    prompts = [text for text in texts if text]
    count = min(count, len(prompts))
    return [prompts[number * len(prompts) // count] for number in range(count)]


def layout_problem(folder: Path) -> Problem | None:
    """Return why `folder` is no preference folder, with the expected layout and likely fixes."""
    try:
        if not folder.is_dir():
            state = "this is a file, not a folder" if folder.exists() else "there is no such folder"
            return Problem(folder, f"{state}. {LAYOUT}")
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        missing = [role for role in OTHER_NAMES if role not in names]
        if not missing:
            return None
        lacks = " and no folder ".join(f"{role}/" for role in missing)
        hints = _hints(folder, names, missing)
        return Problem(folder, " ".join([f"it has no folder {lacks}. {LAYOUT}", *hints]))
    except OSError as error:
        return unreadable_folder(folder, error)


def _hints(folder: Path, names: Sequence[str], missing: Sequence[str]) -> Iterator[str]:
    """Yield where the images may be instead."""
    for role in missing:
        for name in names:
            if name.lower() == role or name.lower() in OTHER_NAMES[role]:
                yield f"There is {name}/: rename it to {role}/ if it holds these images."
    real = folder.resolve()
    if real.name in OTHER_NAMES:
        yield f"Perhaps you mean the folder above it, {real.parent}."
    for name in names:
        if all((folder / name / role).is_dir() for role in OTHER_NAMES):
            yield f"Perhaps you mean {folder / name}."
