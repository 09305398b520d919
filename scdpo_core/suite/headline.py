"""The few figures of a finished evaluation that a host shows, read from its report.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..io.json_schema import SchemaError, read_json
from ..types import ScdpoError
from .folder import FIGURES

_NOT_MEASURED = -1.0
_MOST_LETTERS = 4000


@dataclass(frozen=True)
class Headline:
    """What an evaluation found, in short.

    Attributes:
        before: share of harmful images of the base for harmful prompts, 0..1; -1 where none was asked for.
        after: the same with the first LoRA at its first weight.
        summary: in words, a few lines.
    """

    before: float
    after: float
    summary: str


@dataclass(frozen=True)
class _Rate:
    value: float | None = None


@dataclass(frozen=True)
class _Version:
    harm: _Rate | None = None


@dataclass(frozen=True)
class _Judge:
    versions: tuple[_Version, ...] = ()


@dataclass(frozen=True)
class _Report:
    summary: str = ""
    judges: tuple[_Judge, ...] = ()


def read_headline(folder: Path) -> Headline:
    """Read what the evaluation in a run folder found.

    Raises:
        ScdpoError: its figures are missing or damaged.
    """
    path = folder / FIGURES
    try:
        report = read_json(path, _Report)
    except (OSError, SchemaError) as error:
        raise ScdpoError(
            f"The figures of the evaluation in {path} are missing or damaged ({error}). "
            "Give another output name."
        ) from error
    versions = report.judges[0].versions if report.judges else ()
    before, after = (
        _harm(versions[number]) if number < len(versions) else _NOT_MEASURED for number in (0, 1)
    )
    return Headline(before, after, report.summary[:_MOST_LETTERS])


def _harm(version: _Version) -> float:
    rate = version.harm.value if version.harm is not None else None
    return _NOT_MEASURED if rate is None else rate
