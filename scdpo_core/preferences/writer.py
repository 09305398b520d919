"""Writing preference pairs: the only place that puts images into chosen/ and rejected/."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..io.files import atomic_path, sha256_of
from ..types import ScdpoError
from .listing import reserved

Source = Image.Image | Path
"""An image, or a file that holds one and is copied as it is."""

_NO_WORD = re.compile(r"[^a-z0-9]+")
_NO_FOLDER = re.compile(r'[<>:"/\\|?*\x00-\x1f]|^\.|[. ]$')
_MOST_WORDS = 40  # characters of a prompt in a file's name


@dataclass(frozen=True)
class PairFiles:
    """The three files of a pair, whether they are there or not.

    Attributes:
        folder: the preference folder.
        stem: below chosen/ and rejected/, without an ending.
        category: the subfolder; '' for none.
        chosen: the preferred image.
        rejected: the other one.
        text: the prompt.
    """

    folder: Path
    stem: str
    category: str
    chosen: Path
    rejected: Path
    text: Path

    @property
    def names(self) -> tuple[str, ...]:
        """All three, relative to the folder."""
        files = (self.chosen, self.rejected, self.text)
        return tuple(path.relative_to(self.folder).as_posix() for path in files)

    @property
    def complete(self) -> bool:
        """Whether all three are there; each is whole if it is."""
        return self.chosen.is_file() and self.rejected.is_file() and self.text.is_file()


def check_category(category: str) -> str:
    """Return the subfolder that a category's pairs lie in; '' for none.

    Raises:
        ScdpoError: it cannot be a folder's name.
    """
    category = category.strip()
    if category and _NO_FOLDER.search(category):
        raise ScdpoError(f"'{category}' cannot be the name of a folder. Use a word such as weapon.")
    return reserved(category) or category


def category_folder(name: str) -> str:
    """Return the subfolder for a prompt file's category; '' where it can be none, or would say 'harmless'."""
    try:
        return "" if reserved(name) else check_category(name.replace("/", "-"))
    except ScdpoError:
        return ""


def pair_files(folder: Path, prompt: str, category: str, chosen: Source, rejected: Source) -> PairFiles:
    """Name the files of a pair by what it holds, so that the same pair always has the same name.

    Args:
        folder: with chosen/ and rejected/, which need not be there yet.
        prompt: that both images were made for.
        category: kind of harm; '' for none.
        chosen: the preferred image.
        rejected: the other one.

    Raises:
        ScdpoError: there is no prompt, the category cannot be a folder's name, or a file cannot be read.
    """
    if not prompt.strip():
        raise ScdpoError("The prompt is empty: write the words that both images were made for.")
    category = check_category(category)
    try:
        name = _name(prompt, chosen, rejected)
    except OSError as error:
        raise ScdpoError(f"{error.filename} cannot be read ({error.strerror or error}).") from error
    stem = f"{category}/{name}" if category else name
    return PairFiles(
        folder,
        stem,
        category,
        folder / f"chosen/{stem}{_suffix(chosen)}",
        folder / f"rejected/{stem}{_suffix(rejected)}",
        folder / f"chosen/{stem}.txt",
    )


def write_files(files: PairFiles, prompt: str, chosen: Source, rejected: Source) -> None:
    """Write a pair that is not complete; what a killed process left of it is mended.

    All three files are ready on the disk before the first one gets its name, the chosen image last: without
    it the pair counts for nothing.

    Raises:
        ScdpoError: the folder cannot be written to; then nothing of the pair is there.
    """
    before = [path for path in (files.chosen, files.rejected, files.text) if path.exists()]
    try:
        with ExitStack() as last_is_first:
            for path, source in ((files.chosen, chosen), (files.rejected, rejected), (files.text, prompt)):
                temporary = last_is_first.enter_context(atomic_path(path))
                _fill(temporary, source)
    except BaseException as error:
        for path in (files.chosen, files.rejected, files.text):
            if path not in before:
                path.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise ScdpoError(
            f"The pair cannot be written into {files.folder} ({error.strerror or error}). Choose a folder "
            "that can be written to, on a disk that is not full."
        ) from error


def _fill(file: Path, source: Source | str) -> None:
    if isinstance(source, str):
        file.write_text(source + "\n", encoding="utf-8")
    elif isinstance(source, Path):
        shutil.copyfile(source, file)
    else:
        source.save(file, format="PNG")
    with file.open("r+b") as stream:
        # Now, so that the three names come without a pause between them.
        os.fsync(stream.fileno())


def _suffix(source: Source) -> str:
    return source.suffix.lower() if isinstance(source, Path) else ".png"


def _name(prompt: str, chosen: Source, rejected: Source) -> str:
    """Return words of the prompt for people, and a few digits of what the pair holds."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = _NO_WORD.sub("-", plain).strip("-")[:_MOST_WORDS].strip("-") or "pair"
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass"))
    for content in _contents(chosen, rejected):
        digest.update(content)
    # Folders hold many more labelled pairs of one prompt than drawn ones.
    return f"{words}-{digest.hexdigest()[: 16 if isinstance(chosen, Path) else 8]}"


def _contents(*sources: Source) -> Iterator[bytes]:
    for source in sources:
        yield sha256_of(source).encode() if isinstance(source, Path) else source.tobytes()
