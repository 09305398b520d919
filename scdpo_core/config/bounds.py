"""What a number among the settings may be: said once, in its field, for the checks and for --help."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")
_KEY, _NEEDS = "bounds", "needs"


@dataclass(frozen=True)
class Need:
    """What must be there for a setting to have any effect.

    Attributes:
        words: how it is given, to follow the word 'needs': '--schedule polynomial'.
        is_met: whether it is there, by the settings of a run and the name of the base model's family; the
            name is None while nobody knows it, which meets every need of a family.
    """

    words: str
    is_met: Callable[[Any, str | None], bool]


@dataclass(frozen=True)
class Bounds:
    """The numbers that a setting may be; None where there is no such limit.

    Attributes:
        at_least: smallest one.
        above: what it must exceed.
        at_most: largest one.
        below: what it must stay under.
        step: it is a multiple of this.
        hint: what to do about a wrong one, if that is not plain.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    step: int | None = None
    hint: str = ""

    def allow(self, value: float) -> bool:
        """Whether a number is one of them; NaN and infinity never are."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and (self.step is None or value % self.step == 0)
        )

    def __str__(self) -> str:
        names = ("at_least", "above", "at_most", "below")
        limits = ((name, getattr(self, name)) for name in names)
        words = [f"{name.replace('_', ' ')} {_digits(limit)}" for name, limit in limits if limit is not None]
        if self.step is not None:
            words.append(f"a multiple of {self.step}")
        return " and ".join(words)


def bounded(
    default: _T,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    step: int | None = None,
    hint: str = "",
    needs: Need | tuple[Need, ...] = (),
) -> _T:
    """Define a dataclass field with bounds, see `Bounds`; a default of None stands outside them.

    `needs` says what else must be there for the setting to have any effect.
    """
    metadata: dict[str, object] = {_KEY: Bounds(at_least, above, at_most, below, step, hint)}
    if needs:
        metadata[_NEEDS] = needs if isinstance(needs, tuple) else (needs,)
    found: _T = dataclasses.field(default=default, metadata=metadata)
    return found


def needing(default: _T, *needs: Need) -> _T:
    """Define a dataclass field, of whatever kind, that has an effect only where these needs are met."""
    found: _T = dataclasses.field(default=default, metadata={_NEEDS: needs})
    return found


def needs_of(field: dataclasses.Field[Any]) -> tuple[Need, ...]:
    """What must be there for a field's setting to have any effect."""
    found: tuple[Need, ...] = field.metadata.get(_NEEDS, ())
    return found


def with_bounds(cls: type[_T]) -> type[_T]:
    """Add bounds and needs of a dataclass's fields to their lines in its docstring, which --help shows."""
    # Without the margin of the source, which Python has stripped itself since 3.13.
    lines = inspect.cleandoc(cls.__doc__ or "").split("\n")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        parts = [str(field.metadata.get(_KEY, "")), " and ".join(need.words for need in needs_of(field))]
        parts = [f"{before}{part}" for before, part in zip(("", "needs "), parts, strict=True) if part]
        if parts:
            first = next(at for at, line in enumerate(lines) if line.startswith(f"    {field.name}: "))
            # What belongs to it is set in deeper than the next name.
            last = first
            while last + 1 < len(lines) and lines[last + 1].startswith(" " * 8):
                last += 1
            lines[last] = f"{lines[last].removesuffix('.')} ({'; '.join(parts)})."
    cls.__doc__ = "\n".join(lines)
    return cls


def out_of_bounds(settings: Any) -> Iterator[str]:
    """Say of each number in a dataclass of sections that is not finite or out of bounds what it must be."""
    for section in dataclasses.fields(settings):
        values = getattr(settings, section.name)
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            bounds: Bounds = field.metadata.get(_KEY, Bounds())
            if not bounds.allow(value):
                wanted, hint = str(bounds) or "a finite number", f": {bounds.hint}" if bounds.hint else ""
                yield f"{section.name}.{field.name} must be {wanted}, not {_digits(value)}{hint}"


def _digits(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
