"""JSON of ours, read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from scdpo_core.io.json_schema import SchemaError, from_json, read_json


@dataclass(frozen=True)
class Part:
    number: int
    share: float = 0.5


@dataclass(frozen=True)
class Whole:
    name: str
    kind: Literal["a", "b"]
    on: bool = False
    path: Path | None = None
    parts: tuple[Part, ...] = ()
    figures: Mapping[str, float | None] = field(default_factory=dict)


def test_every_kind_of_value() -> None:
    value = {
        "name": "x",
        "kind": "b",
        "on": True,
        "path": "/a/b",
        "parts": [{"number": 1}, {"number": 2, "share": 1}],
        "figures": {"loss": 0.5, "lr": None},
        "from a newer version": [],
    }
    found = from_json(value, Whole)
    assert found == Whole("x", "b", True, Path("/a/b"), (Part(1), Part(2, 1.0)), {"loss": 0.5, "lr": None})
    assert from_json({"name": "x", "kind": "a"}, Whole) == Whole("x", "a")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 3}, "name is not a text"),
        ({"name": None}, "name is not a text"),
        ({"kind": "c"}, "kind is none of a, b"),
        ({"kind": []}, "kind is none of a, b"),
        ({"on": 1}, "on is not true or false"),
        ({"path": 1}, "path is not a path"),
        ({"path": "a\0b"}, "path is not a path"),
        ({"parts": {}}, "parts is no list"),
        ({"parts": "x"}, "parts is no list"),
        ({"parts": [1]}, r"parts\[0\] has no fields"),
        ({"parts": [{}]}, r"parts\[0\] lacks 'number'"),
        ({"parts": [{"number": True}]}, r"parts\[0\].number is not a whole number"),
        ({"parts": [{"number": 1.0}]}, r"parts\[0\].number is not a whole number"),
        ({"parts": [{"number": 1 << 63}]}, r"parts\[0\].number is not a whole number"),
        ({"parts": [{"number": 1, "share": float("nan")}]}, "share is not a finite number"),
        ({"figures": []}, "figures has no names"),
        ({"figures": {"x" * 99: "y"}}, r"figures.x{40} is not a finite number"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        from_json({"name": "x", "kind": "a", **change}, Whole)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("3", "it has no fields"),
        ("[]", "it has no fields"),
        ('{"kind": "a"}', "it lacks 'name'"),
        ('{"name": "x", "kind": ' + "9" * 5000 + "}", "no JSON|none of"),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, "utf-8")
    with pytest.raises(SchemaError, match=said):
        read_json(path, Whole)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SchemaError, match="no JSON"):
        read_json(path, Whole)
