"""From a row to a pair in the preference folder: its images checked, its files written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..io.discover import is_system_folder
from ..io.files import copy_file, write_text
from ..io.images import ImageError, Look, look_at_all
from ..preferences.folder import SAFE_PROMPTS
from ..preferences.writer import PairFiles, check_category, pair_files, write_files
from ..types import ScdpoError
from .images import NO_IMAGE, FoundImage, ImageFinder
from .job import ImportJob
from .rows import NO_PROMPT, PairRow, RowError, clean_prompt

SAME_IMAGE = "both images are the same"
NO_FOLDER = "its category cannot be a folder's name, so the pair has none"
BAD_SAFE_PROMPT = "its safe prompt is not valid UTF-8 text or too long, and is left out"
COPIED = "its images are stored inside the table, so they are copied although links were asked for"

_LONGEST_CATEGORY = 100  # bytes
# What spreadsheets take for a formula: weights.csv names categories.
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class ReadyPair:
    """A row whose images were found.

    Attributes:
        row: with the category and the prompts that are written.
        chosen: the preferred image.
        rejected: the other one.
        notes: what is written otherwise than the source states.
    """

    row: PairRow
    chosen: FoundImage
    rejected: FoundImage
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[Path, Path]:
        """Both files, the chosen one first."""
        return self.chosen.path, self.rejected.path


def prepare(
    row: PairRow, job: ImportJob, category: str, finder: ImageFinder, near: Sequence[Path]
) -> ReadyPair:
    """Find the images and the prompt of a row.

    Args:
        row: as the source states it.
        job: for the prompt and the links.
        category: of pairs for which the source names none.
        finder: of images.
        near: folders that names of images are relative to.

    Raises:
        RowError: an image or the prompt is missing or cannot be used.
        OSError: an image from a table cannot be staged.
    """
    chosen, rejected = finder.find(row.chosen, near), finder.find(row.rejected, near)
    prompt = finder.prompt_of_row(row, (chosen, rejected)) or clean_prompt(job.prompt)
    if not prompt:
        raise RowError(NO_PROMPT)
    notes = []
    kind, usable = usable_category(row.category)
    if not usable:
        notes.append(NO_FOLDER)
    safe_prompt = ""
    try:
        safe_prompt = clean_prompt(row.safe_prompt)
    except RowError:
        notes.append(BAD_SAFE_PROMPT)
    if job.by == "link" and (chosen.staged or rejected.staged):
        notes.append(COPIED)
    clean = replace(row, prompt=prompt, category=kind or category, safe_prompt=safe_prompt)
    return ReadyPair(clean, chosen, rejected, tuple(notes))


def usable_category(name: str) -> tuple[str, bool]:
    """The subfolder for a category that a source names, and whether it can be one; '' for none."""
    with suppress(ScdpoError, UnicodeEncodeError):
        found = check_category(name.replace("/", "-"))
        fits = len(found.encode("utf-8")) <= _LONGEST_CATEGORY and not found.startswith(_FORMULA)
        if fits and not is_system_folder(found):
            return found, True
    return "", False


def look_at(pairs: Sequence[ReadyPair]) -> list[RowError | None]:
    """Decode the images of pairs; returns what is wrong with each, None for nothing."""
    files = list(dict.fromkeys(path for pair in pairs for path in pair.images))
    looks = look_at_all(files)
    return [_verdict(pair, *(looks[path] for path in pair.images)) for pair in pairs]


def _verdict(pair: ReadyPair, chosen: Look | ImageError, rejected: Look | ImageError) -> RowError | None:
    for image, look in ((pair.chosen, chosen), (pair.rejected, rejected)):
        if isinstance(look, ImageError):
            # Nobody knows the file that a stored image was put into.
            return RowError(NO_IMAGE, f"in the table: {look.what}" if image.staged else str(look))
    return RowError(SAME_IMAGE) if chosen == rejected else None


def files_of(folder: Path, pair: ReadyPair) -> PairFiles:
    """Name the files of a pair, with the endings that their content has.

    Raises:
        ScdpoError: an image cannot be read.
    """
    files = pair_files(folder, pair.row.prompt, pair.row.category, *pair.images)
    return replace(
        files,
        chosen=files.chosen.with_suffix(pair.chosen.suffix),
        rejected=files.rejected.with_suffix(pair.rejected.suffix),
    )


def write(files: PairFiles, pair: ReadyPair, job: ImportJob) -> None:
    """Write a pair that is not complete; what a killed process left of it is mended.

    Raises:
        ScdpoError: links are asked for and this disk makes none.
        OSError: the folder cannot be written to.
    """
    row = pair.row
    if row.safe_prompt:
        write_text(files.folder / SAFE_PROMPTS / f"{files.stem}.txt", row.safe_prompt + "\n")
    if job.by == "copy" or (pair.chosen.staged and pair.rejected.staged):
        write_files(files, row.prompt, *pair.images)
        return
    # The chosen image last: without it the pair counts for nothing.
    _put(pair.rejected, files.rejected)
    write_text(files.text, row.prompt + "\n")
    _put(pair.chosen, files.chosen)


def _put(image: FoundImage, target: Path) -> None:
    """Link to an image, or copy one that was made for the import."""
    if image.staged:
        copy_file(image.path, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = os.path.realpath(image.path)
    if os.path.lexists(target):
        if os.path.realpath(target) == source:
            return
        target.unlink()
    try:
        os.symlink(source, target)
    except OSError:  # Windows without developer mode
        try:
            os.link(source, target)
        except OSError as error:
            raise ScdpoError(
                f"No link to {source} can be made in {target.parent} ({error.strerror}). Use --by copy."
            ) from error
