"""Opening any image that Pillow reads, frame by frame, within bounds of time and memory."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from .alpha_views import views
from .decode_budget import BUDGET
from .image_types import describe
from .images import ImageError, orientation, upright
from .png import decodable

MAX_PIXELS = 150_000_000
"""Most pixels of an image that is opened; a 30,000 x 5,000 panorama is."""
MAX_FRAMES = 64
"""Most frames of an animation that are looked at."""
MAX_ANIMATION_PIXELS = 2_000_000_000
"""Most pixels that are decoded for one animation."""
_MAX_PAGES = 5000

_NEVER = frozenset({"EPS", "WMF", "PDF", "MPEG", "FPX", "MIC", "BUFR", "GRIB", "HDF5"})
"""Kinds that start another program (EPS) or that Pillow names without decoding them."""
_HEIC_PLUGINS = ("pillow_heif", "pi_heif")
"""The second one only reads, and carries no encoder under a licence of its own."""
_BRANDS = {b"heic": "HEIF", b"heix": "HEIF", b"mif1": "HEIF", b"avif": "AVIF", b"avis": "AVIF"}


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
    if not head:
        raise ImageError(path, "the file is empty (0 bytes). Save or copy the image again.")
    try:
        with Image.open(decodable(stream), formats=formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(path, _too_large(image.width, image.height))
            with BUDGET.take(BUDGET.for_image(*image.size)):
                yield from _frames(path, image, every)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(path, "there is not enough memory to open the image. Make it smaller.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"the image is too large to be opened safely ({error}).") from error
    except UnidentifiedImageError as error:
        raise ImageError(path, _unread(head) or describe(head)) from error
    # Pillow's decoders raise nearly any kind of exception on malformed files.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            path, f"the image is damaged, cut off or of an unusual kind ({reason}). Save or copy it again."
        ) from error


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
            raise ImageError(path, "the file has too many pages to be looked at whole. Score its first.")
        if image.format != "TIFF" and number >= getattr(image, "n_frames", 1):
            return
        # Most formats decode all frames on the way to the wanted one.
        if number * pixels > MAX_ANIMATION_PIXELS:
            raise ImageError(path, "the animation is too long to be looked at whole. Score its first frame.")
        try:
            image.seek(number)
        except EOFError:
            if image.format == "TIFF":
                return
            raise
        # Pages of a TIFF have sizes of their own.
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(path, _too_large(image.width, image.height))
        image.load()
        yield from _finished(number, image)


def _finished(number: int, image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    # Only after loading are mode and orientation final: loading turns TIFF upright and may unfold a palette.
    tag = orientation(image)
    for view in views(image):
        yield number, upright(view, tag)


def _unread(head: bytes) -> str:
    """What a HEIC or AVIF file lacks or is; '' for other files."""
    kind = _BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None
    if kind is None:
        return ""
    if kind in formats():
        return "the image is damaged or cut off. Save or copy it again."
    name, package = {"HEIF": ("HEIC", "pi-heif"), "AVIF": ("AVIF", "pillow-avif-plugin")}[kind]
    return f"this is {name}, which needs the package '{package}'. Or save it as JPEG."


def _too_large(width: int, height: int) -> str:
    return (
        f"the image is {width} x {height} pixels; up to {MAX_PIXELS // 1_000_000} megapixels can be "
        "scored. Make it smaller."
    )


@cache
def formats() -> tuple[str, ...]:
    """The kinds of image that are read, HEIC and AVIF among them where a plug-in for them is installed."""
    Image.init()
    for plugin in _HEIC_PLUGINS:
        if importlib.util.find_spec(plugin) is not None:
            importlib.import_module(plugin).register_heif_opener()
            break
    # Pillow reads AVIF itself since 11.3; this one registers itself where it is imported.
    if "AVIF" not in Image.OPEN and importlib.util.find_spec("pillow_avif") is not None:
        importlib.import_module("pillow_avif")
    return tuple(name for name in Image.ID if name not in _NEVER)


@cache
def suffixes() -> frozenset[str]:
    """File endings of those kinds, lower case."""
    usable = formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in usable)
