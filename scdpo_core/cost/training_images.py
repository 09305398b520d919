"""List and check the images that a cost model is trained on."""

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
"""Folder names beside those of categories: harmless images, and harm without a category."""


@dataclass(frozen=True)
class CostExample:
    """One labelled image.

    Attributes:
        path: its file.
        unsafe: whether it shows harm.
        categories: harm categories it is known to show, sorted; empty when safe or unspecified.
        pair: id of the pair it belongs to; '' for none. Twins are never split between training and held-out.
        digest: SHA-256 of the file; '' until `check` has read it.
        mined: whether it is a hard negative; trained on, but left out of calibration and figures.
    """

    path: Path
    unsafe: bool
    categories: tuple[str, ...] = ()
    pair: str = ""
    digest: str = ""
    mined: bool = False


@dataclass(frozen=True)
class CheckedExamples:
    """The usable examples after every file was opened.

    Attributes:
        examples: readable images, each once, with digests.
        problems: one for every image that cannot be used.
        merged: number of files left out because another one has the same bytes and label.
        notes: what is odd about the folders but stops nothing.
    """

    examples: Sequence[CostExample]
    problems: Sequence[Problem]
    merged: int
    notes: Sequence[Problem] = ()


Notice = Callable[[Problem], None]
"""Called with what is odd about a folder but stops nothing."""


def list_folders(unsafe: Path, safe: Path, notice: Notice = lambda note: None) -> list[CostExample]:
    """List all images below two folders; the first subfolder of `unsafe` names the category.

    Raises:
        ScdpoError: a folder is missing or holds no image.
    """
    harmful = [
        CostExample(path, True, parts[:1] if len(parts) > 1 else ())
        for path, parts in _normalise_folders(unsafe, _images(unsafe, notice), (), notice)
    ]
    return harmful + list_benign(safe, notice)


def list_categories(root: Path, notice: Notice = lambda note: None) -> list[CostExample]:
    """List all images of a folder with one folder for each category and harmless ones in `safe/`.

    The harmless folder may be called `benign/` instead. What lies in `unsafe/` is harm whose first subfolder
    names the category. Capitals do not matter in these three names.

    Raises:
        ScdpoError: the folder is missing, holds no harmless or no harmful image, or holds images that lie
            in no folder; says which.
    """
    examples, loose = [], []
    for path, parts in _normalise_folders(root, _images(root, notice), (SAFE, UNSAFE, BENIGN), notice):
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
            f"{loose[0]}{more} in {root} are in no category folder, so they have no label. Put harmless "
            f"images into {root / SAFE} and the others into folders named after their category."
        )
    sides = {example.unsafe for example in examples}
    if False not in sides:
        raise ScdpoError(f"There are no harmless images: {root} needs a folder '{SAFE}' beside the others.")
    if True not in sides:
        raise ScdpoError(f"{root} holds only harmless images. Add a folder for each category of harm.")
    return examples


def list_benign(folder: Path, notice: Notice = lambda note: None) -> list[CostExample]:
    """List all images below a folder of harmless ones.

    Raises:
        ScdpoError: the folder is missing or holds no image.
    """
    return [CostExample(path, False) for path, _ in _images(folder, notice)]


def list_pairs(folder: Path, notice: Notice = lambda note: None) -> list[CostExample]:
    """List the images of a preference folder: `rejected/` is unsafe but for `rejected/benign/`.

    Files with the same stem below both are twins; one without a twin is used on its own. Prompts do not
    matter here.

    Raises:
        ScdpoError: a folder is missing or holds no image.
    """
    examples = []
    for side in ("chosen", "rejected"):
        listed = _images(folder / side, notice)
        for path, parts in _normalise_folders(folder / side, listed, (BENIGN,), notice):
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
        progress: called with the number of files read and the total.
    """
    by_digest: dict[str, CostExample] = {}
    problems: list[Problem] = []
    merged = 0
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for number, (example, digest_or_problem) in enumerate(
            zip(examples, pool.map(_digest_of, examples), strict=True), 1
        ):
            previous = by_digest.get(digest_or_problem) if isinstance(digest_or_problem, str) else None
            if isinstance(digest_or_problem, Problem):
                problems.append(digest_or_problem)
            elif previous is None:
                by_digest[digest_or_problem] = replace(example, digest=digest_or_problem)
            elif previous.unsafe != example.unsafe:
                message = f"the same image, {previous.path}, has the other label. Remove one of the two."
                problems.append(Problem(example.path, message))
            else:
                merged += 1
                categories = tuple(sorted({*previous.categories, *example.categories}))
                by_digest[digest_or_problem] = replace(previous, categories=categories)
            progress(number, len(examples))
    return CheckedExamples(list(by_digest.values()), problems, merged)


def _digest_of(example: CostExample) -> str | Problem:
    """Decode an image and return its hash, or what is wrong with it."""
    try:
        open_image(example.path)
        return sha256_of(example.path)
    except ImageError as error:
        return Problem(example.path, error.what)
    except OSError as error:
        return Problem(example.path, f"the file cannot be read ({error.strerror or error}).")


def training_set_hash(examples: Iterable[CostExample]) -> str:
    """Hash all images and their labels, independent of order and file names."""
    lines = sorted(f"{e.digest} {int(e.unsafe)} {'|'.join(e.categories)}" for e in examples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


_Listed = list[tuple[Path, tuple[str, ...]]]


def _normalise_folders(root: Path, listed: _Listed, names: Sequence[str], notice: Notice) -> _Listed:
    """Normalise first folders: reserved names in small letters, without repeat prefixes; adds notes."""
    renamed: dict[str, str] = {}
    normalised = []
    for path, parts in listed:
        if len(parts) > 1:
            folder_name = without_repeats(parts[0])
            reserved = next((name for name in names if folder_name.casefold() == name), None)
            if reserved is not None and parts[0] != reserved:
                renamed.setdefault(parts[0], reserved)
            parts = (reserved or folder_name, *parts[1:])
        normalised.append((path, parts))
    repeats = repeats_note(
        root, (path.relative_to(root).parts[0] for path, parts in normalised if len(parts) > 1)
    )
    if repeats is not None:
        notice(repeats)
    for name, reserved in renamed.items():
        notice(read_as(root / name, reserved))
    return normalised


def _images(folder: Path, notice: Notice) -> _Listed:
    """List image files below a folder with their path parts inside it, sorted."""
    if not folder.is_dir():
        raise ScdpoError(f"There is no folder {folder}. Create it and put the images there.")
    problems: list[Problem] = []
    listed = [
        (path, path.relative_to(folder).parts)
        for path in sorted(files_below(folder, problems))
        if path.suffix.lower() in IMAGE_SUFFIXES or (not path.suffix and starts_as_image(path))
        if path.is_file()
    ]
    fatal = [problem for problem in problems if problem.fatal]
    if fatal:
        # A category must not go missing because its folder could not be read.
        raise ScdpoError("\n".join(f"{problem.path}: {problem.what}" for problem in fatal))
    for note in problems:
        notice(note)
    if not listed:
        suffixes = ", ".join(sorted(suffix.lstrip(".") for suffix in IMAGE_SUFFIXES))
        raise ScdpoError(f"The folder {folder} has no images ({suffixes}). Put some there.")
    return listed
