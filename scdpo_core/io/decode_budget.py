"""How much memory decoded images may take at a time, in all threads together."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_BYTES_PER_PIXEL = 16
"""At the worst moment: the image, its copy with alpha, the canvas that it is put on, and the upright copy."""
_LARGE = 1 << 28


class DecodeBudget:
    """Bytes that threads share; who finds too few left waits until others are done.

    A thread that already holds some takes more without waiting, so that no thread waits for itself.
    """

    def __init__(self, total: int) -> None:
        """Share out `total` bytes."""
        self._total = total
        self._used = 0
        self._changed = threading.Condition()
        self._own = threading.local()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Hold `size` bytes, or all if `size` is more."""
        if getattr(self._own, "holds", False):
            yield
            return
        size = min(size, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._used + size <= self._total)
            self._used += size
        self._own.holds = True
        if size >= _LARGE:
            _give_back_freed_memory()
        try:
            yield
        finally:
            self._own.holds = False
            with self._changed:
                self._used -= size
                self._changed.notify_all()

    def for_image(self, width: int, height: int) -> int:
        """Return bytes that decoding and converting an image takes."""
        return width * height * _BYTES_PER_PIXEL


def _give_back_freed_memory() -> None:
    """Hand freed memory back to the system: glibc keeps some for each thread that ever held a large image."""
    if sys.platform != "linux":
        return
    # Other C libraries need no such call and have none.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


BUDGET = DecodeBudget(3 << 29)
"""1.5 GiB: one image of 100 megapixels, or two dozen of 4."""
