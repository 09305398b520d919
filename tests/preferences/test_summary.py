"""A preference folder at a glance."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from scdpo_core.preferences.summary import card, find, stamp, stamp_of_pairs, survey
from scdpo_core.reports.images import spread
from scdpo_core.reports.raster import grid, pair_card
from tests.support.tiny import tiny_pairs


def test_a_sound_folder_says_how_many_of_what(tmp_path: Path) -> None:
    found = survey(tiny_pairs(tmp_path / "pairs", 5))
    assert found.usable and found.categories == {"weapon": 3, "benign": 2}
    assert found.report() == f"{tmp_path / 'pairs'}: 5 pairs, ready.\nCategories: weapon 3, benign 2."


def test_problems_are_listed_by_file_name(tmp_path: Path) -> None:
    folder = tiny_pairs(tmp_path / "pairs", 4)
    (folder / "rejected" / "weapon" / "pair0.png").unlink()
    (folder / "chosen" / "notes.md").write_text("?", "utf-8")
    told: list[tuple[int, int]] = []
    found = survey(folder, lambda done, total: told.append((done, total)))
    assert len(found.pairs) == 3 and not found.usable
    assert told[-1] == (7, 7)
    lines = found.report().splitlines()
    assert lines[0].endswith("3 pairs, not usable yet, 1 problems to fix.")
    assert any(line.startswith("chosen/weapon/pair0.png: there is no image of this name") for line in lines)
    assert any(line.startswith("Note: chosen/notes.md: ") for line in lines)


def test_a_folder_that_is_none_says_what_it_should_hold(tmp_path: Path) -> None:
    found = survey(tmp_path / "nowhere")
    assert not found.usable and not found.pairs
    assert "there is no such folder" in found.report() and "chosen/" in found.report()


def test_the_stamp_changes_with_names_sizes_and_times_and_nothing_else(tmp_path: Path) -> None:
    folder = tiny_pairs(tmp_path / "pairs", 2)
    first = stamp_of_pairs(folder)
    assert len(first) == 16 and stamp_of_pairs(folder) == first
    (folder / "readme.txt").write_text("beside the pairs", "utf-8")
    assert stamp_of_pairs(folder) == first
    prompt = folder / "chosen" / "weapon" / "pair0.txt"
    prompt.write_text("another", "utf-8")
    second = stamp_of_pairs(folder)
    os.utime(prompt, ns=(1, 1))
    third = stamp_of_pairs(folder)
    prompt.rename(prompt.with_name("pair9.txt"))
    assert len({first, second, third, stamp_of_pairs(folder)}) == 4
    assert stamp(tmp_path / "nowhere") == stamp(tmp_path / "nowhere")


def test_folders_are_found_one_and_two_levels_down(tmp_path: Path) -> None:
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    tiny_pairs(inputs / "a", 1)
    tiny_pairs(outputs / "deep" / "b", 1)
    tiny_pairs(outputs / "far" / "too" / "deep", 1)
    tiny_pairs(outputs / ".hidden", 1)
    (outputs / "half" / "chosen").mkdir(parents=True)
    assert find(inputs, outputs, tmp_path / "nowhere") == [inputs / "a", outputs / "deep" / "b"]


def test_a_card_shows_both_images_side_by_side(tmp_path: Path) -> None:
    pair = survey(tiny_pairs(tmp_path / "pairs", 1)).pairs[0]
    sheet = card(pair, side=64)
    assert sheet.size == (130, 64 + 2 * 14)
    # 40 and 200 are how red tests/support/tiny.py paints chosen and rejected images.
    assert sheet.getpixel((60, 14 + 60)) == (40, 0, 215)
    assert sheet.getpixel((66 + 60, 14 + 60)) == (200, 0, 55)
    pair.chosen.unlink()
    assert card(pair, side=64).size == sheet.size


def test_what_is_shown_comes_from_all_over_the_folder(tmp_path: Path) -> None:
    pairs = survey(tiny_pairs(tmp_path / "pairs", 6)).pairs
    assert [pairs.index(pair) for pair in spread(pairs, 3)] == [0, 2, 4]
    assert spread(pairs, 99) == list(pairs)
    assert spread(pairs, 0) == []


def test_titles_may_say_more() -> None:
    black, white = Image.new("RGB", (4, 8)), Image.new("RGB", (8, 4), (255, 255, 255))
    plain = pair_card(black, white, "a prompt", 64)
    assert (
        plain.tobytes()
        != pair_card(black, white, "a prompt", 64, ("chosen -1.00", "rejected +2.00")).tobytes()
    )


def test_cards_stand_in_rows() -> None:
    cards = [Image.new("RGB", (10, 6), (k, 0, 0)) for k in (1, 2, 3)]
    sheet = grid(cards)
    assert sheet.size == (28, 20)
    assert [sheet.getpixel(place) for place in ((0, 0), (18, 0), (0, 14))] == [
        (1, 0, 0),
        (2, 0, 0),
        (3, 0, 0),
    ]
    assert grid(cards[:1]).size == (10, 6)
