"""PNG as a list of chunks: texts read within bounds, and a copy without what a decoder does not need."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 4 << 20
"""Bytes of one text, decompressed; graphs of ComfyUI take a few hundred thousand."""
_MAX_TEXTS = 4 * MAX_TEXT
# PngImagePlugin.MAX_TEXT_CHUNK, and half of its MAX_TEXT_MEMORY.
_PILLOWS_TEXT, _PILLOWS_TEXTS = 1 << 20, 32 << 20
_MAX_CHUNKS = 200_000
_MAX_NAME = 79
# ComfyUI writes the graph of an animation into 'comf', after the first frame.
_TEXT_KINDS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"comf", b"eXIf"})
_PIXEL_KINDS = frozenset({b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"cHRM"})


def chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and length of each chunk's data of a PNG; nothing if it is no PNG.

    A cut-off file ends the list; the stream may be moved while it is read.
    """
    stream.seek(0)
    if stream.read(8) != SIGNATURE:
        return
    offset = 8
    for _ in range(_MAX_CHUNKS):
        stream.seek(offset)
        head = stream.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, offset + 8, length
        offset += 12 + length


def text_chunks(stream: BinaryIO) -> dict[str, bytes | str]:
    """Read the texts of a PNG by name, and its EXIF block as bytes under 'eXIf'.

    The first text of a name counts. What is longer than `MAX_TEXT` or cannot be decompressed is left out.
    """
    texts: dict[str, bytes | str] = {}
    total = 0
    for kind, start, length in chunks(stream):
        if kind not in _TEXT_KINDS or length > MAX_TEXT or total > _MAX_TEXTS:
            continue
        stream.seek(start)
        data = stream.read(length)
        if kind == b"eXIf":
            texts.setdefault("eXIf", data)
            continue
        name, separator, rest = data.partition(b"\0")
        text = _text(kind, rest) if separator and len(name) <= _MAX_NAME else None
        if text is not None:
            total += len(text)
            texts.setdefault(name.decode("latin-1"), text)
    return texts


def pixels_alone(stream: BinaryIO) -> BinaryIO:
    """Copy a PNG without texts, colour profile and whatever else its pixels do not need."""
    copy = io.BytesIO()
    copy.write(SIGNATURE)
    for number, (kind, start, length) in enumerate(chunks(stream)):
        if number == 0 or kind in _PIXEL_KINDS or (kind == b"eXIf" and length <= MAX_TEXT):
            stream.seek(start - 8)
            copy.write(stream.read(length + 12))
    copy.seek(0)
    return copy


def decodable(stream: BinaryIO) -> BinaryIO:
    """Return the stream at its start, or only the pixels of a PNG whose texts exceed Pillow's limits.

    Pillow calls such an image damaged, though nothing but its texts is large.
    """
    total = 0
    for kind, start, length in chunks(stream):
        if kind not in _TEXT_KINDS and kind != b"iCCP":
            continue
        if length > MAX_TEXT:
            return pixels_alone(stream)
        stream.seek(start)
        packed = _packed(kind, stream.read(length))
        size = length if packed is None else _size(packed)
        total += size
        if size > _PILLOWS_TEXT or total > _PILLOWS_TEXTS:
            return pixels_alone(stream)
    stream.seek(0)
    return stream


def _packed(kind: bytes, data: bytes) -> bytes | None:
    """Return the compressed part of a chunk's data; None if it has none."""
    _, _, rest = data.partition(b"\0")
    if kind in (b"zTXt", b"iCCP"):
        return rest[1:]
    if kind == b"iTXt" and rest[:1] == b"\1":
        return rest[2:].split(b"\0", 2)[-1]
    return None


def _size(packed: bytes) -> int:
    """Return bytes that data has when it is decompressed, as far as Pillow would read."""
    try:
        return len(zlib.decompressobj().decompress(packed, _PILLOWS_TEXT + 1))
    except zlib.error:
        return len(packed)


def _text(kind: bytes, rest: bytes) -> str | None:
    if kind == b"zTXt":
        content = _inflated(rest[1:])
        return None if content is None else content.decode("latin-1")
    if kind != b"iTXt":
        return _either(rest)
    # Compression flag and method, language and translated name, each of the latter ended by a zero.
    parts = rest[2:].split(b"\0", 2)
    if len(parts) < 3:
        return None
    body: bytes | None = parts[2]
    if rest[:1] == b"\1":
        body = _inflated(parts[2])
    return None if body is None else body.decode("utf-8", "replace")


def _either(data: bytes) -> str:
    """Decode UTF-8, which some programs write, or Latin-1 as the standard says."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _inflated(data: bytes) -> bytes | None:
    packed = zlib.decompressobj()
    try:
        content = packed.decompress(data, MAX_TEXT + 1)
    except zlib.error:
        return None
    return content if len(content) <= MAX_TEXT else None
