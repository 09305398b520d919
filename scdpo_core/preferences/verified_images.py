"""Which images of a folder were decoded before and found sound, so that the next start need not again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..io.files import write_json
from ..io.images import MAX_PIXELS, ImageInfo
from ..io.json_schema import SchemaError, read_json


@dataclass(frozen=True)
class _Entry:
    """One image: its file's bytes and time of change (ns), and what `images.ImageInfo` says of it."""

    bytes: int
    mtime_ns: int
    width: int
    height: int
    digest: str
    frames: int

    def info(self) -> ImageInfo | None:
        """Return what was seen; None where no image looks like that."""
        if min(self.width, self.height, self.frames) < 1 or self.width * self.height > MAX_PIXELS:
            return None
        try:
            return ImageInfo((self.width, self.height), bytes.fromhex(self.digest), self.frames)
        except ValueError:
            return None


@dataclass(frozen=True)
class _Record:
    """The file: entries by absolute path."""

    images: Mapping[str, _Entry] = field(default_factory=dict)


class KnownImages:
    """What is known of sound images by path, size and time of change, kept in a file.

    Of an image that was written since, nothing is known, and nothing is kept of one that cannot be used:
    it is checked again each time, because it may have been repaired.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Read the file; a missing or damaged one counts as empty.

        Args:
            path: the file; None keeps nothing.
        """
        self._path, self._fresh = path, False
        self._images: dict[str, _Entry] = {}
        if path is not None:
            with suppress(OSError, SchemaError):
                self._images = dict(read_json(path, _Record).images)

    def get(self, image: Path) -> ImageInfo | None:
        """Return what is known of an image as it lies there now."""
        entry = self._images.get(os.path.abspath(image))
        if entry is None or (entry.bytes, entry.mtime_ns) != _facts(image):
            return None
        return entry.info()

    def put(self, image: Path, info: ImageInfo) -> None:
        """Remember a sound image."""
        facts = _facts(image)
        if facts is not None:
            entry = _Entry(*facts, *info.size, info.digest.hex(), info.frames)
            self._images[os.path.abspath(image)] = entry
            self._fresh = True

    def write(self) -> None:
        """Write the file, if there is anything new.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        if self._path is not None and self._fresh:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, asdict(_Record(self._images)))
            self._fresh = False


def _facts(image: Path) -> tuple[int, int] | None:
    """Return bytes and time of change of a file; None where it is not there."""
    try:
        status = image.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
