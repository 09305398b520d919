"""From a row to a pair in the preference folder: its images checked, its files written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..io.discover import is_system_folder
from ..io.files import copy_file, write_text
from ..io.images import ImageError, ImageInfo, inspect_images
from ..preferences.folder import SAFE_PROMPTS
from ..preferences.writer import PairFiles, check_category, pair_files, write_files
from ..types import ScdpoError
from .images import NO_IMAGE, FoundImage, ImageFinder
from .job import ImportJob
from .rows import NO_PROMPT, PairRow, RowError, clean_prompt

SAME_IMAGE = "both images are the same"
NO_FOLDER = "its category cannot be a folder's name, so the pair has none"
BAD_SAFE_PROMPT = "its safe prompt is not valid UTF-8 text or too long, and is left out"
COPIED = "its images are stored inside the table, so they are copied although links were requested"

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
    """Return the subfolder for a source's category, and whether it is usable; '' for none."""
    with suppress(ScdpoError, UnicodeEncodeError):
        folder = check_category(name.replace("/", "-"))
        fits = len(folder.encode("utf-8")) <= _LONGEST_CATEGORY and not folder.startswith(_FORMULA)
        if fits and not is_system_folder(folder):
            return folder, True
    return "", False


def find_errors(pairs: Sequence[ReadyPair]) -> list[RowError | None]:
    """Decode the images of pairs; returns what is wrong with each, None for nothing."""
    files = list(dict.fromkeys(path for pair in pairs for path in pair.images))
    infos = inspect_images(files)
    return [_verdict(pair, *(infos[path] for path in pair.images)) for pair in pairs]


def _verdict(
    pair: ReadyPair, chosen: ImageInfo | ImageError, rejected: ImageInfo | ImageError
) -> RowError | None:
    for image, result in ((pair.chosen, chosen), (pair.rejected, rejected)):
        if isinstance(result, ImageError):
            # The temporary file of an image from a table means nothing to the user.
            return RowError(NO_IMAGE, f"in the table: {result.what}" if image.staged else str(result))
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
        ScdpoError: links are requested and this disk does not support them.
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
