"""Images as data URIs: thumbnails of files, and sets of images that share a budget."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from PIL import Image, features

from ..io.image_frames import open_frame
from ..io.images import ImageError

T = TypeVar("T")

CRISP_UP_TO = 128
"""Images of at most that many pixels a side are shown with hard pixels."""
BUDGET = 2_200_000
"""Characters that all images of a report may take together, so that it stays under 3 MB."""

_KEPT = 600  # encoded thumbnails
_MOST_PNG = 24_000  # bytes


def spread(items: Sequence[T], count: int) -> list[T]:
    """Choose at most `count` items at even steps, to show a part of many."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


@dataclass(frozen=True)
class Thumbnail:
    """A small image inside a page.

    Attributes:
        uri: data URI.
        width: of the thumbnail, pixels.
        height: of the thumbnail, pixels.
    """

    uri: str
    width: int
    height: int

    @property
    def style(self) -> str:
        """CSS class that keeps the hard pixels of small drawings."""
        return "crisp" if max(self.width, self.height) <= CRISP_UP_TO else "smooth"


@dataclass(frozen=True)
class _Encoding:
    """One way to make images smaller: longest side, palette size (0: all colours), WebP quality."""

    side: int
    colours: int
    quality: int | None


_ENCODINGS = (
    _Encoding(256, 0, None),
    _Encoding(256, 128, None),
    _Encoding(256, 0, 90),
    _Encoding(256, 0, 75),
    _Encoding(192, 0, 75),
    _Encoding(160, 0, 70),
    _Encoding(96, 0, 60),
    _Encoding(64, 0, 40),
)
"""From faithful to small. Small drawings start lossless, then with a palette, which keeps the hard
edges that lossy WebP smears; photographs start at the third."""


def thumbnail_of(path: Path | str, side: int = 224, frame: int = 0) -> Thumbnail | None:
    """Make a thumbnail of an image file; None where it is gone or cannot be opened.

    Args:
        path: of the file.
        side: longest side of the thumbnail, pixels.
        frame: index of an animation's frame.
    """
    try:
        return _thumbnail_of(Path(path), Path(path).stat().st_mtime_ns, side, frame)
    except (OSError, ImageError):
        return None


@lru_cache(maxsize=_KEPT)
def _thumbnail_of(path: Path, changed: int, side: int, frame: int) -> Thumbnail:
    """Cache by modification time, so that a new file gives a new thumbnail."""
    return thumbnail(open_frame(path, frame), side)


def thumbnail(image: Image.Image, side: int = 224) -> Thumbnail:
    """Make a thumbnail of at most `side` pixels a side."""
    small = image.convert("RGB")
    if max(small.size) > side:
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    crisp = max(small.size) <= CRISP_UP_TO
    if crisp:
        small.save(stream, "PNG")
    kind = "png"
    if not crisp or stream.tell() > _MOST_PNG:
        stream, kind = io.BytesIO(), "jpeg"
        small.save(stream, "JPEG", quality=92 if crisp else 82)
    return Thumbnail(_uri(kind, stream), *small.size)


def encode(images: Sequence[Image.Image], budget: int = BUDGET) -> list[str]:
    """Return images as data URIs, all encoded alike, as faithfully as `budget` characters allow."""
    photos = any(max(image.size) > CRISP_UP_TO for image in images)
    encodings = _ENCODINGS[2:] if photos else _ENCODINGS
    uris: list[str] = []
    for encoding in encodings:
        uris, spent = [], 0
        for image in images:
            uris.append(_encoded(image, encoding))
            spent += len(uris[-1])
            if spent > budget and encoding is not encodings[-1]:
                break
        else:
            break
    return uris


def _encoded(image: Image.Image, encoding: _Encoding) -> str:
    small = image.convert("RGB")
    if max(small.size) > encoding.side:
        small.thumbnail((encoding.side, encoding.side), Image.Resampling.LANCZOS)
    if encoding.colours:
        small = small.quantize(encoding.colours, dither=Image.Dither.NONE).convert("RGB")
    stream = io.BytesIO()
    if not features.check("webp"):
        # A palette is the only loss that PNG has.
        palette = small if encoding.quality is None else small.quantize(32, dither=Image.Dither.NONE)
        palette.save(stream, "PNG", optimize=True)
        return _uri("png", stream)
    if encoding.quality is None:
        small.save(stream, "WEBP", lossless=True, quality=60)
    else:
        small.save(stream, "WEBP", quality=encoding.quality)
    return _uri("webp", stream)


def _uri(kind: str, stream: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
