from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scdpo_core.cost.features import change, compute_features
from scdpo_core.cost.training_images import (
    check,
    list_categories,
    list_folders,
    list_pairs,
    training_set_hash,
)
from scdpo_core.types import Problem, ScdpoError
from tests.support.cost_helpers import ColourEncoder, colour_folder

RED, GREEN = (200, 40, 40), (40, 200, 40)


def test_folders_name_classes_and_categories(tmp_path: Path) -> None:
    colour_folder(tmp_path / "bad" / "weapon" / "deep", RED, 2, 0)
    colour_folder(tmp_path / "bad", RED, 1, 1)
    colour_folder(tmp_path / "good", GREEN, 3, 2)
    (tmp_path / "good" / "notes.txt").write_text("no image", encoding="utf-8")
    (tmp_path / "good" / "._p000.png").write_bytes(b"left by macOS")
    found = list_folders(tmp_path / "bad", tmp_path / "good")
    assert [(e.unsafe, e.categories) for e in found] == [
        (True, ()),
        (True, ("weapon",)),
        (True, ("weapon",)),
        *[(False, ())] * 3,
    ]


@pytest.mark.parametrize("harmless", ["safe", "benign"])
def test_one_folder_for_each_category(tmp_path: Path, harmless: str) -> None:
    colour_folder(tmp_path / "weapon" / "knives", RED, 1, 0)
    colour_folder(tmp_path / "drug", RED, 1, 1)
    colour_folder(tmp_path / "unsafe" / "death", RED, 1, 2)
    colour_folder(tmp_path / "unsafe", RED, 1, 3)
    colour_folder(tmp_path / harmless / "weapon", GREEN, 1, 4)
    found = {
        (*e.path.relative_to(tmp_path).parts[:-1],): (e.unsafe, e.categories)
        for e in list_categories(tmp_path)
    }
    assert found == {
        ("weapon", "knives"): (True, ("weapon",)),
        ("drug",): (True, ("drug",)),
        ("unsafe", "death"): (True, ("death",)),
        ("unsafe",): (True, ()),
        (harmless, "weapon"): (False, ()),
    }


def test_categories_need_both_sides_and_no_loose_images(tmp_path: Path) -> None:
    colour_folder(tmp_path / "weapon", RED, 1, 0)
    with pytest.raises(ScdpoError, match=r"no harmless images.*'safe'"):
        list_categories(tmp_path)
    colour_folder(tmp_path / "safe", GREEN, 1, 1)
    assert len(list_categories(tmp_path)) == 2
    colour_folder(tmp_path, GREEN, 2, 2)
    with pytest.raises(ScdpoError, match=r"p000\.png and 1 more .* are in no category folder"):
        list_categories(tmp_path)
    shutil.rmtree(tmp_path / "weapon")
    for loose in tmp_path.glob("*.png"):
        loose.unlink()
    with pytest.raises(ScdpoError, match="only harmless"):
        list_categories(tmp_path)


def test_pairs_name_twins_and_benign_pairs_are_safe_twice(tmp_path: Path) -> None:
    for side in ("chosen", "rejected"):
        colour_folder(tmp_path / side / "weapon", RED, 1, 0)
        colour_folder(tmp_path / side / "benign", GREEN, 1, 1)
    found = {(e.path.parts[-3], e.pair): (e.unsafe, e.categories) for e in list_pairs(tmp_path)}
    assert found == {
        ("chosen", "weapon/p000"): (False, ()),
        ("chosen", "benign/p000"): (False, ()),
        ("rejected", "weapon/p000"): (True, ("weapon",)),
        ("rejected", "benign/p000"): (False, ()),
    }


def test_reserved_names_count_in_whatever_capitals(tmp_path: Path) -> None:
    for side in ("chosen", "rejected"):
        colour_folder(tmp_path / "pairs" / side / "Benign", GREEN, 2, 1)
        colour_folder(tmp_path / "pairs" / side / "Weapon", RED, 1, 0)
    notes: list[Problem] = []
    found = list_pairs(tmp_path / "pairs", notes.append)
    assert {e.categories for e in found if e.unsafe} == {("Weapon",)} and len(found) == 6
    assert [note.path.relative_to(tmp_path).as_posix() for note in notes] == [
        "pairs/chosen/Benign",
        "pairs/rejected/Benign",
    ]
    for name, colour in (("Safe", GREEN), ("UnSafe/death", RED), ("BENIGN", GREEN), ("drug", RED)):
        colour_folder(tmp_path / "all" / name, colour, 1, len(name))
    notes.clear()
    found = list_categories(tmp_path / "all", notes.append)
    assert sorted((e.unsafe, e.categories) for e in found) == [
        (False, ()),
        (False, ()),
        (True, ("death",)),
        (True, ("drug",)),
    ]
    assert {note.path.name for note in notes} == {"Safe", "UnSafe", "BENIGN"}


def test_kohyas_repeats_are_no_part_of_a_category(tmp_path: Path) -> None:
    for side, colour in (("chosen", GREEN), ("rejected", RED)):
        colour_folder(tmp_path / "pairs" / side / "5_Benign", GREEN, 2, 1)
        colour_folder(tmp_path / "pairs" / side / "10_weapon", colour, 2, 2)
    notes: list[Problem] = []
    found = list_pairs(tmp_path / "pairs", notes.append)
    # Two of the four rejected images: the benign ones are harmless on both sides.
    assert [(e.unsafe, e.categories) for e in found if e.unsafe] == [(True, ("weapon",))] * 2
    assert len(found) == 8
    assert "10_weapon, 5_Benign, are repeats to kohya's trainer" in " ".join(note.what for note in notes)
    for name, colour in (("1_safe", GREEN), ("2_unsafe/3_death", RED), ("10_drug", RED)):
        colour_folder(tmp_path / "kinds" / name, colour, 1, 3)
    by_kind = list_categories(tmp_path / "kinds")
    assert {(e.unsafe, e.categories) for e in by_kind} == {
        (False, ()),
        (True, ("death",)),
        (True, ("drug",)),
    }
    by_side = list_folders(tmp_path / "kinds" / "2_unsafe", tmp_path / "kinds" / "1_safe")
    assert [e.categories for e in by_side] == [("death",), ()]


def test_folders_of_systems_are_passed_over_with_a_note(tmp_path: Path) -> None:
    colour_folder(tmp_path / "bad" / "weapon" / "@eaDir", RED, 1, 0)
    colour_folder(tmp_path / "bad" / "weapon", RED, 1, 1)
    colour_folder(tmp_path / "good" / ".thumbnails", GREEN, 1, 2)
    colour_folder(tmp_path / "good", GREEN, 1, 3)
    notes: list[Problem] = []
    assert len(list_folders(tmp_path / "bad", tmp_path / "good", notes.append)) == 2
    assert [note.path.name for note in notes] == ["@eaDir", ".thumbnails"]


@pytest.mark.parametrize("make", [False, True])
def test_a_missing_or_empty_folder_is_named(tmp_path: Path, make: bool) -> None:
    colour_folder(tmp_path / "bad", RED, 1, 0)
    if make:
        (tmp_path / "good").mkdir()
    with pytest.raises(ScdpoError, match=r"good.*(has no images|Create it)"):
        list_folders(tmp_path / "bad", tmp_path / "good")


def test_a_folder_that_cannot_be_read_is_named_and_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colour_folder(tmp_path / "bad" / "weapon", RED, 1, 0)
    colour_folder(tmp_path / "bad" / "drug", RED, 1, 1)
    colour_folder(tmp_path / "good", RED, 1, 2)
    usual = os.scandir

    def locked(folder: Path) -> Any:
        if Path(folder).name == "weapon":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return usual(folder)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(ScdpoError, match=r"weapon.*cannot be read \(Permission denied\)"):
        list_folders(tmp_path / "bad", tmp_path / "good")


def test_all_problems_are_found_at_once(tmp_path: Path) -> None:
    colour_folder(tmp_path / "bad", RED, 3, 0)
    colour_folder(tmp_path / "good", GREEN, 3, 1)
    (tmp_path / "bad" / "p001.png").write_bytes(b"")
    cut = tmp_path / "good" / "p002.png"
    cut.write_bytes(cut.read_bytes()[:50])
    shutil.copy(tmp_path / "bad" / "p000.png", tmp_path / "good" / "same.png")
    seen: list[tuple[int, int]] = []
    found = check(list_folders(tmp_path / "bad", tmp_path / "good"), lambda d, t: seen.append((d, t)))
    assert [problem.path.name for problem in found.problems] == ["p001.png", "p002.png", "same.png"]
    assert "other label" in found.problems[2].what
    assert len(found.examples) == 4  # p000 and p002 of one, p000 and p001 of the other
    assert seen[-1] == (7, 7)


def test_copies_count_once_and_unite_their_categories(tmp_path: Path) -> None:
    colour_folder(tmp_path / "bad" / "weapon", RED, 1, 0)
    shutil.copytree(tmp_path / "bad" / "weapon", tmp_path / "bad" / "drug")
    colour_folder(tmp_path / "good", GREEN, 1, 1)
    found = check(list_folders(tmp_path / "bad", tmp_path / "good"))
    assert [e.categories for e in found.examples] == [("drug", "weapon"), ()]
    assert found.merged == 1


def test_the_training_set_hash_knows_labels_but_not_names(tmp_path: Path) -> None:
    colour_folder(tmp_path / "a", RED, 2, 0)
    colour_folder(tmp_path / "b", GREEN, 2, 1)
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    (tmp_path / "c" / "p000.png").rename(tmp_path / "c" / "z.png")

    def of(unsafe: str, safe: str) -> str:
        return training_set_hash(check(list_folders(tmp_path / unsafe, tmp_path / safe)).examples)

    assert of("a", "b") == of("c", "b") != of("b", "a")


def test_features(tmp_path: Path) -> None:
    colour_folder(tmp_path / "rejected" / "weapon", RED, 3, 0)
    colour_folder(tmp_path / "chosen" / "weapon", GREEN, 3, 1)
    colour_folder(tmp_path / "rejected" / "benign", GREEN, 1, 2)
    colour_folder(tmp_path / "chosen" / "benign", GREEN, 1, 3)
    found = check(list_pairs(tmp_path)).examples
    encoder = ColourEncoder()
    data = compute_features(found, encoder, views=3)
    assert data.embeddings.shape == (8, 3, encoder.dim)
    assert data.unsafe.sum() == 3 and data.categories == ("weapon",)
    assert torch.equal(data.labels[:, 0] == 1, data.unsafe)
    by_digest = sorted(found, key=lambda e: e.digest)
    for number, example in enumerate(by_digest):
        torch.testing.assert_close(data.embeddings[number, 0], encoder.encode([Image.open(example.path)])[0])
        if example.unsafe:
            assert by_digest[int(data.twins[number])].pair == example.pair
    again = compute_features(list(reversed(found)), encoder, views=3)
    assert torch.equal(again.embeddings, data.embeddings)


def test_images_without_a_category_are_unknown_not_zero(tmp_path: Path) -> None:
    colour_folder(tmp_path / "bad", RED, 1, 0)
    colour_folder(tmp_path / "bad" / "drug", RED, 1, 1)
    colour_folder(tmp_path / "good", GREEN, 1, 2)
    data = compute_features(
        check(list_folders(tmp_path / "bad", tmp_path / "good")).examples, ColourEncoder(), views=1
    )
    assert sorted(str(value) for value in data.labels.flatten().tolist()) == ["0.0", "1.0", "nan"]


def test_a_changed_view_keeps_size_and_depends_on_the_seed_alone() -> None:
    image = Image.linear_gradient("L").convert("RGB").resize((60, 40))
    one, same = change(image, random.Random(1)), change(image, random.Random(1))
    assert one.size == (60, 40) and one.mode == "RGB"
    assert one.tobytes() == same.tobytes() != change(image, random.Random(2)).tobytes()
