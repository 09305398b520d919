"""From what a source says of an image to a file that may be read: confined, bounded, of a known kind.

A source is anybody's: its names may lead anywhere. Only what lies in the source's folder, or in folders that
the person names, is opened, links included.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..io.files import inside
from ..io.image_metadata import files_beside, prompt_of
from ..io.image_types import describe, suffix_of
from ..io.infotext import MAX_PROMPT
from .rows import ImageRef, PairRow, RowError, clean_prompt

MAX_IMAGE_BYTES = 256 << 20
"""Bytes of an image's file."""

MISSING = "an image is missing: there is no such file"
OUTSIDE = "an image lies outside of the source (name its folder with --images to allow it)"
ON_THE_NETWORK = "an image is an address on the network; nothing is downloaded"
TOO_LARGE = f"an image's file is larger than {MAX_IMAGE_BYTES >> 20} MB"
NO_IMAGE = "an image cannot be read"

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_DATA = re.compile(r"data:image/[\w.+-]{1,40};base64,", re.IGNORECASE)
_LONGEST_NAME = 4096  # characters; what is longer is an image in base64


@dataclass(frozen=True)
class FoundImage:
    """An image's file.

    Attributes:
        path: where it can be read.
        suffix: the usual ending for what it holds.
        staged: whether it was made for the import, so that it must be copied.
    """

    path: Path
    suffix: str
    staged: bool = False


class ImageFinder:
    """Find the images of a source inside the folders that may be read."""

    def __init__(self, roots: Sequence[Path], staging: Path | None = None) -> None:
        """Confine to folders.

        Args:
            roots: folders that names are relative to, in this order; nothing outside of them is read.
            staging: folder for images that have no file; None writes none (a dry run).
        """
        self._roots = list(dict.fromkeys(root.absolute() for root in roots))
        self._real = [Path(os.path.realpath(root)) for root in self._roots]
        self._staging = staging
        self._numbers = itertools.count()
        self._allowed: dict[Path, bool] = {}

    def find(self, ref: ImageRef, near: Sequence[Path] = ()) -> FoundImage:
        """Find or write the file of an image.

        Args:
            ref: as the source states it.
            near: folders that its name may be relative to, tried before the roots.

        Raises:
            RowError: it is missing, not to be read, too large or no image.
            OSError: the staging folder cannot be written to.
        """
        if isinstance(ref, str) and len(ref) <= _LONGEST_NAME and not _DATA.match(ref):
            ref = self._path_of(ref, near)
        if isinstance(ref, Path):
            return self._checked(ref)
        content = _decoded(ref) if isinstance(ref, str) else ref
        if len(content) > MAX_IMAGE_BYTES:
            raise RowError(TOO_LARGE, f"{len(content):,} bytes in the table")
        suffix = suffix_of(content[:16])
        if not suffix:
            raise RowError(NO_IMAGE, f"in the table: {describe(content[:512])}")
        path = Path()
        if self._staging is not None:
            path = self._staging / f"{next(self._numbers)}{suffix}"
            # As good as it is: a killed process leaves nothing here that the next one reads.
            path.write_bytes(content)
        return FoundImage(path, suffix, staged=True)

    def allows(self, path: Path) -> bool:
        """Return whether a file lies in one of the folders, links followed."""
        try:
            real = Path(os.path.realpath(path))
        except (OSError, ValueError):
            return False
        return any(real.is_relative_to(root) for root in self._real)

    def prompt_of(self, *images: Path, captions: Sequence[Path] = ()) -> str:
        """Read the prompt of images as a preference folder is read: text files first, then their metadata.

        Raises:
            RowError: a text is no UTF-8, or too long.
        """
        for path in (*itertools.chain.from_iterable(map(files_beside, images)), *captions):
            readable = os.path.isfile(path) and self.allows(path)
            if readable and (words := clean_prompt(_read_text(path))):
                return words
        # What these read beside an image has been looked at above.
        confined = (image for image in images if self.allows(image) and not any(_links(image)))
        return next((words for image in confined if (words := clean_prompt(prompt_of(image)))), "")

    def prompt_of_row(self, row: PairRow, images: Sequence[FoundImage]) -> str:
        """Return the prompt of a pair: the source's, else its images'; '' for none.

        Raises:
            RowError: it is no UTF-8, or too long.
        """
        return clean_prompt(row.prompt) or self.prompt_of(
            *(image.path for image in images if image.path.name), captions=row.captions
        )

    def _path_of(self, name: str, near: Sequence[Path]) -> Path:
        if _ADDRESS.match(name):
            raise RowError(ON_THE_NETWORK, name[:200])
        outside = False
        roots = [*(folder for folder in near if self._allows_folder(folder)), *self._roots]
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
            if os.path.isabs(spelling):
                if self.allows(Path(spelling)):
                    return Path(spelling)
                outside = True
                continue
            for root in roots:
                path = inside(root, os.path.normpath(spelling))
                outside = outside or path is None
                if path is not None and os.path.isfile(path):
                    return path
        raise RowError(OUTSIDE if outside else MISSING, name[:200])

    def _allows_folder(self, folder: Path) -> bool:
        """Return whether a folder is allowed, as `allows`; cached, because every image of a table asks."""
        if folder not in self._allowed:
            self._allowed[folder] = self.allows(folder)
        return self._allowed[folder]

    def _checked(self, path: Path) -> FoundImage:
        if not self.allows(path):
            raise RowError(OUTSIDE, str(path))
        try:
            if not path.is_file():
                raise RowError(MISSING, str(path))
            if (size := path.stat().st_size) > MAX_IMAGE_BYTES:
                raise RowError(TOO_LARGE, f"{path}: {size:,} bytes")
            with path.open("rb") as stream:
                head = stream.read(512)
        except (OSError, ValueError) as error:
            raise RowError(NO_IMAGE, f"{path}: {getattr(error, 'strerror', None) or error}") from error
        if not (suffix := suffix_of(head[:16])):
            raise RowError(NO_IMAGE, f"{path}: {describe(head) if head else 'the file is empty.'}")
        return FoundImage(path, suffix)


def _links(image: Path) -> Iterator[bool]:
    """Return whether the text files beside an image are links."""
    return (os.path.islink(path) for path in files_beside(image))


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_PROMPT + 1).decode("utf-8-sig", "surrogateescape")
    except OSError:
        return ""


def _decoded(text: str) -> bytes:
    """Decode an image that a text table holds as base64.

    Raises:
        RowError: it is something else.
    """
    try:
        return base64.b64decode(_DATA.sub("", text, count=1), validate=True)
    except (binascii.Error, ValueError):
        raise RowError(NO_IMAGE, "a long text in the table that is no base64") from None
