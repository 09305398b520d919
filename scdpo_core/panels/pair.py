"""Two images to choose from, and how a preference folder stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..preferences.labelling_session import SessionView
from ..preferences.problems import in_words
from ..types import PreferencePair, Problem
from .elements import image, listed, notice, wrapped


def pair(view: SessionView) -> str:
    """The two images that are asked now, or that all is done."""
    done = (
        f'<p class="soft">{view.answered} of {view.total} compared, {view.kept} pairs kept.</p>'
        f'<progress max="{max(1, view.total)}" value="{view.answered}" aria-label="Pairs compared">'
        "</progress>"
    )
    if view.current is None:
        what = (
            "All pairs are compared. Check the folder below, then go on to Train."
            if view.total
            else "There are no two images of the same prompt in this folder. Choose one with at least two."
        )
        return wrapped(notice(what, "good" if view.total else "bad") + done, "pair")
    current = view.current
    sides = "".join(
        f"<figure><figcaption>{word} <kbd>{key}</kbd></figcaption>"
        f'<span class="shot">{image(path, alt, 640)}</span>'
        f'<div class="name" title="{escape(str(path), quote=True)}">{escape(path.name)}</div></figure>'
        for word, key, path, alt in (
            ("Left", "1", current.left, f"Left image, {current.left.name}"),
            ("Right", "2", current.right, f"Right image, {current.right.name}"),
        )
    )
    asked = (
        f'<p class="asked">Which one is better for: <q>{escape(current.prompt)}</q></p>'
        if current.prompt
        else notice("These images do not say their prompt: write it below, it is used until you change it.")
    )
    return wrapped(f'{asked}<div class="sides">{sides}</div>{done}', "pair")


def folder(place: Path, pairs: Sequence[PreferencePair], problems: Sequence[Problem]) -> str:
    """What a preference folder holds, and all that is wrong with it."""
    fatal = [problem for problem in problems if problem.fatal]
    kinds = Counter(one.category or "no category" for one in pairs)
    parts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    of = f" ({escape(parts)})" if parts else ""
    counted = f"<p><b>{len(pairs):,} good pairs</b>{of} in {escape(str(place))}</p>"
    if fatal:
        state = notice(f"{len(fatal)} things have to be mended before training:", "bad")
    elif pairs:
        state = notice("Nothing is wrong with this folder.", "good")
    else:
        state = ""
    odd = [problem for problem in problems if not problem.fatal]
    rest = f"<h4>Odd, but no hindrance</h4>{_lines(odd, place)}" if odd else ""
    return wrapped(f"{counted}{state}{_lines(fatal, place)}{rest}", "folder")


def _lines(problems: Sequence[Problem], place: Path) -> str:
    """All of them: nobody mends what is only counted."""
    lines = [line.strip().removeprefix("Note: ") for line in in_words(problems, place).splitlines()]
    return listed(lines, most=len(lines))
