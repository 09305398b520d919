"""Labelling that is killed, and state that somebody changed: no half pair, nothing else touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from scdpo_core.io import files
from scdpo_core.preferences.folder import check_folder
from scdpo_core.preferences.labelling_session import STATE, Session, import_pairs
from scdpo_core.types import ScdpoError
from tests.preferences.test_labelling_session import folder_of, image


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Whether a process that is killed before its nth change of a folder came that far."""
    child = os.fork()
    if child == 0:
        left = [number]
        for name in ("replace", "unlink"):
            real = getattr(os, name)

            def change(*arguments: object, real: Callable[..., object] = real, **more: object) -> object:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return real(*arguments, **more)

            setattr(os, name, change)
        work()
        os._exit(0)
    # What comes now is the next process, which has looked for leftovers nowhere yet.
    files._SWEPT.clear()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != STATE]


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_a_kill_at_any_moment_of_an_answer_leaves_no_half_pair(tmp_path: Path) -> None:
    source, moments = folder_of(tmp_path / "out", 2), 0
    while True:
        target = tmp_path / f"pairs{moments}"
        session = Session(source, target)
        current = session.view().current
        assert current is not None
        if not killed_at(moments, partial(session.answer, current.id, "left", category="benign")):
            break
        again = Session(source, target)
        if again.view().current is None:
            # It was written as a whole, so it counts and can be taken back.
            assert again.view().can_undo and len(check_folder(target)) == 1
            assert again.undo().current == current
        assert again.view().current == current and files_in(target) == []
        # Another answer than before leaves nothing of the first one.
        again.answer(current.id, "right")
        assert [pair.category for pair in check_folder(target)] == [""] and len(files_in(target)) == 3
        moments += 1
    assert moments >= 5


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_a_kill_at_any_moment_of_an_undo_leaves_no_half_pair(tmp_path: Path) -> None:
    source, moments = folder_of(tmp_path / "out", 2), 0
    while True:
        target = tmp_path / f"pairs{moments}"
        session = Session(source, target)
        current = session.view().current
        assert current is not None
        session.answer(current.id, "left")
        if not killed_at(moments, session.undo):
            break
        again = Session(source, target)
        assert len(files_in(target)) == (0 if again.view().current else 3)
        assert again.undo().current == current and files_in(target) == []
        moments += 1
    assert moments >= 5


@pytest.mark.parametrize(
    "name", ["../precious", "{absolute}", "chosen/../../precious", "labelling.json", "x/a.png"]
)
def test_undo_touches_nothing_but_pairs(tmp_path: Path, name: str) -> None:
    source, target, precious = folder_of(tmp_path / "out", 2), tmp_path / "pairs", tmp_path / "precious"
    for path in (precious, target / "x" / "a.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    answer = {"id": "a", "choice": "left", "files": [name.format(absolute=precious)]}
    for state in ({"answers": [answer]}, {"answers": [], "half": answer}):
        (target / STATE).write_text(json.dumps(state), "utf-8")
        with pytest.raises(ScdpoError, match="no labelling session wrote"):
            Session(source, target)
    assert precious.exists() and (target / "x" / "a.png").exists() and (target / STATE).exists()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_undo_follows_no_link_out_of_the_folder(tmp_path: Path) -> None:
    source, target = folder_of(tmp_path / "out", 2), tmp_path / "pairs"
    session = Session(source, target)
    current = session.view().current
    assert current is not None
    session.answer(current.id, "left", category="benign")
    (target / "chosen" / "benign").rename(tmp_path / "elsewhere")
    (target / "chosen" / "benign").symlink_to(tmp_path / "elsewhere")
    kept = sorted((tmp_path / "elsewhere").iterdir())
    with pytest.raises(ScdpoError, match="no labelling session wrote"):
        Session(source, target)
    session.undo()
    assert len(kept) == 2 and sorted((tmp_path / "elsewhere").iterdir()) == kept


@pytest.mark.parametrize("state", ["[]", "{}", '{"answers": [1]}', '{"answers": [{"id": 1}]}', "[" * 100_000])
def test_a_session_of_other_values_is_damaged(tmp_path: Path, state: str) -> None:
    source = folder_of(tmp_path / "out", 2)
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / STATE).write_text(state, "utf-8")
    with pytest.raises(ScdpoError, match="is damaged"):
        Session(source, tmp_path / "pairs")


def test_the_same_pair_is_stored_once_and_belongs_to_who_made_it(tmp_path: Path) -> None:
    source, target = folder_of(tmp_path / "out", 2), tmp_path / "pairs"
    session = Session(source, target)
    current = session.view().current
    assert current is not None
    for _ in range(2):
        assert import_pairs(target, [current.left], [current.right], "a cat") == 1
    assert len(check_folder(target)) == 1
    session.answer(current.id, "left")
    assert len(check_folder(target)) == 1
    session.undo()
    assert len(check_folder(target)) == 1


@pytest.mark.skipif(os.name == "nt", reason="names of bytes")
def test_names_that_are_no_text_can_be_labelled(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for number in range(2):
        image(folder / f"{number}.png", number, parameters="a cat")
        os.rename(folder / f"{number}.png", os.fsencode(folder) + b"/\xff%d.png" % number)
    session = Session(folder, tmp_path / "pairs")
    current = session.view().current
    assert current is not None
    session.answer(current.id, "left")
    assert Session(folder, tmp_path / "pairs").view().current is None
    assert len(check_folder(tmp_path / "pairs")) == 1


def test_benign_is_one_category_however_it_is_written(tmp_path: Path) -> None:
    session = Session(folder_of(tmp_path / "out", 2), tmp_path / "pairs")
    current = session.view().current
    assert current is not None
    session.answer(current.id, "left", category="Benign")
    assert [pair.category for pair in check_folder(tmp_path / "pairs")] == ["benign"]
