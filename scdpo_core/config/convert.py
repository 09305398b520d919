"""Settings as a dataclass of sections, to and from plain dicts, with errors that name the nearest key."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..types import ScdpoError

_T = TypeVar("_T")

_BACKSLASH = """a backslash in "double quotes" is special. Write the path with /, or in 'single quotes'"""


def toml_error(text: str, error: Exception) -> str:
    """What is wrong with a text that is no TOML, with the remedy where a Windows path is the cause."""
    line = getattr(error, "lineno", None)
    if line is None:
        # Only newer versions of Python keep the number apart from the sentence.
        match = re.search(r"at line (\d+)", str(error))
        line = int(match[1]) if match else 0
    lines = text.splitlines()
    cause = 0 < line <= len(lines) and "\\" in lines[line - 1]
    return f"{error}: {_BACKSLASH}" if cause else str(error)


def require_no_control(value: str) -> None:
    """Refuse a text with tabs, line ends and their like, which a path such as "C:\\new" turns into.

    Raises:
        ValueError: the text holds such characters; says what to do.
    """
    if any(ord(letter) < 32 for letter in value):
        raise ValueError(f"a text without control characters; {_BACKSLASH}")


def to_dict(settings: Any) -> dict[str, dict[str, Any]]:
    """Plain values by section and key; None is left out, paths are strings, tuples are lists."""
    return {
        section.name: {
            key: _plain(value)
            for key, value in vars(getattr(settings, section.name)).items()
            if value is not None
        }
        for section in dataclasses.fields(settings)
    }


def from_dict(start: _T, tree: Mapping[str, Any], source: str) -> _T:
    """Plain values by section and key, over `start`.

    Args:
        start: a dataclass whose fields are dataclasses of plain values.
        tree: as `to_dict` makes it; whatever it lacks stays as in `start`.
        source: what the values come from, for the messages.

    Raises:
        ScdpoError: an unknown section or key, or a value of the wrong kind; names it and the nearest valid.
    """
    sections = {
        section.name: getattr(start, section.name)
        for section in dataclasses.fields(start)  # type: ignore[arg-type]
    }
    for name, values in tree.items():
        if name not in sections:
            raise ScdpoError(f"{source}: {_unknown(name, '', sections)}")
        if not isinstance(values, Mapping):
            raise ScdpoError(
                f"{source}: '{name}' is a section: write it as [{name}] with its settings below."
            )
        changed = {}
        kinds = typing.get_type_hints(type(sections[name]))
        for key, value in values.items():
            if key not in kinds:
                raise ScdpoError(f"{source}: {_unknown(key, name, sections)}")
            try:
                changed[key] = _convert(value, kinds[key])
            except ValueError as error:
                raise ScdpoError(f"{source}: '{name}.{key}' must be {error}, not {value!r}.") from None
        sections[name] = dataclasses.replace(sections[name], **changed)
    return type(start)(**sections)


def _unknown(key: str, section: str, sections: Mapping[str, Any]) -> str:
    """A sentence about an unknown key that names the nearest one, in its own section if possible."""
    own = {name: f"{section}.{name}" for name in vars(sections[section])} if section else {}
    every = {name: f"{part}.{name}" for part, values in sections.items() for name in vars(values)}
    named = f"there is no setting '{section + '.' if section else ''}{key}'."
    for where in (own, {} if section else {name: f"[{name}]" for name in sections}, every):
        near = difflib.get_close_matches(key, list(where), n=1, cutoff=0.6)
        if near:
            return f"{named} Did you mean '{where[near[0]]}'?"
    return f"{named} Choose one of: {', '.join(own or sections)}."


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _one_of(value: Any, kinds: Sequence[Any]) -> Any:
    """`value` as the first of several kinds that it can be."""
    refusals = []
    for kind in kinds:
        try:
            return _convert(value, kind)
        except ValueError as error:
            refusals.append(str(error))
    raise ValueError(" or ".join(refusals))


def _convert(value: Any, kind: Any) -> Any:
    """`value` as `kind`; the ValueError's text says what it must be."""
    options = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is Literal:
        if value not in options:
            raise ValueError(f"{'one of ' * (len(options) > 1)}{', '.join(map(repr, options))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ValueError("a list of texts")
        return tuple(value)
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, [option for option in options if option is not types.NoneType])
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (Path, str) and isinstance(value, str):
        require_no_control(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    # A bool is an int to isinstance, never to an artist.
    if type(value) is kind:
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    raise ValueError(names.get(kind, "a text"))
