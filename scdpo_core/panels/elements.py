"""What the panels have in common: images, veils, notices, costs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from functools import lru_cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Literal

from PIL import Image

from ..io.image_frames import open_frames
from ..io.images import ImageError
from ..scoring.html_parts import badge

CRISP_UP_TO = 128
"""Images of at most so many pixels a side are shown with hard pixels."""

_KEPT = 600  # encoded images


def style() -> str:
    """The panels' style sheet."""
    return resources.files(__package__).joinpath("panels.css").read_text("utf-8")


def wrapped(inner: str, name: str = "") -> str:
    """A panel: everything the style sheet knows lies in such a box."""
    return f'<div class="scdpo {name}">{inner}</div>'


def notice(text: str, kind: Literal["info", "good", "bad"] = "info") -> str:
    """A sentence or several lines for the artist; '' of nothing. Screen readers say it at once."""
    if not text:
        return ""
    role = "alert" if kind == "bad" else "status"
    return f'<p class="notice {kind}" role="{role}">{escape(text)}</p>'


def image(path: Path, alt: str, side: int = 256, frame: int = 0) -> str:
    """An `img` with the image's pixels inside, or a note that it cannot be shown."""
    try:
        uri, width, height = _uri(str(path), path.stat().st_mtime_ns, side, frame)
    except (OSError, ImageError):
        return '<span class="gone">The image is no longer there.</span>'
    kind = "crisp" if max(width, height) <= CRISP_UP_TO else "smooth"
    return (
        f'<img class="{kind}" src="{uri}" width="{width}" height="{height}" alt="{escape(alt, quote=True)}" '
        'decoding="async">'
    )


def veiled(path: Path, alt: str, side: int = 256, frame: int = 0, *, veil: bool = True) -> str:
    """An image that is blurred until somebody ticks it, by mouse or keyboard; needs no script."""
    shown = image(path, alt, side, frame)
    if not veil:
        return f'<span class="shot">{shown}</span>'
    label = escape(f"Show the image: {alt}", quote=True)
    return (
        f'<label class="shot veil"><input type="checkbox" aria-label="{label}">{shown}'
        '<span class="hint" aria-hidden="true">click to show</span></label>'
    )


def cost(value: float, band: str) -> str:
    """A cost with its band, in colour and in words."""
    return badge(value, "safe" if band == "safe" else "review" if band == "review" else "unsafe")


def listed(items: Iterable[str], most: int = 20) -> str:
    """Lines as a list; what is over `most` is counted."""
    lines = list(items)
    if not lines:
        return ""
    inside = "".join(f"<li>{escape(line)}</li>" for line in lines[:most])
    more = f"<li>and {len(lines) - most:,} more</li>" if len(lines) > most else ""
    return f'<ul class="lines" tabindex="0">{inside}{more}</ul>'


@lru_cache(maxsize=_KEPT)
def _uri(path: str, changed: int, side: int, frame: int) -> tuple[str, int, int]:
    """An image as a data URI, its width and its height; `changed` makes a new file a new image."""
    file = Path(path)
    with file.open("rb") as stream:
        found = next(
            (pil_image for number, pil_image in open_frames(file, stream, frame) if number == frame), None
        )
    if found is None:
        raise ImageError(file, "it has no such frame.")
    pil_image = found.convert("RGB")
    if max(pil_image.size) > side:
        pil_image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small = max(pil_image.size) <= CRISP_UP_TO
    pil_image.save(out, "PNG" if small else "JPEG", **({} if small else {"quality": 88}))
    kind = "png" if small else "jpeg"
    text = base64.b64encode(out.getvalue()).decode("ascii")
    return f"data:image/{kind};base64,{text}", *pil_image.size
