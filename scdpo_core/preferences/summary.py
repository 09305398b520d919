"""A preference folder at a glance: its pairs, what is wrong with it, how much there is of each category."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from PIL import Image

from ..io.images import ImageError, open_image
from ..reports.raster import FAINT, pair_card
from ..types import PreferencePair, Problem
from .folder import read_folder
from .problems import in_words


@dataclass(frozen=True)
class Survey:
    """What lies in a preference folder.

    Attributes:
        folder: the folder.
        pairs: those that nothing fatal is wrong with, by id.
        problems: everything that is wrong or odd, by file name.
    """

    folder: Path
    pairs: Sequence[PreferencePair]
    problems: Sequence[Problem]

    @property
    def categories(self) -> dict[str, int]:
        """Pairs of each category, most first; '' is none."""
        return dict(Counter(pair.category for pair in self.pairs).most_common())

    @property
    def usable(self) -> bool:
        """Whether it can be trained on as it is."""
        return bool(self.pairs) and not any(problem.fatal for problem in self.problems)

    def report(self) -> str:
        """Return all of it in words, one thing a line."""
        fatal = sum(problem.fatal for problem in self.problems)
        state = "ready" if self.usable else f"not usable yet, {fatal} problems to fix"
        counts = ", ".join(f"{name or 'no category'} {count}" for name, count in self.categories.items())
        lines = [f"{self.folder}: {len(self.pairs)} pairs, {state}."]
        if counts:
            lines.append(f"Categories: {counts}.")
        if self.problems:
            lines.append(dedent(in_words(self.problems, self.folder)))
        return "\n".join(lines)


def survey(folder: Path, progress: Callable[[int, int], None] | None = None) -> Survey:
    """Read a folder; every image is decoded once.

    Args:
        folder: with chosen/ and rejected/.
        progress: called with the number of images checked and the total.
    """
    return Survey(folder, *read_folder(folder, progress=progress))


def stamp(*folders: Path) -> str:
    """Return 16 hexadecimal digits that change when a file below the folders is added, removed or written.

    Names, sizes and times are looked at, not the contents, so that it takes no time.
    """
    digest = hashlib.sha256()
    for folder in folders:
        digest.update(f"{folder}\n".encode("utf-8", "surrogateescape"))
        for path in sorted(folder.rglob("*")):
            try:
                status = path.stat()
            except OSError:
                continue
            if path.is_file():
                line = f"{path.relative_to(folder)}|{status.st_size}|{status.st_mtime_ns}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def stamp_of_pairs(folder: Path) -> str:
    """Return the same for the images and prompts of a preference folder, ignoring other files."""
    return stamp(folder / "chosen", folder / "rejected")


def find(*roots: Path) -> list[Path]:
    """Return the preference folders in some folders and in the folders of those, sorted."""
    folders: set[Path] = set()
    for root in roots:
        for folder in (*_folders([root]), *_folders(_folders([root]))):
            if (folder / "chosen").is_dir() and (folder / "rejected").is_dir():
                folders.add(folder)
    return sorted(folders)


def card(pair: PreferencePair, side: int = 256) -> Image.Image:
    """Return a pair as one image: chosen and rejected side by side, the prompt below.

    Args:
        pair: of a folder.
        side: of each image, pixels.
    """
    return pair_card(_opened(pair.chosen, side), _opened(pair.rejected, side), pair.prompt, side)


def _folders(roots: Iterable[Path]) -> list[Path]:
    """Return the folders in some folders, without a stat of the files: output folders hold thousands."""
    folders = []
    for root in roots:
        try:
            with os.scandir(root) as entries:
                folders += [
                    Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_dir()
                ]
        except OSError:
            continue
    return folders


def _opened(path: Path, side: int) -> Image.Image:
    try:
        return open_image(path)
    except ImageError:  # it was there a moment ago
        return Image.new("RGB", (side, side), FAINT)
