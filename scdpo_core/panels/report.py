"""A report that a run has written, shown within the page."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ..reports import html

MOST_BYTES = 24 << 20


def framed(path: Path) -> str:
    """Show a report in a sandboxed frame; '' while there is none.

    Args:
        path: of the HTML file, with its images inside.
    """
    try:
        status = path.stat()
    except OSError:
        return ""
    if status.st_size > MOST_BYTES:
        return html.render("panel_report.html", too_large=True, path=str(path), text="")
    return _framed(str(path), status.st_mtime_ns)


@lru_cache(maxsize=4)
def _framed(path: str, changed: int) -> str:
    """Render the frame; `changed` makes a new file a new frame."""
    text = Path(path).read_text("utf-8")
    return html.render("panel_report.html", too_large=False, path=path, text=text)
