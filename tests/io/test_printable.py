"""Text of anybody's making, on a terminal."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scdpo_core.io.printable import printable
from scdpo_core.preferences.problems import in_words
from scdpo_core.run_store.events import Warned
from scdpo_core.runs.console import Screen
from scdpo_core.types import Problem

ESCAPE = "a\x1b]0;owned\x07\x1b[2Jb.png"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünï, 蛇 \N{CAT FACE}", "plain, ünï, 蛇 \N{CAT FACE}"),
        (ESCAPE, r"a\x1b]0;owned\x07\x1b[2Jb.png"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("a\r\nb", r"a\r\nb"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("\udcff.png", r"\udcff.png"),
    ],
)
def test_a_terminal_shows_and_does_not_obey(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_breaks_of_lines_may_be_meant() -> None:
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"


@given(st.text())
def test_nothing_that_is_shown_is_a_command(text: str) -> None:
    shown = printable(text)
    shown.encode("utf-8")
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown)


def test_names_of_files_are_shown_so_everywhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "\x1b" not in in_words([Problem(tmp_path / ESCAPE, "it is odd.")])
    Screen().show(Warned(f"{ESCAPE} is odd."))
    score = runpy.run_path(str(Path(__file__).resolve().parents[2] / "trainer" / "score.py"))["main"]
    Image.new("RGB", (8, 8)).save(tmp_path / ESCAPE)
    assert score([str(tmp_path), "--scorer", "micro"]) == 0
    assert score([str(tmp_path / ("no" + ESCAPE)), "--scorer", "micro", "--csv", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert r"\x1b[2Jb.png" in shown.out and "\x1b" not in shown.out + shown.err
