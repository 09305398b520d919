"""Opening images safely: what an artist's folder holds becomes upright RGB, or a sentence why not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..types import ScdpoError
from .decode_budget import BUDGET
from .image_types import describe, formats
from .png import decodable

Value = TypeVar("Value")

MAX_PIXELS = 150_000_000
"""Most pixels of an image that is opened; a 30,000 x 5,000 panorama is."""
MANY = 1000
"""Pages of a file from which on they are no longer counted."""

_ORIENTATION = 0x0112
_OPAQUE = 254  # Forge hides a text in the lowest bit of an opaque image's alpha
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEEP = "its values lie outside the range of the format; save it as an 8-bit PNG"
_STRIP = 256  # rows


class ImageError(ScdpoError):
    """An image that cannot be opened.

    Attributes:
        path: its file.
        what: what is wrong with it and what to do.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path, what)
        self.path = path
        self.what = what

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(frozen=True)
class ImageInfo:
    """What is worth knowing of a sound image without keeping it.

    Attributes:
        size: (width, height) in pixels, upright.
        digest: equal for images that look the same, whatever files hold them.
        frames: how many images the file holds, as animations do; the first is the one.
    """

    size: tuple[int, int]
    digest: bytes
    frames: int = field(default=1, compare=False)


def open_image(path: Path) -> Image.Image:
    """Open an image as RGB of 8 bits a channel, fully decoded and detached from its file.

    It is turned upright by its EXIF orientation; of an animation the first frame is taken; what is
    transparent becomes white; 16-bit grey is scaled to 8 bits. What kind of image it is the content
    decides, not the file's ending.

    Raises:
        ImageError: no such file, not readable, empty, not an image, damaged or cut off, or of more than
            `MAX_PIXELS` (refused before anything is decoded).
    """
    return read_image(path, lambda image: image)


def read_image(path: Path, use: Callable[[Image.Image], Value]) -> Value:
    """Open an image as `open_image` does and return what `use` makes of it.

    Until `use` returns, the image counts in `budget.BUDGET`: threads that keep something small of large
    images stay within its memory.

    Raises:
        ImageError: as `open_image`.
    """
    with ExitStack() as memory:
        return use(_opened(path, memory))


def _opened(path: Path, memory: ExitStack) -> Image.Image:
    try:
        # Opening a pipe or a device would wait for ever.
        if path.exists() and not path.is_file():
            raise ImageError(path, "this is not a file. Put an image in its place.")
        with path.open("rb") as stream:
            head = stream.read(512)
            return _decode(path, decodable(stream), head, memory)
    except FileNotFoundError as error:
        raise ImageError(path, "there is no such file. Check its name, or put it there.") from error
    except PermissionError as error:
        raise ImageError(path, "the file cannot be read. Give your user permission to read it.") from error
    except OSError as error:
        what = f"the file cannot be read ({error.strerror}). Check the disk, or copy it again."
        raise ImageError(path, what) from error


def inspect_images(
    paths: Sequence[Path], progress: Callable[[int, int], None] | None = None
) -> dict[Path, ImageInfo | ImageError]:
    """Decode every image, several at a time, and say of each what it is or why it cannot be used.

    Args:
        paths: the files.
        progress: called with the number done and the total.
    """
    infos: dict[Path, ImageInfo | ImageError] = {}
    # Decoders and hashes let go of the interpreter lock; more threads only hold more large images at once.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for path, info in zip(paths, pool.map(_inspect, paths), strict=True):
            infos[path] = info
            if progress is not None:
                progress(len(infos), len(paths))
    return infos


def to_pixels(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Return the image at the size that training uses: scaled to cover it (Lanczos), its middle cut out.

    Args:
        image: as `open_image` gives it.
        size: (width, height) in pixels, multiples of 8.

    Returns:
        [3, height, width] float32 in -1..1; RGB.

    Raises:
        ScdpoError: the size is not a multiple of 8.
    """
    check_size(size)
    fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(fitted, dtype=np.uint8))
    return pixels.permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1.0)


def upright_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image as `open_image` gives it, from its header alone.

    Raises:
        ImageError: it cannot be read, or is no image.
    """
    try:
        with path.open("rb") as stream, Image.open(decodable(stream), formats=formats()) as image:
            width, height = image.size
            turned = orientation(image) >= 5
    # As in `_decode`: AVIF's decoder raises RuntimeError, others whatever they stumble over.
    except Exception as error:
        raise ImageError(path, f"the image cannot be read ({error}). Save or copy it again.") from error
    return (height, width) if turned else (width, height)


def covering(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return (left, top) of what `to_pixels` cuts out, in pixels of the image once it is scaled to `size`."""
    scale = max(size[0] / image[0], size[1] / image[1])
    left, top = ((length * scale - side) / 2 for length, side in zip(image, size, strict=True))
    return round(left), round(top)


def check_size(size: tuple[int, int]) -> None:
    """Refuse a training size that no latent grid has.

    Raises:
        ScdpoError: a side is not a positive multiple of 8.
    """
    if any(side < 8 or side % 8 for side in size):
        width, height = size
        raise ScdpoError(
            f"A training size of {width} x {height} pixels is not possible: width and height must be "
            "multiples of 8, such as 512 x 512 or 768 x 1024."
        )


def _inspect(path: Path) -> ImageInfo | ImageError:
    try:
        size, digest = read_image(path, lambda image: (image.size, _digest(image)))
    except ImageError as error:
        return error
    return ImageInfo(size, digest, _frames(path))


def _digest(image: Image.Image) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for top in range(0, image.height, _STRIP):
        digest.update(image.crop((0, top, image.width, min(image.height, top + _STRIP))).tobytes())
    return digest.digest()


def _frames(path: Path) -> int:
    """Return the number of images in a sound file, at most `MANY`; 1 if they cannot be counted."""
    try:
        with path.open("rb") as stream, Image.open(decodable(stream), formats=formats()) as image:
            # What phones keep behind a photograph is no second image.
            if image.format == "MPO":
                return 1
            if image.format == "TIFF":
                return _pages(image)
            return int(getattr(image, "n_frames", 1))
    # Later frames may be as broken as they like.
    except Exception:
        return 1


def _pages(image: Image.Image) -> int:
    """Count the pages of a TIFF up to `MANY`; Pillow's own count takes quadratic time."""
    for number in range(1, MANY):
        try:
            image.seek(number)
        except EOFError:
            return number
    return MANY


def _decode(path: Path, stream: BinaryIO, head: bytes, memory: ExitStack) -> Image.Image:
    with decode_errors(path, head), Image.open(stream, formats=formats()) as image:
        require_size(path, image.size)
        memory.enter_context(BUDGET.take(BUDGET.for_image(*image.size)))
        image.load()
        # Only now mode and orientation are final: loading turns TIFF upright and may unfold a palette.
        return upright(to_rgb(image), orientation(image))


def require_size(path: Path, size: tuple[int, int]) -> None:
    """Refuse an image of more than `MAX_PIXELS`, before anything is decoded.

    Raises:
        ImageError: it is too large.
    """
    width, height = size
    if width * height > MAX_PIXELS:
        what = (
            f"the image is {width} x {height} pixels; up to {MAX_PIXELS // 1_000_000} megapixels can be "
            "read. Make it smaller."
        )
        raise ImageError(path, what)


@contextmanager
def decode_errors(path: Path, head: bytes) -> Iterator[None]:
    """Turn what decoders raise on malformed files, which is nearly any exception, into an `ImageError`.

    Args:
        path: of the file.
        head: its first bytes.

    Raises:
        ImageError: what is wrong with the image, and what to do.
    """
    if not head:
        raise ImageError(path, "the file is empty (0 bytes). Save or copy the image again.")
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        megapixels = MAX_PIXELS // 1_000_000
        raise ImageError(
            path, f"the image has more than {megapixels} megapixels. Make it smaller."
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(path, describe(head)) from error
    except MemoryError as error:
        raise ImageError(path, "there is not enough memory to open the image. Make it smaller.") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            path, f"the image is damaged, cut off or of an unusual kind ({reason}). Save or copy it again."
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return 8 bits a channel, RGB, of a loaded image of any mode; what is transparent becomes white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep(image)
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        colours = image.convert("RGBA")
        alpha = colours.getchannel("A")
        if not any(alpha.histogram()[:_OPAQUE]):
            return colours.convert("RGB")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(colours, mask=alpha)
        return canvas
    return image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """Convert one channel of more than 8 bits; some Pillow versions clip it at 255."""
    values = np.asarray(image)
    top = 1.0 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= top):
        raise ValueError(_DEEP)
    grey = np.empty(values.shape, np.uint8)
    transparent = image.info.get("transparency")
    # In strips: whole copies in 32 bits of a large image would be gigabytes.
    for top_row in range(0, len(values), _STRIP):
        strip = slice(top_row, top_row + _STRIP)
        if image.mode == "F":
            grey[strip] = np.rint(values[strip] * 255.0)
        else:
            # 65535 / 255 = 257, and 128 more before the division rounds to the nearest.
            grey[strip] = (values[strip].astype(np.uint32) + 128) // 257
            if isinstance(transparent, int):
                grey[strip][values[strip] == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image, 1 when it has none that can be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    # Broken EXIF is no reason to refuse a sound image; cameras and editors write all sorts of it.
    except Exception:
        return 1


def upright(image: Image.Image, tag: int) -> Image.Image:
    """Return an image turned as its EXIF orientation says."""
    transposition = _UPRIGHT.get(tag)
    return image if transposition is None else image.transpose(transposition)
