"""Open images frame by frame, within the limits of `images` and of time and memory."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from .alpha_views import views
from .decode_budget import BUDGET
from .image_types import formats
from .images import ImageError, decode_errors, orientation, require_size, upright
from .png import decodable

MAX_FRAMES = 64
"""Most frames of an animation that are looked at."""
MAX_ANIMATION_PIXELS = 2_000_000_000
"""Most pixels that are decoded for one animation."""
_MAX_PAGES = 5000


def open_frames(path: Path, stream: BinaryIO, every: int = 0) -> Generator[tuple[int, Image.Image]]:
    """Decode an image, or every n-th frame of an animation, as upright RGB of 8 bits a channel.

    As long as an image is looked at it counts in `budget.BUDGET`, so that memory stays bounded in whatever
    threads. Frames come one by one; keep none of them.

    Args:
        path: the file's name, for messages.
        stream: its content, at the start.
        every: look at frames 0, n, 2n, ... (at most `MAX_FRAMES`); 0 for the first one alone.

    Yields:
        The frame's number and the frame; one with transparent areas several times, first as it is seen on
        white and then in the other ways of `views`.

    Raises:
        ImageError: empty, not an image, damaged or cut off, too large, or an animation too long.
    """
    head = stream.read(512)
    with decode_errors(path, head), Image.open(decodable(stream), formats=formats()) as image:
        require_size(path, image.size)
        with BUDGET.take(BUDGET.for_image(*image.size)):
            yield from _frames(path, image, every)


def open_frame(path: Path, number: int = 0) -> Image.Image:
    """Decode one frame of an image file as upright RGB on white.

    Args:
        path: of the file.
        number: index of an animation's frame.

    Raises:
        ImageError: as `open_frames`, or there is no such frame.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        for index, image in open_frames(path, stream, number):
            if index == number:
                return image
    raise ImageError(path, f"it has no frame {number}.")


def _frames(path: Path, image: Image.Image, every: int) -> Iterator[tuple[int, Image.Image]]:
    image.load()
    yield from _finished(0, image)
    if not every or not getattr(image, "is_animated", False):
        return
    pixels = image.width * image.height
    for number in range(every, every * MAX_FRAMES, every):
        # Pillow needs the square of their number to count a TIFF's pages, and to look for one.
        if number > _MAX_PAGES and image.format == "TIFF":
            raise ImageError(path, "the file has too many pages. Score only the first one.")
        if image.format != "TIFF" and number >= getattr(image, "n_frames", 1):
            return
        # Most formats decode all frames on the way to the wanted one.
        if number * pixels > MAX_ANIMATION_PIXELS:
            raise ImageError(path, "the animation is too long. Score only its first frame.")
        try:
            image.seek(number)
        except EOFError:
            if image.format == "TIFF":
                return
            raise
        # Pages of a TIFF have sizes of their own.
        require_size(path, image.size)
        image.load()
        yield from _finished(number, image)


def _finished(number: int, image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    # Only after loading are mode and orientation final: loading turns TIFF upright and may unfold a palette.
    tag = orientation(image)
    for view in views(image):
        yield number, upright(view, tag)
