"""The texts in an image's metadata: PNG chunks, EXIF of JPEG, WebP and AVIF, comments of GIF."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image

from .png import MAX_TEXT, SIGNATURE, text_chunks

_FORMATS = ("JPEG", "WEBP", "AVIF", "GIF")
_EXIF, _USER_COMMENT = 0x8769, 0x9286
# ImageDescription, Make, Model, Software: where ComfyUI and its savers put "prompt:{...}".
_NAMED_TAGS = (0x010E, 0x010F, 0x0110, 0x0131)
_NAMED = re.compile(r"(prompt|workflow|parameters):", re.IGNORECASE)
_CODES = (b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", b"\0" * 8)
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le"))
# Words that programs write around every prompt, whatever its language.
_SIGNS = ("Steps: ", "Negative prompt:", '{"')
_WITH_CJK = frozenset({"HIRAGANA", "KATAKANA", "FULLWIDTH", "HALFWIDTH", "BOPOMOFO"})
_LOOKED_AT = 400
_UNLIKELY = frozenset({"Cc", "Cn", "Co", "Cs"})
# Phones write this into every screenshot.
_NO_PROMPTS = frozenset({"Screenshot"})


def texts_in(path: Path) -> Mapping[str, str]:
    """Read an image's texts by name; the comment of EXIF or GIF is called 'parameters', as in A1111.

    Never raises because of what a file holds; no text is longer than a bound.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(8) == SIGNATURE:
                return _of_png(text_chunks(stream))
            stream.seek(0)
            Image.init()
            usable = [name for name in _FORMATS if name in Image.OPEN]
            with Image.open(stream, formats=usable) as image:
                comment = image.info.get("comment") if image.format == "GIF" else None
                texts = _of_exif(image.getexif())
                if isinstance(comment, bytes) and len(comment) <= MAX_TEXT:
                    texts.setdefault("parameters", comment.decode("utf-8", "replace"))
                return texts
    # Pillow's decoders raise whatever a damaged header makes them stumble over.
    except (Exception, MemoryError):
        return {}


def decode_comment(value: bytes) -> str:
    """Decode EXIF's user comment: eight letters that name the encoding, then the text.

    Programs do not agree on the byte order behind UNICODE, and some write UTF-8, with the name or
    without any: what reads best is taken.
    """
    body = value[8:] if value[:8] in _CODES else value
    for mark, encoding in _BOMS:
        if body.startswith(mark):
            return body[len(mark) :].decode(encoding, "replace")
    if value.startswith(b"UNICODE\0"):
        return _most_likely(body)
    if value.startswith(b"JIS"):
        return body.decode("iso2022_jp", "replace")
    return body.rstrip(b"\0").decode("utf-8", "replace")


def _of_png(texts: Mapping[str, bytes | str]) -> dict[str, str]:
    strings = {name: text for name, text in texts.items() if isinstance(text, str)}
    block = texts.get("eXIf")
    if isinstance(block, bytes):
        exif = Image.Exif()
        try:
            exif.load(b"Exif\0\0" + block)
            for name, text in _of_exif(exif).items():
                strings.setdefault(name, text)
        # As above: what a damaged block raises is anybody's guess.
        except Exception:
            pass
    return strings


def _of_exif(exif: Image.Exif) -> dict[str, str]:
    texts: dict[str, str] = {}
    for tag in _NAMED_TAGS:
        value = exif.get(tag)
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            continue
        match = _NAMED.match(value)
        if match:
            texts.setdefault(match[1].lower(), value[match.end() :].strip().rstrip("\0"))
    comment = exif.get_ifd(_EXIF).get(_USER_COMMENT)
    if isinstance(comment, bytes):
        comment = decode_comment(comment[: 2 * MAX_TEXT])
    if isinstance(comment, str) and comment.strip() not in _NO_PROMPTS:
        texts.setdefault("parameters", comment)
    return texts


def _most_likely(body: bytes) -> str:
    """Decode text of unknown encoding; if nothing decides, big-endian as A1111 writes it."""
    return max(_readings(body), key=_likelihood)


def _readings(body: bytes) -> Iterator[str]:
    yield body.decode("utf-16-be", "replace")
    yield body.decode("utf-16-le", "replace")
    try:
        # Text in 16 bits has zeros wherever it has Latin letters or line ends.
        if b"\0" not in body.rstrip(b"\0"):
            yield body.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError:
        return


def _likelihood(text: str) -> tuple[bool, float]:
    """Rate a decoding: known keywords first, then how uniform its script is."""
    start = text[:_LOOKED_AT]
    score = 0.0
    scripts: set[str] = set()
    for letter in start:
        category = unicodedata.category(letter)
        if letter == "\ufffd" or (category in _UNLIKELY and letter not in "\n\r\t"):
            score -= 3.0
        elif letter.isascii():
            score += 1.0
        elif category[0] in "LM":
            script = unicodedata.name(letter, "?").split(" ", 1)[0].split("-", 1)[0]
            scripts.add("CJK" if script in _WITH_CJK else script)
    return any(sign in text for sign in _SIGNS), score / max(1, len(start)) - 0.3 * len(scripts)
