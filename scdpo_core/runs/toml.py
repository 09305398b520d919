"""TOML on every Python, imported late: on 3.10 it is a package that a host may yet lack."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..types import ScdpoError


def loads(text: str) -> dict[str, Any]:
    """TOML text as values.

    Raises:
        ValueError: it is no TOML; says where.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    values: dict[str, Any] = tomllib.loads(text)
    return values


def as_flags(path: Path, known: Collection[str]) -> list[str]:
    """A file of settings as the flags of a command line that say the same.

    Args:
        path: keys are flags' names, with _ for -; a flag that takes no value is true or false.
        known: those there are.

    Raises:
        ScdpoError: the file cannot be read, or a key is none of those.
    """
    try:
        values = loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ScdpoError(f"The settings file {path} cannot be read: {error}.") from error
    for key in values:
        if key not in known:
            raise ScdpoError(
                f"{path}: there is no setting '{key}'. Choose one of: {', '.join(sorted(known))}."
            )
    flags: list[str] = []
    for key, value in values.items():
        flag = f"--{key.replace('_', '-')}"
        flags += [flag] * value if isinstance(value, bool) else [f"{flag}={value}"]
    return flags
