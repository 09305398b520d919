"""Prompts as people and programs write them down, reduced to the words that a text encoder shall read.

Everything here takes time in proportion to the text: what it reads comes from strangers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_PROMPT = 65536
"""Characters of a prompt; what is longer is none."""
_MAX_JSON = 4 << 20
# Settings follow the prompt from the line on that begins so.
_SETTINGS = re.compile(r"^(?:Negative prompt:|Steps: \d+(?:,|\s*$))", re.MULTILINE)
# <lora:name:1> and embedding:name name files, no things to see.
_NETWORK = re.compile(r"<\w{1,40}:[^<>]{0,400}>|\bembedding:[^\s,()]{1,200}")
_EMOTICON = re.compile(r"(?<![^\s,(])(?:[:;=][-']?[()\[\]]|[(\[][:;=])(?![^\s,)])")
_TOKEN = re.compile(r"\\[\\()\[\]]|[()\[\]|]|[^\\()\[\]|]+|\\")
_WEIGHT = re.compile(r":\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*$")
# Lumina's models read instructions before the prompt.
_INSTRUCTIONS = "<Prompt Start>"
_LONGEST_WEIGHT = 24
_CLOSES = {"(": ")", "[": "]"}
# Joins of several prompts in A1111: chunks, and images that are mixed, each with a weight behind it.
_BREAK, _AND = re.compile(r"\bBREAK\b"), re.compile(r"\bAND\b")
_INVOKE_WEIGHT = re.compile(r"(?<=[\w)])(?:\+{1,9}|-{1,9})(?=[\s,)]|$)|(?<=\))\d(?:\.\d{1,4})?")
_JSON_PROMPTS = ("prompt", "positive_prompt", "positive", "Prompt", "input_prompt")


def prompt_in(text: str) -> str:
    """Return the prompt in what a program wrote: its settings in A1111's form or as JSON, or words alone.

    Returns:
        The words on one line without weights and network tags; '' if there are none.
    """
    if text.lstrip("\ufeff \r\n\t").startswith("{"):
        settings = loads(text)
        if settings is not None:
            return prompt_of_settings(settings)
    return plain(words_of(text))


def words_of(infotext: str) -> str:
    """Return what stands before the negative prompt and the settings in A1111's form, as it is written."""
    text = infotext.removeprefix("\ufeff").replace("\r\n", "\n")
    settings = _SETTINGS.search(text)
    return text[: settings.start()] if settings else text


def prompt_of_settings(settings: Mapping[str, Any]) -> str:
    """Return the prompt among the settings of Fooocus, SwarmUI, InvokeAI, NovelAI and others."""
    inner = settings.get("sui_image_params")
    if isinstance(inner, dict):
        # What follows such a tag describes a part of the image.
        text = _first_text(inner)
        return plain(re.split(r"<(?:segment|region|object):", text, maxsplit=1)[0])
    image = settings.get("image")
    if isinstance(image, dict) and "prompt" in image:
        settings = image
    text = _first_text(settings)
    if not text and "uc" in settings and isinstance(settings.get("c"), str):
        text = settings["c"]
    if "uc" in settings:
        # NovelAI weighs with braces.
        text = text.replace("{", "").replace("}", "")
    if "positive_prompt" in settings:
        text = _INVOKE_WEIGHT.sub("", text)
    return plain(text)


def loads(text: str) -> dict[str, Any] | None:
    """Parse a JSON object of bounded size; None if it is none."""
    if len(text) > _MAX_JSON:
        return None
    try:
        value = json.loads(text.strip("\ufeff\0 \r\n\t"), parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def plain(prompt: str) -> str:
    """Reduce a prompt to its words on one line, without network tags, weights and their brackets.

    As A1111 reads it: brackets weigh, escaped ones are meant; [from:to:when] ends as `to`, [a|b] is both;
    BREAK and AND join. What is longer than `MAX_PROMPT` afterwards is no prompt: ''.
    """
    if len(prompt) > 16 * MAX_PROMPT:
        return ""
    text = prompt.rpartition(_INSTRUCTIONS)[2]
    text = _BREAK.sub(",", _NETWORK.sub(" ", text))
    mixed = _AND.split(text)
    if len(mixed) > 1:
        text = ",".join(map(_without_weight, mixed))
    # Emoticons are kept by being escaped.
    text = _EMOTICON.sub(lambda match: re.sub(r"([()\[\]])", r"\\\1", match[0]), text)
    text = " ".join(_without_weights(text).split())
    parts = [part.rstrip() for part in text.split(",") if part.strip()]
    text = ",".join(parts).strip()
    return text if len(text) <= MAX_PROMPT else ""


def _without_weight(text: str) -> str:
    weight = _WEIGHT.search(text, max(0, len(text) - _LONGEST_WEIGHT))
    return text[: weight.start()] if weight else text


def _without_weights(text: str) -> str:
    """Strip weights in one pass; a stack holds where the words of each open bracket begin."""
    pieces: list[str] = []
    open_brackets: list[tuple[str, int]] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _CLOSES:
            open_brackets.append((_CLOSES[token], len(pieces)))
        elif open_brackets and token == open_brackets[-1][0]:
            _close(pieces, *open_brackets.pop())
        elif token == "|" and open_brackets and open_brackets[-1][0] == "]":
            pieces.append(" ")
        else:
            pieces.append(token[1:] if len(token) == 2 and token[0] == "\\" else token)
    # Unclosed brackets weight the rest of the text, and are not words.
    return "".join(pieces)


def _close(parts: list[str], kind: str, start: int) -> None:
    """Take the weight off the words of a pair of brackets, which begin at `start`."""
    if start >= len(parts):
        return
    last, alone = parts[-1], start == len(parts) - 1
    weight = _WEIGHT.search(last, max(0, len(last) - _LONGEST_WEIGHT))
    if weight is None:
        if kind == "]" and alone and last.rstrip().endswith(":"):
            parts[-1] = last.rstrip().rstrip(":")
    # (12:00) is a time.
    elif not (alone and last[: weight.start()].strip().isdecimal()):
        parts[-1] = last[: weight.start()]
        if kind == "]" and alone:
            # [from:to:when] ends as `to`, or as `from` where `to` is empty.
            before, _, after = parts[-1].partition(":")
            parts[-1] = after if after.strip() else before


def _first_text(settings: Mapping[str, Any]) -> str:
    for name in _JSON_PROMPTS:
        value = settings.get(name)
        # InvokeAI 2 lists prompts with their weights.
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = value[0].get("prompt")
        if isinstance(value, str) and value.strip():
            return value
    return ""


def _integer(digits: str) -> int:
    # Reading thousands of digits takes the square of their number.
    return int(digits) if len(digits) <= 20 else 0
