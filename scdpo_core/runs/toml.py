"""TOML on every Python, imported late: on 3.10 it is a package that a host may yet lack."""

from __future__ import annotations

import sys
from typing import Any


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
