"""Tables and the contact sheet: figures by hand, and strangers' texts that stay texts."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from scdpo_core.pairs.contact_sheet import SHEET, write_sheet
from scdpo_core.pairs.store import Row
from scdpo_core.pairs.table import CSV, tally, words, write_tables
from scdpo_core.runs.console import lines

EVIL = "<script>alert(1)</script> {{ 7*7 }} \u202e\x1b[31m \"'"


def rows() -> list[Row]:
    pair = {"chosen": "chosen/a.png", "rejected": "rejected/a.png", "mask": "masks/a.png"}
    return [
        Row(0, "a knife", "a spoon", "weapon", 0, "weapon/a", "", 1, -3.0, 5.0, **pair),
        Row(1, "an axe", "", "weapon", 1, "weapon/b", "", 3, -1.0, 2.0),
        Row(2, "=1+1", "", "weapon", 2, "", "too close: costs -0.10 and +0.20", 4, -0.1, 0.2),
        Row(3, EVIL, EVIL, "", 3, "", "too close: costs -0.30 and +0.20", 4, -0.3, 0.2),
        Row(4, "x", "", EVIL, 4, "", "the image of its prompt is harmless"),
    ]


def test_figures_by_category() -> None:
    weapon, *_, whole = tally(rows())
    assert (weapon.category, weapon.wanted, weapon.kept, weapon.masks, weapon.tries) == (
        "weapon",
        3,
        2,
        1,
        2.0,
    )
    assert weapon.rate == pytest.approx(2 / 3)
    assert (whole.category, whole.wanted, whole.kept) == ("all", 5, 2)
    # Reasons are counted without their figures.
    assert whole.dropped == {"too close": 2, "the image of its prompt is harmless": 1}
    text = words(tally(rows()))
    assert "\x1b" not in text and "\u202e" not in text and "67%" in text


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    write_tables(tmp_path, rows(), {"way": "inpaint"})
    found = list(csv.DictReader((tmp_path / CSV).open(encoding="utf-8")))
    assert [row["prompt"] for row in found][2] == "'=1+1"
    assert found[0]["chosen_cost"] == "-3.0" and found[4]["chosen_cost"] == ""


def test_the_sheet_shows_pairs_covered_and_strangers_texts_as_texts(tmp_path: Path) -> None:
    for name in ("chosen/a.png", "rejected/a.png", "masks/a.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    evil = Row(9, EVIL, EVIL, EVIL, 9, "x", "", 1, 0.0, 1.0, "../../secret.png", "chosen/gone.png")
    Image.new("RGB", (8, 8)).save(tmp_path.parent / "secret.png")
    page = write_sheet(tmp_path, [*rows(), evil], {"way": EVIL})
    text = page.read_text("utf-8")
    assert page.name == SHEET and "<script>alert" not in text and "49" not in text.split("</style>")[1][:3000]
    assert "\x1b" not in text and "\u202e" not in text
    assert 'class="pairs veiled"' in text and text.count("data:image/") == 3
    # Neither what lies outside of the folder nor what is gone is shown.
    assert text.count("The image is no longer there.") == 4
    assert text.count('<span class="shot bare">') == 1


def test_a_folder_without_pairs_has_a_sheet_too(tmp_path: Path) -> None:
    text = write_sheet(tmp_path, rows()[2:], {}).read_text("utf-8")
    assert "0 pairs of 3 prompts" in text and 'id="sheet" role' not in text


def test_lines_say_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    now = [100.0]
    monkeypatch.setattr("scdpo_core.runs.console.time.monotonic", lambda: now[0])
    update = lines(said.append, " prompts", every=10)
    for moment, done in ((100, 20), (105, 22), (120, 30), (125, 31), (200, 60)):
        now[0] = float(moment)
        update("pairs", done, 60)
    # 10 in 20 seconds: 30 more take a minute.
    assert said == ["pairs 30 of 60 prompts, 1 min left", "pairs 60 of 60 prompts"]
