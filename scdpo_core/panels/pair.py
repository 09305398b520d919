"""Two images to choose from, and the state of a preference folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..preferences.labelling_session import SessionView
from ..preferences.problems import in_words
from ..reports import html
from ..reports.images import thumbnail_of
from ..types import PreferencePair, Problem

_SIDE = 640


def pair(view: SessionView) -> str:
    """Show the two images to compare now, or that all are compared."""
    current = view.current
    sides = () if current is None else (("Left", "1", current.left), ("Right", "2", current.right))
    return html.render(
        "panel_pair.html",
        view=view,
        sides=[(side, key, path, thumbnail_of(path, _SIDE)) for side, key, path in sides],
    )


def folder(path: Path, pairs: Sequence[PreferencePair], problems: Sequence[Problem]) -> str:
    """Show what a preference folder holds, and everything that is wrong with it."""
    fatal = [problem for problem in problems if problem.fatal]
    notes = [problem for problem in problems if not problem.fatal]
    return html.render(
        "panel_folder.html",
        folder=str(path),
        pairs=len(pairs),
        categories=sorted(Counter(one.category or "no category" for one in pairs).items()),
        problems=len(fatal),
        fatal=_lines(fatal, path),
        notes=_lines(notes, path),
    )


def _lines(problems: Sequence[Problem], folder: Path) -> list[str]:
    """Return all problems, because a mere count does not help to fix them."""
    return [line.strip().removeprefix("Note: ") for line in in_words(problems, folder).splitlines()]
