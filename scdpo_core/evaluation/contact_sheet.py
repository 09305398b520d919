"""The images of the report: every pair with its costs and verdicts, inlined and small."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image, features

from ..types import Band, CostScore
from .judges import JudgedImage, Shot
from .metrics import EvalGroup, Measure
from .wording import count, percent, signed

BUDGET = 2_200_000
"""Characters that all images of a report may take together, so that it stays under 3 MB."""

CRISP_UP_TO = 128
"""Images of at most so many pixels a side are shown with hard pixels instead of a blur."""

_OPEN_AT_FIRST = 8
_BAND_WORDS: Mapping[Band, str] = {"safe": "safe", "review": "review", "unsafe": "unsafe"}


@dataclass(frozen=True)
class _Squeeze:
    """One way to make images smaller: longest side, palette size (0: all colours), WebP quality."""

    side: int
    colours: int
    quality: int | None


_LADDER = (
    _Squeeze(256, 0, None),
    _Squeeze(256, 128, None),
    _Squeeze(256, 0, 90),
    _Squeeze(256, 0, 75),
    _Squeeze(192, 0, 75),
    _Squeeze(160, 0, 70),
    _Squeeze(96, 0, 60),
    _Squeeze(64, 0, 40),
)
"""From faithful to small. Small drawings start lossless, then with a palette, which keeps the hard
edges that lossy WebP smears; photographs start at the third rung."""


@dataclass(frozen=True)
class InlinePair:
    """A judged pair with both images as data URIs."""

    pair: JudgedImage
    before: str
    after: str


def inline(images: Sequence[JudgedImage], budget: int = BUDGET) -> list[InlinePair]:
    """Encode all images alike, as faithfully as `budget` characters allow."""
    uris = encode([shot.image for pair in images for shot in (pair.before, pair.after)], budget)
    return [InlinePair(pair, *uris[2 * k : 2 * k + 2]) for k, pair in enumerate(images)]


def encode(images: Sequence[Image.Image], budget: int = BUDGET) -> list[str]:
    """Images as data URIs, all alike, as faithfully as `budget` characters allow."""
    photos = any(max(image.size) > CRISP_UP_TO for image in images)
    ladder = _LADDER[2:] if photos else _LADDER
    uris: list[str] = []
    for squeeze in ladder:
        uris, spent = [], 0
        for image in images:
            uris.append(_data_uri(image, squeeze))
            spent += len(uris[-1])
            if spent > budget and squeeze is not ladder[-1]:
                break
        else:
            break
    return uris


def strip(pairs: Sequence[InlinePair], harmful: Sequence[str], benign: Sequence[str], room: int = 8) -> str:
    """A first look: pairs spread evenly over the harmful captions (five of eight) and the benign ones."""
    bad = [pair for pair in pairs if pair.pair.asked.caption in harmful]
    good = [pair for pair in pairs if pair.pair.asked.caption in benign]
    shown = _spread(bad, room - min(len(good), 3)) + _spread(good, min(len(good), 3))
    if not shown:
        return ""
    cells = "".join(
        f"<li>{_image(pair.before, pair.pair, 'before', brief=True)}"
        f"{_image(pair.after, pair.pair, 'after', brief=True)}</li>"
        for pair in shown
    )
    return (
        '<figure class="strip"><ul class="sheet" role="list">'
        f"{cells}</ul><figcaption>Upper row: before. Lower row: after, from the same seeds. Taken at even "
        "steps through the test, not picked by hand; all of them are below.</figcaption></figure>"
    )


def group_section(group: EvalGroup, pairs: Sequence[InlinePair]) -> str:
    """One group: what it is, its rates, its images."""
    hits = "judged harmful" if group.measure == "harmful" else "with the subject that was asked for"
    first, rest = pairs[:_OPEN_AT_FIRST], pairs[_OPEN_AT_FIRST:]
    parts = [
        f'<section class="group" id="group-{escape(_slug(group.name))}"><h3>{escape(group.title)}</h3>',
        f"<p>{escape(group.description)} "
        f"<b>{percent(group.before.value)} &rarr; {percent(group.after.value)}</b> {hits}, "
        f"{count(group.after.total, 'image')} of {count(len(group.captions), 'caption')}.</p>",
        _sheet(first, group.measure),
    ]
    if rest:
        parts.append(
            f"<details><summary>{count(len(rest), 'more image pair')}</summary>"
            f"{_sheet(rest, group.measure)}</details>"
        )
    return "".join(parts) + "</section>"


def _sheet(pairs: Sequence[InlinePair], measure: Measure) -> str:
    cells = []
    for item in pairs:
        asked = item.pair.asked
        cells.append(
            '<li><figure class="pair">'
            f"{_image(item.before, item.pair, 'before')}{_said(item.pair.before, measure)}"
            f"{_image(item.after, item.pair, 'after')}{_said(item.pair.after, measure)}"
            f"<figcaption>{escape(asked.caption)} <small>seed&nbsp;{asked.seed}</small></figcaption>"
            "</figure></li>"
        )
    size = max((max(item.pair.before.image.size) for item in pairs), default=0)
    return f'<ul class="sheet{" large" if size > CRISP_UP_TO else ""}" role="list">{"".join(cells)}</ul>'


def _image(uri: str, pair: JudgedImage, when: str, brief: bool = False) -> str:
    shot = pair.before if when == "before" else pair.after
    width, height = shot.image.size
    classes = ("crisp" if max(width, height) <= CRISP_UP_TO else "smooth") + (
        " harmful" if shot.verdict.harmful else ""
    )
    seen = f"{when.capitalize()} tuning: {shot.verdict.label}"
    # The sheet prints the caption under the image; the strip does not, so there the alt text says it.
    alt = f'{seen}, for "{pair.asked.caption}"' if brief else seen
    return (
        f'<span class="frame {when}"><img class="{classes}" src="{uri}" width="{width}" height="{height}" '
        f'alt="{escape(alt)}" decoding="async"></span>'
    )


def _said(shot: Shot, measure: Measure) -> str:
    verdict = shot.verdict
    if verdict.harmful:
        note, style = "harmful", "bad"
    elif measure == "subject" and verdict.found is not None:
        note, style = ("as asked", "good") if verdict.found else ("not as asked", "bad")
    else:
        note, style = "harmless", "good"
    return (
        f'<p class="said">{_badge(shot.cost)}<span>{escape(verdict.label)}</span> '
        f'<em class="{style}">{note}</em></p>'
    )


def _badge(cost: CostScore | None) -> str:
    if cost is None:
        return '<span class="cost none">no cost</span>'
    return f'<span class="cost {cost.band}">{signed(cost.value)} {_BAND_WORDS[cost.band]}</span>'


def _spread(items: Sequence[InlinePair], room: int) -> list[InlinePair]:
    room = min(room, len(items))
    return [items[k * len(items) // room] for k in range(room)]


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def _data_uri(image: Image.Image, squeeze: _Squeeze) -> str:
    small = image.convert("RGB")
    if max(small.size) > squeeze.side:
        small.thumbnail((squeeze.side, squeeze.side), Image.Resampling.LANCZOS)
    if squeeze.colours:
        small = small.quantize(squeeze.colours, dither=Image.Dither.NONE).convert("RGB")
    stream = io.BytesIO()
    if features.check("webp"):
        if squeeze.quality is None:
            small.save(stream, "WEBP", lossless=True, quality=60)
        else:
            small.save(stream, "WEBP", quality=squeeze.quality)
        kind = "webp"
    else:
        # A Pillow without WebP; a palette is the only loss that PNG knows.
        palette = small if squeeze.quality is None else small.quantize(32, dither=Image.Dither.NONE)
        palette.save(stream, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
