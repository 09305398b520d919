"""What the pages about scores have in common: thumbnails, badges, the style sheet and small charts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from PIL import Image

from ..io.image_frames import open_frames
from ..io.images import ImageError
from ..io.printable import printable
from ..types import REVIEW_FROM, UNSAFE_FROM, Band

THUMBNAIL = 224
_CRISP_UP_TO = 128
_BINS = 28


def render(template: str, **values: str) -> str:
    """Fill a page of `templates/`; the style sheet is put in as $style, copying as $copying."""
    folder = resources.files(__package__).joinpath("templates")
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    copying = folder.joinpath("copying.js").read_text(encoding="utf-8")
    page = folder.joinpath(template).read_text(encoding="utf-8")
    return Template(page).substitute(values, style=style, copying=copying)


def thumbnail(path: Path, frame: int = 0) -> str:
    """An `img` of an image with its pixels inside, or a note that it cannot be shown.

    Args:
        path: the image.
        frame: which frame of an animation.
    """
    try:
        with path.open("rb") as stream:
            for number, image in open_frames(path, stream, frame):
                if number == frame:
                    return _img(image)
    except (OSError, ImageError):
        pass
    return '<span class="gone">The image is no longer there.</span>'


def badge(cost: float, band: Band) -> str:
    """A cost in the colour of its band."""
    return f'<span class="cost {band}">{signed(cost)} {band}</span>'


def signed(cost: float) -> str:
    """A cost with its sign, a real minus among them."""
    return f"{cost:+.2f}".replace("-", "\N{MINUS SIGN}")


def histogram(costs: Sequence[float]) -> str:
    """How many images have which cost, as SVG; bars take the colour of their band."""
    if not costs:
        return ""
    low, high = min(-4.0, *costs), max(4.0, *costs)
    step = (high - low) / _BINS
    counts = [0] * _BINS
    for cost in costs:
        counts[min(_BINS - 1, int((cost - low) / step))] += 1
    width, height, foot = 420, 116, 92

    def across(cost: float) -> float:
        return (cost - low) / (high - low) * width

    bars = []
    for k, count in enumerate(counts):
        if count:
            tall = max(2.0, foot * (count / max(counts)) ** 0.5)
            middle, reach = low + (k + 0.5) * step, step / 2
            bars.append(
                f'<rect class="bar {band_of(middle)}" x="{across(low + k * step) + 0.5:.1f}" '
                f'y="{foot - tall:.1f}" width="{width / _BINS - 1:.1f}" height="{tall:.1f}" rx="1">'
                f"<title>{count} from {signed(middle - reach)} to {signed(middle + reach)}</title></rect>"
            )
    zero = across(0.0)
    labels = "".join(
        f'<text x="{across(cost):.1f}" y="{height - 6}" text-anchor="{anchor}">{text}</text>'
        for cost, anchor, text in (
            (low, "start", signed(low)),
            (0.0, "middle", "0"),
            (high, "end", signed(high)),
        )
    )
    return (
        f'<figure><svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Histogram of the costs">'
        f'<line class="axis" x1="0" y1="{foot}" x2="{width}" y2="{foot}"/>{"".join(bars)}'
        f'<line class="zero" x1="{zero:.1f}" y1="4" x2="{zero:.1f}" y2="{foot + 5}"/>'
        f"{labels}</svg><figcaption class='note'>Costs of all images; a bar's height is the root of its "
        "count.</figcaption></figure>"
    )


def band_of(cost: float) -> Band:
    """The band of a cost."""
    if cost >= UNSAFE_FROM:
        return "unsafe"
    return "review" if cost >= REVIEW_FROM else "safe"


def counted(number: int, thing: str) -> str:
    """'1 image', '2,000 images'."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _img(image: Image.Image) -> str:
    crisp = max(image.size) <= _CRISP_UP_TO
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=92 if crisp else 78)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    kind = ' class="crisp"' if crisp else ""
    return f'<img{kind} src="data:image/jpeg;base64,{data}" alt="" loading="lazy" decoding="async">'


def path_line(path: str) -> str:
    """A path that can be copied with one click: its folder softly, its name clearly."""
    path = printable(path)
    folder, _, name = path.rpartition("/") if "/" in path else path.rpartition("\\")
    sign = path[len(folder) : len(path) - len(name)]
    # Long paths break between folders rather than within a name.
    breakable = escape(folder + sign).replace(sign, f"{sign}<wbr>") if sign else ""
    return (
        f'<div class="file"><code><span class="folder">{breakable}</span>{escape(name)}</code>'
        f'<button type="button" class="copy" data-path="{escape(path, quote=True)}">Copy</button></div>'
    )
