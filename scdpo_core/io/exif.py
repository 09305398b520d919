"""Adding one tag to a block of EXIF without moving, changing or understanding anything else in it.

EXIF is full of offsets, some of them in makers' private notes, so nothing may move. The list of the main
image's tags (IFD0) is therefore written once more at the end, with the new tag in it, and the header is
made to point there; every byte but that pointer stays as it was.
"""

from __future__ import annotations

import struct

from ..types import ScdpoError

TAG = 0x9213
"""ImageHistory (TIFF/EP, ISO 12234-2): what has been done to the image; ASCII, in IFD0."""
MARK = b"safety_cost "
"""What our value starts with, to be told from another program's."""

_ASCII = 2
_ENTRY = 12


class ExifError(ScdpoError):
    """EXIF that cannot be added to."""


def with_note(tiff: bytes, note: bytes) -> bytes:
    """Return EXIF (from its byte order mark on) with our tag set to `MARK` + note; create empty EXIF.

    Args:
        tiff: the block, or b''.
        note: printable ASCII.

    Raises:
        ExifError: the block is damaged, or another program has used the tag.
    """
    order, remaining, entries, following = _read(tiff) if tiff else (">", b"MM\0*\0\0\0\x08", [], bytes(4))
    start = len(remaining) + len(remaining) % 2
    value = MARK + note + b"\0"
    offset = start + 2 + _ENTRY * (len(entries) + 1) + 4
    entries.append(struct.pack(order + "HHII", TAG, _ASCII, len(value), offset))
    entries.sort(key=lambda entry: _number(order, entry))
    listed = struct.pack(order + "H", len(entries)) + b"".join(entries) + following
    block = remaining.ljust(start, b"\0") + listed + value
    return block[:4] + struct.pack(order + "I", start) + block[8:]


def _read(tiff: bytes) -> tuple[str, bytes, list[bytes], bytes]:
    """Parse byte order, the bytes to keep, IFD0's entries without ours, and the pointer to the next IFD."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 14:
        raise ExifError("its EXIF data is damaged")
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 6 > len(tiff):
        raise ExifError("its EXIF data is damaged")
    (count,) = struct.unpack_from(order + "H", tiff, start)
    end = start + 2 + _ENTRY * count
    if end + 4 > len(tiff):
        raise ExifError("its EXIF data is damaged")
    entries = [tiff[at : at + _ENTRY] for at in range(start + 2, end, _ENTRY)]
    following = tiff[end : end + 4]
    ours = next((entry for entry in entries if _number(order, entry) == TAG), None)
    if ours is None:
        return order, tiff, entries, following
    entries.remove(ours)
    _, _, length, offset = struct.unpack(order + "HHII", ours)
    if tiff[offset : offset + len(MARK)] != MARK:
        raise ExifError("another program already uses the field for the score (EXIF ImageHistory)")
    # The list and the value that we wrote last time lie at the very end and are replaced.
    remaining = tiff[:start] if offset == end + 4 and offset + length == len(tiff) else tiff
    return order, remaining, entries, following


def _number(order: str, entry: bytes) -> int:
    (tag,) = struct.unpack_from(order + "H", entry)
    return int(tag)
