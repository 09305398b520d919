"""The two halves of a safetensors file: a header of JSON, and the weights' bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_SIZE = 8  # bytes that say how long the header is, and what it is padded to a multiple of
_METADATA = "__metadata__"


def parted(whole: bytes) -> tuple[dict[str, Any], dict[str, str], bytes]:
    """Return weight entries, metadata and the weights' bytes of a valid file."""
    end = _SIZE + int.from_bytes(whole[:_SIZE], "little")
    entries = json.loads(whole[_SIZE:end])
    return entries, entries.pop(_METADATA, {}), whole[end:]


def header(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Return what stands before the weights' bytes; the same arguments give the same bytes."""
    # safetensors writes metadata in the order of a hash map, another one on every run.
    ordered = {_METADATA: dict(sorted(metadata.items())), **entries}
    # A file's name that is not UTF-8 may be part of it; the signs for its odd bytes have no place in a file.
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    text += b" " * (-len(text) % _SIZE)
    return len(text).to_bytes(_SIZE, "little") + text
