"""HTML pages and panels from `templates/`; every value is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..io.printable import printable
from ..types import REVIEW_FROM, UNSAFE_FROM, band_of
from . import wording


def render(template: str, **values: Any) -> str:
    """Fill in a template.

    Args:
        template: its path below `templates/`.
        values: that it names; texts may come from anybody.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    # Not PackageLoader: inside ComfyUI this package has another name.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates"), encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,
    )
    environment.filters |= {
        "percent": wording.percent,
        "interval": wording.interval,
        "signed": wording.signed,
        "count": wording.count,
        "duration": wording.duration,
        "band": band_of,
        "split_path": split_path,
    }
    environment.globals |= {"review_from": REVIEW_FROM, "unsafe_from": UNSAFE_FROM}
    return environment


def _shown(value: Any) -> Any:
    """Make control characters and undecodable bytes of a text visible."""
    return printable(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


def split_path(path: str) -> tuple[list[str], str]:
    """Return the folders of a path, each with its separator, and its name; lines break between them."""
    separator = "/" if "/" in path else "\\"
    *folders, name = path.split(separator)
    return [folder + separator for folder in folders], name
