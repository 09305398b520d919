"""TOML on every Python, imported late: on 3.10 it is a package that a host may yet lack."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..types import ScdpoError
from .convert import require_no_control, toml_error

_LONGEST = 1 << 20


def loads(text: str) -> dict[str, Any]:
    """TOML text as values.

    Raises:
        ValueError: it is no TOML; says where.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if len(text) > _LONGEST:
        raise ValueError("it is far too long for settings")
    # What no file can hold would end the program only when it is written.
    text.encode("utf-8")
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    return values


def as_flags(path: Path, known: Collection[str]) -> list[str]:
    """A file of settings as the flags of a command line that say the same.

    Args:
        path: keys are flags' names, with _ for -; a flag that takes no value is true or false,
            one that takes several has a list.
        known: those there are.

    Raises:
        ScdpoError: the file cannot be read, or a key is none of those.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ScdpoError(f"The settings file {path} cannot be read: {error}.") from error
    try:
        values = loads(text)
    except ValueError as error:
        raise ScdpoError(f"{path} is not valid TOML: {toml_error(text, error)}.") from error
    except RecursionError as error:
        raise ScdpoError(f"{path} nests its values too deeply for a settings file.") from error
    for value in values.values():
        if isinstance(value, str):
            try:
                require_no_control(value)
            except ValueError as error:
                raise ScdpoError(f"{path}: {value!r} must be {error}.") from error
    for key in values:
        if key not in known:
            raise ScdpoError(
                f"{path}: there is no setting '{key}'. Choose one of: {', '.join(sorted(known))}."
            )
    flags: list[str] = []
    for key, value in values.items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, list):
            flags += [flag, *map(str, value)] if value else []
        else:
            flags += [flag] * value if isinstance(value, bool) else [f"{flag}={value}"]
    return flags
