"""Labelling: which of two images is the better one, pair by pair, with undo, kept on the disk.

A session lies in the preference folder as labelling.json beside chosen/ and rejected/. Every answer is
written at once, so that a closed browser or a power cut loses nothing.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..io.discover import files_below
from ..io.files import inside, sweep, write_json
from ..io.image_metadata import prompt_of
from ..io.image_types import IMAGE_SUFFIXES, starts_as_image
from ..types import Problem, ScdpoError
from .writer import pair_files, write_files

STATE = "labelling.json"
Choice = Literal["left", "right", "skip"]

_SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Candidate:
    """Two images of one prompt that have not been compared yet.

    Attributes:
        id: of the two files.
        prompt: that both were made for; '' if no file tells.
        left: an image.
        right: another one.
    """

    id: str
    prompt: str
    left: Path
    right: Path


@dataclass(frozen=True)
class Answer:
    """An answer, and the files that were made from it.

    Attributes:
        id: of the candidate.
        choice: which image is the better one.
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


def propose(images: Sequence[Path], root: Path) -> list[Candidate]:
    """Return what to ask about, two images at a time.

    Images of the same name in two folders of the root belong together (of two models, say); all others
    are taken by their prompts, two by two in the order of their names. An image that is left over at the
    end of its prompt is compared with the first one once more, unless it is the only one. Which one stands
    left the names decide as if by chance, so that no folder always does.

    Args:
        images: files below the root.
        root: a folder.
    """
    twins: dict[str, list[Path]] = {}
    for path in sorted(images):
        first, _, rest = path.relative_to(root).with_suffix("").as_posix().partition("/")
        twins.setdefault(rest or first, []).append(path)
    candidates, by_prompt = [], dict[str, list[Path]]()
    for files in twins.values():
        if len(files) > 1:
            prompt = next(filter(None, map(prompt_of, files)), "")
            candidates += [_candidate(prompt, *two) for two in _two_by_two(files)]
        else:
            by_prompt.setdefault(prompt_of(files[0]), []).append(files[0])
    for prompt, files in by_prompt.items():
        candidates += [_candidate(prompt, *two) for two in _two_by_two(files)]
    return candidates


def _two_by_two(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    pairs = list(zip(files[0::2], files[1::2], strict=False))
    if len(files) % 2 and len(files) > 1:
        pairs.append((files[0], files[-1]))
    return pairs


def _candidate(prompt: str, one: Path, other: Path) -> Candidate:
    name = f"{one}|{other}"
    left, right = (one, other)[:: 1 if zlib.crc32(os.fsencode(name)) % 2 else -1]
    return Candidate(name, prompt, left, right)


def images_in(folder: Path, skip: Path | None = None, notes: list[Problem] | None = None) -> list[Path]:
    """Return images in a folder and below it, hidden ones and those in `skip` left out.

    Args:
        folder: looked through to the bottom.
        skip: a folder below it.
        notes: gets a note for each folder that a system made for itself, and what cannot be read.

    Raises:
        ScdpoError: there is no such folder.
    """
    if not folder.is_dir():
        raise ScdpoError(f"There is no folder {folder}. Name the folder with the images to compare.")
    return [
        path
        for path in files_below(folder, [] if notes is None else notes)
        if path.suffix.lower() in IMAGE_SUFFIXES or (not path.suffix and starts_as_image(path))
        if path.is_file()
        if skip is None or not path.is_relative_to(skip)
    ]


class Session:
    """Labelling of one folder of images into one preference folder. Safe to use from several threads.

    Attributes:
        source: folder of images.
        target: preference folder.
        notes: folders of the source that were left out, and why.
    """

    def __init__(self, source: Path, target: Path) -> None:
        """Go on where the last session in `target` stopped, or begin.

        Args:
            source: folder of images.
            target: preference folder; chosen/ and rejected/ are made in it.

        Raises:
            ScdpoError: there is no source, or the session's file is damaged.
        """
        self.source, self.target = source.expanduser().absolute(), target.expanduser().absolute()
        self._lock = threading.Lock()
        self.notes: list[Problem] = []
        paths = images_in(self.source, self.target, self.notes)
        if all((self.source / side).is_dir() for side in _SIDES):
            # A preference folder: its masks and what was drawn on the way are nothing to choose between.
            paths = [path for path in paths if path.relative_to(self.source).parts[0] in _SIDES]
        self._candidates = propose(paths, self.source)
        self._answers, half = _read(self.target / STATE)
        sweep(self.target)
        if half is not None:
            self._mend(half)

    def view(self) -> SessionView:
        """Return how it stands."""
        with self._lock:
            return self._view()

    def answer(self, candidate: str, choice: Choice, prompt: str = "", category: str = "") -> SessionView:
        """Note an answer and write the pair.

        Args:
            candidate: id of what was asked. If something else is asked by now, nothing happens: a key
                that is pressed twice answers once.
            choice: which image is the better one.
            prompt: instead of the candidate's own.
            category: kind of harm that the worse image shows; 'benign' for none; '' not said.

        Raises:
            ScdpoError: there is no prompt, the category cannot name a folder, or the disk refuses.
        """
        with self._lock:
            current = self._view().current
            if current is None or current.id != candidate:
                return self._view()
            if choice == "skip":
                self._note(Answer(current.id, choice))
                return self._view()
            good, bad = (current.left, current.right)[:: 1 if choice == "left" else -1]
            words = " ".join((prompt or current.prompt).split())
            files = pair_files(self.target, words, category, good, bad)
            if files.complete:
                # Another's: it is not ours to take away again.
                self._note(Answer(current.id, choice))
                return self._view()
            answer = Answer(current.id, choice, files.names)
            self._save(half=answer)
            try:
                write_files(files, words, good, bad)
            except BaseException:
                self._save()
                raise
            self._note(answer)
            return self._view()

    def undo(self) -> SessionView:
        """Take the last answer back, and the files it made."""
        with self._lock:
            if self._answers:
                last = self._answers.pop()
                self._save(half=last)
                self._remove(last)
                self._save()
            return self._view()

    def _note(self, answer: Answer) -> None:
        self._answers.append(answer)
        self._save()

    def _mend(self, half: Answer) -> None:
        """End what a killed process had begun: then the pair is whole and noted, or all of it is gone."""
        for folder in {(self.target / name).parent for name in half.files}:
            sweep(folder)
        paths = [inside(self.target, name) for name in half.files]
        if paths and all(path is not None and path.is_file() for path in paths):
            self._note(half)
            return
        self._remove(half)
        self._save()

    def _remove(self, answer: Answer) -> None:
        """Remove an answer's files, as far as no other answer made the same ones."""
        shared = {name for other in self._answers for name in other.files}
        # The chosen image first: without it the others are no pair.
        for name in answer.files:
            path = inside(self.target, name)
            if path is not None and name not in shared:
                path.unlink(missing_ok=True)

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

    def _save(self, half: Answer | None = None) -> None:
        """Write all answers, and the one whose files are being written or removed."""
        state: dict[str, Any] = {"answers": [asdict(answer) for answer in self._answers]}
        if half is not None:
            state["half"] = asdict(half)
        write_json(self.target / STATE, state)


def import_pairs(
    target: Path, good: Sequence[Path], bad: Sequence[Path], prompt: str = "", category: str = ""
) -> int:
    """Take existing images as pairs: the first good one with the first bad one, and so on by name.

    Args:
        target: preference folder.
        good: the preferred images.
        bad: as many others.
        prompt: of all of them; '' takes what each pair's own files tell.
        category: of all of them, see `Session.answer`.

    Returns:
        How many pairs there are now; one that was there already is not written twice.

    Raises:
        ScdpoError: unlike numbers, or a pair without a prompt: then nothing is written.
    """
    if not good or len(good) != len(bad):
        raise ScdpoError(
            f"There are {len(good)} preferred images and {len(bad)} others. Give as many of one as of the "
            "other: they are taken as pairs in the order of their names."
        )
    pairs = list(zip(sorted(good, key=_name), sorted(bad, key=_name), strict=True))
    prompts = [prompt.strip() or prompt_of(first) or prompt_of(second) for first, second in pairs]
    for (first, _), words in zip(pairs, prompts, strict=True):
        if not words:
            raise ScdpoError(f"{first.name} does not say its prompt. Write it into the field for it.")
    for (first, second), words in zip(pairs, prompts, strict=True):
        text = " ".join(words.split())
        files = pair_files(target, text, category, first, second)
        if not files.complete:
            write_files(files, text, first, second)
    return len(pairs)


def _name(path: Path) -> str:
    return path.name


def _read(path: Path) -> tuple[list[Answer], Answer | None]:
    """Return the answers in a session's file, and the one that a killed process was writing or removing."""
    try:
        values: Any = json.loads(path.read_text("utf-8"))
        half = values.get("half")
        answers = [_answer(one, path.parent) for one in values["answers"]]
        return answers, None if half is None else _answer(half, path.parent)
    except FileNotFoundError:
        return [], None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ScdpoError(f"{path} is damaged; remove it to start labelling again.") from error


def _answer(value: Any, folder: Path) -> Answer:
    """Return an answer as it was written.

    Raises:
        ValueError, KeyError, TypeError: it is none.
        ScdpoError: it names files that labelling never makes.
    """
    identity, choice, files = value["id"], value["choice"], value["files"]
    texts = isinstance(files, list) and all(isinstance(name, str) for name in files)
    if not isinstance(identity, str) or choice not in get_args(Choice) or not texts:
        raise ValueError("no answer")
    for name in files:
        if not name.startswith(tuple(f"{side}/" for side in _SIDES)) or inside(folder, name) is None:
            raise ScdpoError(
                f"{folder / STATE} names the file {name!r}, which no labelling session wrote: the "
                "file was edited. Remove it to start labelling again."
            )
    return Answer(identity, choice, tuple(files))
