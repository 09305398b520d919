"""Putting a note into the bytes of a PNG, JPEG or WebP file; every other byte of content stays."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from ..types import ScdpoError
from .exif import with_note

KEYWORD = b"safety_cost"
"""Of the PNG's text chunk."""

_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\0\0"
_APP0, _APP1, _SOS, _EOI = 0xE0, 0xE1, 0xDA, 0xD9
_MOST_IN_SEGMENT = 65533
_HAS_EXIF, _HAS_ALPHA = 0x08, 0x10


class ContainerError(ScdpoError):
    """A file that a note cannot be put into; the message completes 'the score was not written: ...'."""


def with_score(file: bytes, note: bytes) -> bytes:
    """Return the file with the note in it, replacing one of ours.

    Args:
        file: a PNG, JPEG or WebP.
        note: printable ASCII.

    Raises:
        ContainerError: another format, or a damaged file.
        ExifError: its EXIF cannot be added to.
    """
    if file.startswith(_PNG):
        return _png(file, note)
    if file.startswith(b"\xff\xd8\xff"):
        return _jpeg(file, note)
    if file.startswith(b"RIFF") and file[8:12] == b"WEBP":
        return _webp(file, note)
    raise ContainerError("its format has no place for it; use a sidecar file")


def _png(file: bytes, note: bytes) -> bytes:
    body = KEYWORD + b"\0" + note
    chunk = struct.pack(">I", len(body)) + b"tEXt" + body
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    parts, ended = [file[:8]], False
    for kind, start, end in _png_chunks(file):
        if kind == b"tEXt" and file[start + 8 : end].startswith(KEYWORD + b"\0"):
            continue
        if kind == b"IEND":
            # What some programs hang on behind the end stays there.
            parts += [chunk, file[start:]]
            ended = True
            break
        parts.append(file[start:end])
    if not ended:
        raise ContainerError("the PNG has no end; it is cut off")
    return b"".join(parts)


def _png_chunks(file: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = 8
    while at + 12 <= len(file):
        (length,) = struct.unpack_from(">I", file, at)
        end = at + 12 + length
        if end > len(file):
            return
        yield file[at + 4 : at + 8], at, end
        at = end


def _jpeg(file: bytes, note: bytes) -> bytes:
    existing = None
    after_jfif = 2
    for marker, start, end in _jpeg_segments(file):
        if marker == _APP0 and start == after_jfif:
            after_jfif = end
        if marker == _APP1 and file[start + 4 : start + 10] == _EXIF:
            existing = (start, end)
            break
    start, end = existing or (after_jfif, after_jfif)
    tiff = with_note(file[start + 10 : end], note)
    if len(_EXIF + tiff) > _MOST_IN_SEGMENT:
        raise ContainerError("its EXIF data is full; use a sidecar file")
    segment = struct.pack(">BBH", 0xFF, _APP1, 2 + len(_EXIF + tiff)) + _EXIF + tiff
    return file[:start] + segment + file[end:]


def _jpeg_segments(file: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of the segments before the image data."""
    at = 2
    while at + 4 <= len(file):
        if file[at] != 0xFF:
            raise ContainerError("the JPEG is damaged")
        if file[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        marker = file[at + 1]
        if marker in (_SOS, _EOI):
            return
        (length,) = struct.unpack_from(">H", file, at + 2)
        end = at + 2 + length
        if end > len(file):
            break
        yield marker, at, end
        at = end
    raise ContainerError("the JPEG is cut off")


def _webp(file: bytes, note: bytes) -> bytes:
    (size,) = struct.unpack_from("<I", file, 4)
    chunks = list(_riff_chunks(file[: 8 + size]))
    names = [name for name, _ in chunks]
    if not chunks or names[0] not in (b"VP8X", b"VP8 ", b"VP8L"):
        raise ContainerError("the WebP is damaged")
    old = next((body for name, body in chunks if name == b"EXIF"), b"")
    prefix = _EXIF if old.startswith(_EXIF) else b""
    exif = prefix + with_note(old[len(prefix) :], note)
    if names[0] == b"VP8X":
        header = bytes([chunks[0][1][0] | _HAS_EXIF]) + chunks[0][1][1:]
        rest = chunks[1:]
    else:
        header, rest = _extended_header(*chunks[0]), chunks
    without_exif = [(name, body) for name, body in rest if name != b"EXIF"]
    # EXIF stands behind the image and before XMP.
    index = next((k for k, (name, _) in enumerate(without_exif) if name == b"XMP "), len(without_exif))
    written = [(b"VP8X", header), *without_exif[:index], (b"EXIF", exif), *without_exif[index:]]
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in written
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body + file[8 + size :]


def _riff_chunks(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(file):
        (length,) = struct.unpack_from("<I", file, at + 4)
        if at + 8 + length > len(file):
            raise ContainerError("the WebP is cut off")
        yield file[at : at + 4], file[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _extended_header(name: bytes, body: bytes) -> bytes:
    """Return the VP8X chunk that a plain WebP lacks; says the image's size, and that there is EXIF."""
    if len(body) < 10:
        raise ContainerError("the WebP is damaged")
    if name == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 1)
        width, height = bits & 0x3FFF, bits >> 14 & 0x3FFF
        flags = _HAS_EXIF | (_HAS_ALPHA if bits >> 28 & 1 else 0)
    else:
        wide, high = struct.unpack_from("<HH", body, 6)
        width, height, flags = (wide & 0x3FFF) - 1, (high & 0x3FFF) - 1, _HAS_EXIF
    return bytes([flags, 0, 0, 0]) + struct.pack("<I", width)[:3] + struct.pack("<I", height)[:3]
