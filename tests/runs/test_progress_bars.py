"""Progress bars of the programs."""

from __future__ import annotations

import sys

import pytest

from scdpo_core.runs.console import bars

Capture = pytest.CaptureFixture[str]


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_what_is_said_after_finished_work_stands_on_a_line_of_its_own(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch)
    with bars() as show:
        show("reading", 1, 2)
        assert "reading" in capsys.readouterr().err
        show("reading", 2, 2)
        # The line is blank again, and the cursor at its start.
        *_, blank, rest = capsys.readouterr().err.split("\r")
        assert (blank.strip(), rest) == ("", "")


def test_bars_of_finished_work_may_stay(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch)
    with bars(stay=True, unit=" files") as show:
        for done in (0, 3, 5):
            show("scoring", done, 5)
        show("gallery", 1, 1)
    lines = [line.split("\r")[-1] for line in capsys.readouterr().err.split("\n")]
    assert [line.split(":")[0] for line in lines if line] == ["scoring", "gallery"]
    assert "5/5" in lines[0] and " files/s" in lines[0]


def test_the_quiet_show_nothing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch)
    with bars(quiet=True) as show:
        show("scoring", 1, 2)
    assert capsys.readouterr().err == ""


def test_nothing_is_shown_where_nobody_watches(capsys: Capture) -> None:
    with bars() as show:
        show("scoring", 1, 2)
    assert capsys.readouterr().err == ""
