"""Pairs of several folders: their names, how often they come, what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from scdpo_core.preferences.several_folders import PairFolder, check_folders, pair_folders
from scdpo_core.types import PreferencePair, ScdpoError
from tests.support.tiny import tiny_pairs


def read(*folders: PairFolder) -> list[PreferencePair]:
    return check_folders(folders, notice=lambda _: None, progress=lambda *_: None, decode=True, known=None)


def test_a_folder_is_given_with_or_without_a_number(tmp_path: Path) -> None:
    odd = tmp_path / "cats:3"
    odd.mkdir()
    given = {
        "dogs": PairFolder(Path("dogs")),
        "dogs:4": PairFolder(Path("dogs"), 4),
        r"C:\dogs": PairFolder(Path(r"C:\dogs")),
        r"C:\dogs:12": PairFolder(Path(r"C:\dogs"), 12),
        # It is there under that very name.
        str(odd): PairFolder(odd),
        f"{odd}:2": PairFolder(odd, 2),
    }
    assert {text: PairFolder.parse(text) for text in given} == given
    assert pair_folders(Path("a"), ["b:2"]) == [PairFolder(Path("a")), PairFolder(Path("b"), 2)]
    assert pair_folders(None, []) == []
    for wrong in ("dogs:0", "dogs:1001"):
        with pytest.raises(ScdpoError, match=f"--more-pairs {wrong}: give from 1 to 1000 repeats"):
            PairFolder.parse(wrong)


def test_pairs_of_several_folders_keep_names_of_their_own(tmp_path: Path) -> None:
    one, two = tiny_pairs(tmp_path / "one" / "pairs", 2), tiny_pairs(tmp_path / "two" / "pairs", 2)
    three = tiny_pairs(tmp_path / "three" / "pairs", 2)
    found = read(PairFolder(one), PairFolder(two, 3), PairFolder(three))
    assert {pair.id: pair.repeats for pair in found} == {
        "weapon/pair0": 1,
        "benign/pair1": 1,
        "pairs/weapon/pair0": 3,
        "pairs/benign/pair1": 3,
        "pairs-2/weapon/pair0": 1,
        "pairs-2/benign/pair1": 1,
    }
    assert Counter(pair.category for pair in found) == {"weapon": 3, "benign": 3}
    assert read(PairFolder(one)) == found[:2]


def test_everything_that_is_wrong_in_any_folder_is_said_at_once(tmp_path: Path) -> None:
    good = tiny_pairs(tmp_path / "good", 2)
    for name in ("one", "two"):
        folder = tiny_pairs(tmp_path / name, 2)
        (folder / "rejected" / "weapon" / "pair0.png").unlink()
    with pytest.raises(ScdpoError) as refused:
        read(PairFolder(good), PairFolder(tmp_path / "one"), PairFolder(tmp_path / "two"))
    assert all(f"The preference folder {tmp_path / name}" in str(refused.value) for name in ("one", "two"))
