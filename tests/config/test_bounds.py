"""Bounds of settings: what they allow, how they read, and that no number escapes them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import pytest

from scdpo_core.config.bounds import Bounds, bounded, out_of_bounds, with_bounds
from scdpo_core.config.convert import from_dict, to_dict
from scdpo_core.config.settings import TrainSettings
from scdpo_core.training.setting_checks import invalid


@with_bounds
@dataclass(frozen=True)
class _Part:
    """Made up.

    Attributes:
        rate: how fast it goes,
            in two lines.
        count: how many.
        free: any number.
    """

    rate: float | None = bounded(None, above=0, below=1, hint="take less")
    count: int = bounded(16, at_least=8, step=8)
    free: float = 0.0


@dataclass(frozen=True)
class _Whole:
    part: _Part = field(default_factory=_Part)


def test_bounds_stand_in_the_docstring_of_every_python() -> None:
    # Since 3.13 Python strips the margin of docstrings itself, so that the lines begin elsewhere.
    @dataclass(frozen=True)
    class Stripped:
        rate: float | None = bounded(None, above=0, below=1)
        count: int = bounded(16, at_least=8)

    wanted = "Made up.\n\nAttributes:\n    rate: how fast,\n        in two lines (above 0 and below 1).\n"
    wanted += "    count: how many (at least 8)."
    for margin in ("", "    ", "        "):
        text = f"Attributes:\n{margin}    rate: how fast,\n{margin}        in two lines."
        Stripped.__doc__ = f"Made up.\n\n{margin}{text}\n{margin}    count: how many."
        assert with_bounds(Stripped).__doc__ == wanted


def test_bounds_allow_what_they_say() -> None:
    assert str(Bounds(at_least=0, below=1)) == "at least 0 and below 1"
    assert str(Bounds(above=0.5, step=8)) == "above 0.5 and a multiple of 8"
    assert [Bounds(at_least=0, below=1).allow(value) for value in (-1e-9, 0, 0.99, 1)] == [
        False,
        True,
        True,
        False,
    ]
    assert [Bounds(above=0, at_most=1).allow(value) for value in (0, 1e-9, 1, 1.01)] == [
        False,
        True,
        True,
        False,
    ]
    assert [Bounds(step=8).allow(value) for value in (0, 8, 20, -8)] == [True, True, False, True]
    assert not any(Bounds().allow(value) for value in (math.nan, math.inf, -math.inf))


def test_bounds_stand_in_the_help() -> None:
    text = _Part.__doc__ or ""
    assert "    rate: how fast it goes,\n        in two lines (above 0 and below 1).\n" in text
    assert "    count: how many (at least 8 and a multiple of 8).\n" in text
    assert "    free: any number." in text


def test_what_is_out_of_bounds_is_named() -> None:
    assert list(out_of_bounds(_Whole())) == []
    wrong = _Whole(_Part(rate=1.0, count=20, free=math.inf))
    assert list(out_of_bounds(wrong)) == [
        "part.rate must be above 0 and below 1, not 1: take less",
        "part.count must be at least 8 and a multiple of 8, not 20",
        "part.free must be a finite number, not inf",
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_setting_of_a_run_may_be_no_number(value: float) -> None:
    defaults = to_dict(TrainSettings())
    for section in dataclasses.fields(TrainSettings()):
        for one in dataclasses.fields(getattr(TrainSettings(), section.name)):
            if "float" in str(one.type):
                wrong = from_dict(TrainSettings(), {section.name: {one.name: value}}, "test")
                assert any(f"{section.name}.{one.name}" in sentence for sentence in invalid(wrong)), one.name
    assert defaults


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("lora", "alpha", 0.0, "lora.alpha must be above 0, not 0: leave it out for alpha = rank."),
        ("optim", "weight_decay", -0.01, "optim.weight_decay must be at least 0, not -0.01."),
        ("data", "width", 20, "data.width must be at least 0 and a multiple of 8, not 20."),
        ("sampling", "sample_every", -1, "sampling.sample_every must be at least 0, not -1."),
        ("optim", "seed", 2**31, "optim.seed must be at least 0 and below 2147483648, not 2147483648."),
    ],
)
def test_what_trained_to_the_end_or_failed_late_is_said_at_once(
    section: str, key: str, value: float, words: str
) -> None:
    wrong = from_dict(TrainSettings(), {section: {key: value}}, "test")
    assert any(sentence.startswith(words) for sentence in invalid(wrong))
