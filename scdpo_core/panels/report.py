"""A report that a run has written, shown within the page."""

from __future__ import annotations

from functools import lru_cache
from html import escape
from pathlib import Path

from .elements import notice, wrapped

MOST_BYTES = 24 << 20


def framed(path: Path) -> str:
    """A report in a frame of its own, without any right to the page; '' while there is none.

    Args:
        path: of the HTML file, with its images inside.
    """
    try:
        found = path.stat()
    except OSError:
        return ""
    if found.st_size > MOST_BYTES:
        return wrapped(notice(f"The report is too large for this page. Open the file: {path}"))
    return _framed(str(path), found.st_mtime_ns)


@lru_cache(maxsize=4)
def _framed(path: str, changed: int) -> str:
    """The frame; `changed` makes a new file a new frame."""
    text = escape(Path(path).read_text("utf-8"), quote=True)
    return wrapped(f'<iframe class="report" title="Report" sandbox="" srcdoc="{text}"></iframe>')
