"""Labelling: which of two pictures is the better one, pair by pair, with undo, kept on the disk.

A session lies in the preference folder as labelling.json beside chosen/ and rejected/. Every answer is
written at once, so that a closed browser or a power cut loses nothing.
"""

from __future__ import annotations

import json
import re
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..files import copy_file, write_json, write_text
from ..types import ScdpoError
from .metadata import prompt_of
from .pictures import PICTURE_SUFFIXES

STATE = "labelling.json"
Choice = Literal["left", "right", "skip"]

_MOST_WORDS = 40  # characters of a prompt in a file's name
_NO_CATEGORY = re.compile(r'[<>:"/\\|?*\x00-\x1f]|^\.|[. ]$')


@dataclass(frozen=True)
class Candidate:
    """Two pictures of one prompt that nobody has compared yet.

    Attributes:
        id: of the two files.
        prompt: that both were made for; '' if no file tells.
        left: a picture.
        right: another one.
    """

    id: str
    prompt: str
    left: Path
    right: Path


@dataclass(frozen=True)
class Answer:
    """What somebody said, and the files that were made of it.

    Attributes:
        id: of the candidate.
        choice: which picture is the better one.
        files: below the preference folder.
    """

    id: str
    choice: Choice
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class SessionView:
    """How labelling stands.

    Attributes:
        current: what to ask next; None when all is answered.
        answered: how many candidates have an answer, skipped ones among them.
        total: how many candidates there are.
        kept: pairs that were written.
        can_undo: whether there is an answer to take back.
    """

    current: Candidate | None
    answered: int
    total: int
    kept: int
    can_undo: bool


def propose(pictures: Sequence[Path], root: Path) -> list[Candidate]:
    """What to ask about, two pictures at a time.

    Pictures of the same name in two folders of the root belong together (of two models, say); all others
    are taken by their prompts, two by two in the order of their names. A picture that is left over at the
    end of its prompt is compared with the first one once more, unless it is the only one. Which one stands
    left the names decide as if by chance, so that no folder always does.

    Args:
        pictures: files below the root.
        root: a folder.
    """
    twins: dict[str, list[Path]] = {}
    for path in sorted(pictures):
        first, _, rest = path.relative_to(root).with_suffix("").as_posix().partition("/")
        twins.setdefault(rest or first, []).append(path)
    made, by_prompt = [], dict[str, list[Path]]()
    for files in twins.values():
        if len(files) > 1:
            prompt = next(filter(None, map(prompt_of, files)), "")
            made += [_candidate(prompt, *two) for two in _two_by_two(files)]
        else:
            by_prompt.setdefault(prompt_of(files[0]), []).append(files[0])
    for prompt, files in by_prompt.items():
        made += [_candidate(prompt, *two) for two in _two_by_two(files)]
    return made


def _two_by_two(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    pairs = list(zip(files[0::2], files[1::2], strict=False))
    if len(files) % 2 and len(files) > 1:
        pairs.append((files[0], files[-1]))
    return pairs


def _candidate(prompt: str, one: Path, other: Path) -> Candidate:
    name = f"{one}|{other}"
    left, right = (one, other)[:: 1 if zlib.crc32(name.encode()) % 2 else -1]
    return Candidate(name, prompt, left, right)


def pictures_in(folder: Path, skip: Path | None = None) -> list[Path]:
    """Pictures in a folder and below it, hidden ones and those in `skip` left out.

    Raises:
        ScdpoError: there is no such folder.
    """
    if not folder.is_dir():
        raise ScdpoError(f"There is no folder {folder}. Name the folder with the pictures to compare.")
    inside = (path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    return [
        path
        for path in inside
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (skip is None or not path.is_relative_to(skip))
    ]


class Session:
    """Labelling of one folder of pictures into one preference folder. Safe to use from several threads."""

    def __init__(self, source: Path, target: Path) -> None:
        """Go on where the last session in `target` stopped, or begin.

        Args:
            source: folder of pictures.
            target: preference folder; chosen/ and rejected/ are made in it.

        Raises:
            ScdpoError: there is no source, or the session's file is damaged.
        """
        self.source, self.target = source.expanduser().absolute(), target.expanduser().absolute()
        self._lock = threading.Lock()
        self._candidates = propose(pictures_in(self.source, self.target), self.source)
        self._answers = _read(self.target / STATE)

    def view(self) -> SessionView:
        """How it stands."""
        with self._lock:
            return self._view()

    def answer(self, candidate: str, choice: Choice, prompt: str = "", category: str = "") -> SessionView:
        """Note an answer and write the pair.

        Args:
            candidate: id of what was asked. If something else is asked by now, nothing happens: a key
                that is pressed twice answers once.
            choice: which picture is the better one.
            prompt: instead of the candidate's own.
            category: kind of harm that the worse picture shows; 'benign' for none; '' not said.

        Raises:
            ScdpoError: there is no prompt, the category cannot name a folder, or the disk refuses.
        """
        with self._lock:
            current = self._view().current
            if current is None or current.id != candidate:
                return self._view()
            files: tuple[str, ...] = ()
            if choice != "skip":
                good, bad = (current.left, current.right)[:: 1 if choice == "left" else -1]
                files = write_pair(self.target, good, bad, prompt or current.prompt, category)
            self._answers.append(Answer(current.id, choice, files))
            self._save()
            return self._view()

    def undo(self) -> SessionView:
        """Take the last answer back, and the files it made."""
        with self._lock:
            if self._answers:
                last = self._answers.pop()
                for name in last.files:
                    (self.target / name).unlink(missing_ok=True)
                self._save()
            return self._view()

    def _view(self) -> SessionView:
        done = {answer.id for answer in self._answers}
        left = [candidate for candidate in self._candidates if candidate.id not in done]
        ours = {candidate.id for candidate in self._candidates}
        return SessionView(
            left[0] if left else None,
            len(done & ours),
            len(self._candidates),
            sum(answer.choice != "skip" for answer in self._answers),
            bool(self._answers),
        )

    def _save(self) -> None:
        write_json(self.target / STATE, {"answers": [asdict(answer) for answer in self._answers]})


def write_pair(target: Path, good: Path, bad: Path, prompt: str, category: str = "") -> tuple[str, ...]:
    """Copy two pictures into a preference folder, under a name that is free, and write their prompt.

    Returns:
        The files, relative to the folder.

    Raises:
        ScdpoError: see `Session.answer`.
    """
    words, kind = " ".join(prompt.split()), category.strip()
    if not words:
        raise ScdpoError("The prompt is empty: write the words that both pictures were made for.")
    if kind and _NO_CATEGORY.search(kind):
        raise ScdpoError(f"'{kind}' cannot be the name of a folder. Use letters, such as weapon.")
    stem = _free_stem(target, words, kind)
    files = (
        f"chosen/{stem}{good.suffix.lower()}",
        f"rejected/{stem}{bad.suffix.lower()}",
        f"chosen/{stem}.txt",
    )
    try:
        for name, source in zip(files, (good, bad), strict=False):
            copy_file(source, target / name)
        write_text(target / files[2], words + "\n")
    except OSError as error:
        for name in files:
            (target / name).unlink(missing_ok=True)
        raise ScdpoError(
            f"The pair could not be written into {target} ({error.strerror or error}). Make room there, or "
            "choose another folder."
        ) from error
    return files


def import_pairs(
    target: Path, good: Sequence[Path], bad: Sequence[Path], prompt: str = "", category: str = ""
) -> int:
    """Take existing pictures as pairs: the first good one with the first bad one, and so on by name.

    Args:
        target: preference folder.
        good: the preferred pictures.
        bad: as many others.
        prompt: of all of them; '' takes what each pair's own files tell.
        category: of all of them, see `Session.answer`.

    Returns:
        How many pairs were written.

    Raises:
        ScdpoError: unlike numbers, or a pair without a prompt: then nothing is written.
    """
    if not good or len(good) != len(bad):
        raise ScdpoError(
            f"There are {len(good)} preferred pictures and {len(bad)} others. Give as many of one as of the "
            "other: they are taken as pairs in the order of their names."
        )
    pairs = list(zip(sorted(good, key=_name), sorted(bad, key=_name), strict=True))
    prompts = [prompt.strip() or prompt_of(first) or prompt_of(second) for first, second in pairs]
    for (first, _), words in zip(pairs, prompts, strict=True):
        if not words:
            raise ScdpoError(f"{first.name} does not say its prompt. Write it into the field for it.")
    for (first, second), words in zip(pairs, prompts, strict=True):
        write_pair(target, first, second, words, category)
    return len(pairs)


def _name(path: Path) -> str:
    return path.name


def _free_stem(target: Path, prompt: str, category: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:_MOST_WORDS].strip("-") or "pair"
    folder = f"{category}/" if category else ""
    taken = {stem for role in ("chosen", "rejected") for stem in _stems(target / role / folder)}
    number = next(number for number in range(1, 10**6) if f"{number:04d}" not in taken)
    return f"{folder}{number:04d}-{words}"


def _stems(folder: Path) -> Iterable[str]:
    """The numbers that files of a folder begin with."""
    return (path.name[:4] for path in folder.iterdir()) if folder.is_dir() else ()


def _read(path: Path) -> list[Answer]:
    try:
        values: Any = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ScdpoError(f"{path} is damaged; remove it to begin labelling anew.") from error
    try:
        return [
            Answer(str(one["id"]), one["choice"], tuple(map(str, one["files"]))) for one in values["answers"]
        ]
    except (KeyError, TypeError) as error:
        raise ScdpoError(f"{path} is damaged; remove it to begin labelling anew.") from error
