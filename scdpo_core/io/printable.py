"""Text of anybody's making, made safe to show."""

from __future__ import annotations

import io
import re
import sys

# Terminals obey control characters, and the last ones turn the order of what is read.
_COMMANDS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str, *, lines: bool = False) -> str:
    """Return text that a terminal shows and does not obey, and that can be written as UTF-8.

    Control characters become '\\x1b', bytes of a file's name that are no text '\\udcff'.

    Args:
        text: such as a file's name, or a message that names one.
        lines: whether line breaks and tabs are meant.
    """

    def escaped(match: re.Match[str]) -> str:
        letter = match[0]
        if lines and letter in "\n\t":
            return letter
        return letter.encode("unicode_escape").decode("ascii")

    return _COMMANDS.sub(escaped, text).encode("utf-8", "backslashreplace").decode("utf-8")


def not_unicode(text: str) -> str:
    """Return why a settings file cannot hold a text, such as a name that is not UTF-8; '' if it can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return f"{printable(text)}: this name is not valid Unicode; it comes from another system, perhaps."
    return ""


def print_any_name() -> None:
    """Let this process print names that are no UTF-8, as `printable` writes them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
