"""The images that a cost model learns from: which files, and what is known of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ..io.discover import files_below
from ..io.files import sha256_of
from ..io.image_types import IMAGE_SUFFIXES, starts_as_image
from ..io.images import ImageError, open_image
from ..preferences.listing import BENIGN, read_as, repeats_note, without_repeats
from ..types import Problem, ScdpoError

SAFE, UNSAFE = "safe", "unsafe"
"""Beside the folders of categories: what is harmless, and harm that has no category."""


@dataclass(frozen=True)
class CostExample:
    """One labelled image.

    Attributes:
        path: its file.
        unsafe: whether it shows harm.
        categories: the kinds of harm it is known to show, sorted; empty when safe or not said.
        pair: id of the pair it belongs to; '' for none. Twins are never split between training and held-out.
        digest: SHA-256 of the file; '' until `check` has read it.
        mined: whether it was chosen for being hard; such images teach, but say nothing about benign ones.
    """

    path: Path
    unsafe: bool
    categories: tuple[str, ...] = ()
    pair: str = ""
    digest: str = ""
    mined: bool = False


@dataclass(frozen=True)
class CheckedExamples:
    """What is left of a list of examples after every file was opened.

    Attributes:
        examples: readable images, each once, with digests.
        problems: one for every image that cannot be used.
        merged: number of files left out because another one has the same bytes and label.
        notes: what is odd about the folders, but stops nothing.
    """

    examples: Sequence[CostExample]
    problems: Sequence[Problem]
    merged: int
    notes: Sequence[Problem] = ()


Notice = Callable[[Problem], None]
"""Is told what is odd about a folder, but stops nothing."""


def list_folders(unsafe: Path, safe: Path, notice: Notice = lambda note: None) -> list[CostExample]:
    """All images below two folders; the first subfolder of `unsafe` names the category.

    Raises:
        ScdpoError: a folder is missing or holds no image.
    """
    harmful = [
        CostExample(path, True, parts[:1] if len(parts) > 1 else ())
        for path, parts in _with_known(unsafe, _images(unsafe, notice), (), notice)
    ]
    return harmful + list_benign(safe, notice)


def list_categories(root: Path, notice: Notice = lambda note: None) -> list[CostExample]:
    """All images of a folder that holds one folder for each category, and the harmless ones in `safe/`.

    The harmless folder may be called `benign/` instead. What lies in `unsafe/` is harm whose first subfolder
    names the category. These three names count in whatever capitals.

    Raises:
        ScdpoError: the folder is missing, holds no harmless or no harmful image, or holds images that lie
            in no folder; says which.
    """
    examples, loose = [], []
    for path, parts in _with_known(root, _images(root, notice), (SAFE, UNSAFE, BENIGN), notice):
        category, inner = parts[0], parts[1:-1]
        if len(parts) == 1:
            loose.append(path.name)
        elif category in (SAFE, BENIGN):
            examples.append(CostExample(path, False))
        elif category == UNSAFE:
            examples.append(CostExample(path, True, tuple(map(without_repeats, inner[:1]))))
        else:
            examples.append(CostExample(path, True, (category,)))
    if loose:
        more = f" and {len(loose) - 1} more" if len(loose) > 1 else ""
        raise ScdpoError(
            f"{loose[0]}{more} in {root} lie in no folder, so it is not known what they show. Put harmless "
            f"images into {root / SAFE} and the others into a folder named after their category."
        )
    sides = {example.unsafe for example in examples}
    if False not in sides:
        raise ScdpoError(f"There are no harmless images: {root} needs a folder '{SAFE}' beside the others.")
    if True not in sides:
        raise ScdpoError(f"{root} holds only harmless images. Add a folder for each category of harm.")
    return examples


def list_benign(folder: Path, notice: Notice = lambda note: None) -> list[CostExample]:
    """All images below a folder of harmless ones.

    Raises:
        ScdpoError: the folder is missing or holds no image.
    """
    return [CostExample(path, False) for path, _ in _images(folder, notice)]


def list_pairs(folder: Path, notice: Notice = lambda note: None) -> list[CostExample]:
    """The images of a preference folder: `chosen/` is safe, `rejected/` unsafe but for `rejected/benign/`.

    Files with the same stem below both are twins; one without a twin is used on its own. Prompts do not
    matter here.

    Raises:
        ScdpoError: a folder is missing or holds no image.
    """
    examples = []
    for side in ("chosen", "rejected"):
        found = _images(folder / side, notice)
        for path, parts in _with_known(folder / side, found, (BENIGN,), notice):
            pair = "/".join((*parts[:-1], Path(parts[-1]).stem))
            category = parts[:1] if len(parts) > 1 else ()
            unsafe = side == "rejected" and category != (BENIGN,)
            examples.append(CostExample(path, unsafe, category if unsafe else (), pair))
    return examples


def check(
    examples: Sequence[CostExample], progress: Callable[[int, int], None] = lambda done, total: None
) -> CheckedExamples:
    """Open every image once, merge copies, and find all problems at once.

    An image that lies in several category folders shows all those categories.

    Args:
        examples: as listed.
        progress: is told how many of how many files were read.
    """
    found: dict[str, CostExample] = {}
    problems: list[Problem] = []
    merged = 0
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for number, (example, seen) in enumerate(zip(examples, pool.map(_look, examples), strict=True), 1):
            known = found.get(seen) if isinstance(seen, str) else None
            if isinstance(seen, Problem):
                problems.append(seen)
            elif known is None:
                found[seen] = replace(example, digest=seen)
            elif known.unsafe != example.unsafe:
                what = f"the same image, {known.path}, has the other label. Remove one of the two."
                problems.append(Problem(example.path, what))
            else:
                merged += 1
                both = tuple(sorted({*known.categories, *example.categories}))
                found[seen] = replace(known, categories=both)
            progress(number, len(examples))
    return CheckedExamples(list(found.values()), problems, merged)


def _look(example: CostExample) -> str | Problem:
    """The hash of an image that can be decoded whole, or what is wrong with it."""
    try:
        open_image(example.path)
        return sha256_of(example.path)
    except ImageError as error:
        return Problem(example.path, error.what)
    except OSError as error:
        return Problem(example.path, f"the file cannot be read ({error.strerror or error}).")


def training_set_hash(examples: Iterable[CostExample]) -> str:
    """One hash of all images and their labels, in whatever order and under whatever names."""
    lines = sorted(f"{e.digest} {int(e.unsafe)} {'|'.join(e.categories)}" for e in examples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


_Listed = list[tuple[Path, tuple[str, ...]]]


def _with_known(root: Path, listed: _Listed, names: Sequence[str], notice: Notice) -> _Listed:
    """The same with first folders named as we do: reserved names in small letters, no repeats; with notes."""
    odd: dict[str, str] = {}
    found = []
    for path, parts in listed:
        if len(parts) > 1:
            plain = without_repeats(parts[0])
            known = next((name for name in names if plain.casefold() == name), None)
            if known is not None and parts[0] != known:
                odd.setdefault(parts[0], known)
            parts = (known or plain, *parts[1:])
        found.append((path, parts))
    repeats = repeats_note(root, (path.relative_to(root).parts[0] for path, parts in found if len(parts) > 1))
    if repeats is not None:
        notice(repeats)
    for name, known in odd.items():
        notice(read_as(root / name, known))
    return found


def _images(folder: Path, notice: Notice) -> _Listed:
    """Image files below a folder with their path parts inside it, sorted."""
    if not folder.is_dir():
        raise ScdpoError(f"There is no folder {folder}. Make it and put the images there.")
    problems: list[Problem] = []
    found = [
        (path, path.relative_to(folder).parts)
        for path in sorted(files_below(folder, problems))
        if path.suffix.lower() in IMAGE_SUFFIXES or (not path.suffix and starts_as_image(path))
        if path.is_file()
    ]
    fatal = [problem for problem in problems if problem.fatal]
    if fatal:
        # A category must not go missing because nobody could look.
        raise ScdpoError("\n".join(f"{problem.path}: {problem.what}" for problem in fatal))
    for note in problems:
        notice(note)
    if not found:
        kinds = ", ".join(sorted(suffix.lstrip(".") for suffix in IMAGE_SUFFIXES))
        raise ScdpoError(f"The folder {folder} holds no images ({kinds}). Put some there.")
    return found
