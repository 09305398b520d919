"""JSON of ours, read back: a dataclass is the schema of its file; what has another shape is refused.

Run folders are passed on and edited by hand, so that nothing is believed of what lies in them. Hosts read
them: only the standard library is imported here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")

_MOST_BYTES = 64 << 20
_LARGEST = 1 << 63
_DEEPEST = "it is nested too deeply"


class SchemaError(ValueError):
    """What is wrong with a value; completes '... is damaged: '."""


def read_json(path: Path, kind: type[T]) -> T:
    """Return a file of ours as the dataclass that was written into it.

    Raises:
        OSError: the file is not there, or cannot be read.
        SchemaError: it is damaged, or holds something else.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise SchemaError("it is far too large")
    try:
        text = path.read_text("utf-8")
    except ValueError as error:
        raise SchemaError(f"it is no JSON ({error})") from None
    return from_json(parse(text), kind)


def parse(text: str) -> Any:
    """Return the value of a JSON text, of whatever shape.

    Raises:
        SchemaError: it is none, or nested too deeply; completes '... is damaged: '.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise SchemaError(_DEEPEST) from None
    except ValueError as error:
        raise SchemaError(f"it is no JSON ({error})") from None


def from_json(value: Any, kind: type[T]) -> T:
    """Return what a JSON parser returned, as a dataclass.

    Missing fields get their defaults, further ones are passed over: another version of the program may have
    written them. Numbers are finite, and no true or false stands for one.

    Args:
        value: as `json.loads` returns it.
        kind: a dataclass whose fields are dataclasses, texts, numbers, paths, or tuples and mappings of them.

    Raises:
        SchemaError: it does not fit; names the field.
    """
    return typing.cast(T, _read(value, kind, "it"))


def _read(value: Any, kind: Any, location: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _read_record(value, kind, location)
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        # A list is no key, and 1 is not True.
        if not any(type(value) is type(option) and value == option for option in options):
            raise SchemaError(f"{location} is none of {', '.join(map(str, options))}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in options:
            return None
        return _read(value, next(option for option in options if option is not types.NoneType), location)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SchemaError(f"{location} is no list")
        return tuple(_read(item, options[0], f"{location}[{number}]") for number, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise SchemaError(f"{location} has no names")
        return {key: _read(item, options[1], f"{location}.{key[:40]}") for key, item in value.items()}
    return _read_plain(value, kind, location)


def _read_record(value: Any, kind: Any, location: str) -> Any:
    if not isinstance(value, dict):
        raise SchemaError(f"{location} has no fields")
    values = {}
    for name, expected, needed in _fields(kind):
        if name in value:
            values[name] = _read(value[name], expected, name if location == "it" else f"{location}.{name}")
        elif needed:
            raise SchemaError(f"{location} lacks '{name}'")
    return kind(**values)


def _read_plain(value: Any, kind: Any, location: str) -> Any:
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind is int and type(value) is int and -_LARGEST <= value < _LARGEST:
        return value
    if kind is bool and type(value) is bool:
        return value
    if kind in (str, Path) and isinstance(value, str):
        if kind is str:
            return value
        try:
            if b"\0" not in os.fsencode(value):
                return Path(value)
        except UnicodeEncodeError:  # half a character
            pass
    names = {bool: "true or false", int: "a whole number", float: "a finite number", Path: "a path"}
    raise SchemaError(f"{location} is not {names.get(kind, 'a text')}")


@cache
def _fields(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    """Name and type of each field, and whether it has to be there."""
    hints = typing.get_type_hints(kind)
    return tuple(
        (
            field.name,
            hints[field.name],
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(kind)
    )
