"""The prompt that a picture was made for, as A1111, Forge and ComfyUI write it into their files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

_FORMATS = ("PNG", "JPEG", "WEBP")
_EXIF, _USER_COMMENT = 0x8769, 0x9286
_MOST = 1 << 20  # characters; Pillow itself bounds compressed text
_ENDS = re.compile(r"^(?:Negative prompt:|Steps: \d)", re.MULTILINE)
# <lora:name:1>, <hypernet:name:1> name files, no things to see.
_NETWORK = re.compile(r"<\w+:[^<>]*>")
_WEIGHTED = re.compile(r"[(\[]([^()\[\]]*?)(?::\s*[\d.]+)?[)\]]")
_SAMPLERS = ("positive", "guider", "conditioning")
_TEXTS = ("text", "text_g", "text_l", "t5xxl", "clip_l", "prompt", "string", "value")
_DEEPEST = 50


def prompt_of(path: Path) -> str:
    """The prompt in a picture's own metadata, else in a .txt file beside it; '' if there is none.

    Tags that load networks and weights such as (red:1.2) are taken out: trainers read plain words.
    Never raises because of what a file holds.
    """
    infos = _infos(path)
    for read in (_from_parameters, _from_graph):
        found = read(infos)
        if found:
            return found
    try:
        beside = path.with_suffix(".txt")
        return _one_line(beside.read_text("utf-8-sig")[:_MOST]) if beside.is_file() else ""
    except (OSError, ValueError):
        return ""


def plain(prompt: str) -> str:
    """A prompt without network tags and weights, on one line."""
    text = _NETWORK.sub(" ", prompt)
    for _ in range(_DEEPEST):
        # Escaped brackets are meant to be read.
        shorter = _WEIGHTED.sub(r"\1", text.replace("\\(", "\x01").replace("\\)", "\x02"))
        shorter = shorter.replace("\x01", "\\(").replace("\x02", "\\)")
        if shorter == text:
            break
        text = shorter
    text = text.replace("\\(", "(").replace("\\)", ")")
    return re.sub(r"(?:,\s*)+$|^(?:\s*,)+", "", _one_line(re.sub(r"\s+,", ",", text))).strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _infos(path: Path) -> Mapping[str, str]:
    """Text chunks by name; of JPEG and WebP the EXIF user comment is called 'parameters', as in A1111."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            texts = {
                name: str(text)
                for name, text in image.info.items()
                if isinstance(name, str) and isinstance(text, str) and len(text) <= _MOST
            }
            if image.format != "PNG":
                comment = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT)
                if isinstance(comment, bytes):
                    texts.setdefault("parameters", _comment(comment[: 2 * _MOST]))
            return texts
    # Pillow's decoders raise whatever a damaged header makes them stumble over.
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, UnidentifiedImageError):
        return {}
    except Image.DecompressionBombError:
        return {}


def _comment(value: bytes) -> str:
    """EXIF's user comment: eight letters that name the encoding, then the text."""
    if value.startswith(b"UNICODE\0"):
        body = value[8:]
        return body.decode("utf-16-le" if body[1:2] == b"\0" else "utf-16-be", "replace")
    return value[8:].decode("utf-8", "replace") if value[:8].rstrip(b"\0") in (b"", b"ASCII") else ""


def _from_parameters(infos: Mapping[str, str]) -> str:
    text = infos.get("parameters", "")
    end = _ENDS.search(text)
    return plain(text[: end.start()] if end else text)


def _from_graph(infos: Mapping[str, str]) -> str:
    """ComfyUI keeps the whole graph: from a sampler's positive input back to the text."""
    try:
        graph = json.loads(infos.get("prompt", ""))
    except (ValueError, RecursionError):
        return ""
    if not isinstance(graph, dict):
        return ""
    for node in graph.values():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if isinstance(inputs, dict) and "positive" in inputs:
            found = _text(graph, inputs["positive"], 0)
            if found:
                return plain(found)
    return ""


def _text(graph: Mapping[str, Any], value: Any, depth: int) -> str:
    if isinstance(value, str):
        return value
    if depth > _DEEPEST or not isinstance(value, list) or not value:
        return ""
    node = graph.get(str(value[0]))
    inputs = node.get("inputs") if isinstance(node, dict) else None
    if not isinstance(inputs, dict):
        return ""
    for name in (*_TEXTS, *_SAMPLERS, *(key for key in inputs if key.startswith("conditioning"))):
        found = _text(graph, inputs.get(name), depth + 1)
        if found:
            return found
    return ""
