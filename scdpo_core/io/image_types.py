"""Which files are images: by their ending, and by their first bytes where a name has none."""

from __future__ import annotations

import importlib
import importlib.util
from codecs import getincrementaldecoder
from functools import cache
from pathlib import Path

from PIL import Image

IMAGE_SUFFIXES = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        *(".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    }
)
"""File endings of the kinds that `images.open_image` reads, lower case."""
FOREIGN_SUFFIXES = frozenset(
    {".heic", ".heif", ".jxl", ".jp2", ".svg", ".svgz", ".psd", ".xcf", ".kra", ".tga", ".exr", ".hdr"}
)
"""Images to an artist that may not be read here: saying so helps more than passing over them."""
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\xff\x0a")
# Of files that are meant to be read but were damaged, the beginning is whole.
_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")
_BRANDS = {b"heic": "HEIF", b"heix": "HEIF", b"mif1": "HEIF", b"avif": "AVIF", b"avis": "AVIF", b"jxl ": ""}
_NEVER = frozenset({"EPS", "WMF", "PDF", "MPEG", "FPX", "MIC", "BUFR", "GRIB", "HDF5"})
"""Kinds that start another program (EPS) or that Pillow names without decoding them."""
_HEIC_PLUGINS = ("pillow_heif", "pi_heif")
"""The second one only reads, and carries no encoder under a licence of its own."""
_SUFFIX_OF_START = (
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF87a", ".gif"),
    (b"GIF89a", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


def is_image(path: Path) -> bool:
    """Return whether a file is an image, readable here or not; open it only if it has no suffix."""
    suffix = path.suffix.lower()
    if suffix:
        return suffix in IMAGE_SUFFIXES or suffix in FOREIGN_SUFFIXES
    return starts_as_image(path)


def starts_as_image(path: Path) -> bool:
    """Return whether a file's first bytes are those of an image."""
    try:
        # Opening a pipe or a device would wait for ever.
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError:
        return False
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    brand = head[4:8] in (b"ftyp", b"JXL ") and (head[8:12] in _BRANDS or head[4:8] == b"JXL ")
    return head.startswith(_SIGNATURES) or webp or brand


def suffix_of(head: bytes) -> str:
    """Return the usual suffix of an image, from its first 16 bytes; '' if they are not an image's."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1"):
        return ".avif"
    return next((suffix for start, suffix in _SUFFIX_OF_START if head.startswith(start)), "")


def describe(head: bytes) -> str:
    """Say what a file is that no decoder recognises, from its first bytes."""
    kind = _BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None
    if kind and kind not in formats():
        name, package = {"HEIF": ("HEIC", "pi-heif"), "AVIF": ("AVIF", "pillow-avif-plugin")}[kind]
        return f"this is {name}, which needs the package '{package}'. Or save it as JPEG."
    if kind:
        return "the image is damaged or cut off. Save or copy it again."
    if head.startswith(_STARTS):
        return "the image is damaged or cut off. Save or copy it again."
    try:
        # Incremental, since the last bytes may be half a character.
        text = getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        text = ""
    text = text.lstrip("\ufeff \t\r\n").lower()
    again = "Put the image itself in its place."
    if text.startswith("version https://git-lfs"):
        return "this is a Git LFS pointer, not the image. Run 'git lfs pull' in that repository."
    if text.startswith(("<!doctype html", "<html")):
        return f"this is a web page, not an image; the download went wrong. {again}"
    if "<svg" in text:
        return "this is an SVG drawing. Export it as PNG."
    if text and all(letter.isprintable() or letter.isspace() for letter in text):
        return f"this is a text file, not an image. {again}"
    return "this is not a kind of image that can be read. Save it as PNG, JPEG or WebP."


@cache
def formats() -> tuple[str, ...]:
    """Return the kinds of image that are read, with HEIC and AVIF where a plug-in is installed."""
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
