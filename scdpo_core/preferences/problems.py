"""Everything that is wrong with a folder, in words, however much it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..io.printable import printable
from ..types import Problem

ONE_BY_ONE = 50
"""Up to this many problems have a sentence each; of more, similar ones share one."""

_NAME = "NAME"


def in_words(problems: Sequence[Problem], folder: Path | None = None) -> str:
    """Return every problem by file name, one per line.

    Few of them follow one another by name, each with its sentence. Many are put together by what is wrong, so
    that three thousand images without a prompt are one sentence and their names; what there was of each
    kind is said once more at the end, where a terminal shows it.

    Args:
        problems: in the order to name them.
        folder: where they are, which their names then leave out.
    """
    if len(problems) <= ONE_BY_ONE:
        return "\n".join(f"  {_note(each)}{name_in(each.path, folder)}: {each.what}" for each in problems)
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for each in problems:
        kinds.setdefault((_note(each), _kind(each, folder)), []).append(each)
    lines, counts = [], []
    for (note, what), group in kinds.items():
        if len(group) == 1:
            lines.append(f"  {note}{name_in(group[0].path, folder)}: {group[0].what}")
        else:
            counts.append(f"  {note}{len(group)} files: {what}")
            lines += [counts[-1], *(f"    {name_in(each.path, folder)}" for each in group)]
    alone = sum(len(group) == 1 for group in kinds.values())
    others = [f"  {alone} of other kinds"] if alone else []
    return "\n".join([*lines, *(["In short:", *counts, *others] if counts else [])])


def name_in(path: Path, folder: Path | None) -> str:
    """Return how the artist would call a file of the folder."""
    inside = folder is not None and path != folder and path.is_relative_to(folder)
    return printable(path.relative_to(folder).as_posix() if folder is not None and inside else str(path))


def _note(problem: Problem) -> str:
    return "" if problem.fatal else "Note: "


def _kind(problem: Problem, folder: Path | None) -> str:
    """Return the sentence without the file's own name, which twins and prompts share with it."""
    path = Path(name_in(problem.path, folder)).with_suffix("")
    below = "/".join(path.parts[1:]) if folder is not None else ""
    what = problem.what
    for stem in filter(None, (below, path.name)):
        what = re.sub(rf"(?<![\w.-]){re.escape(stem)}(?=\.\w)", _NAME, what)
    return what
