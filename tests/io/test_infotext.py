"""Prompt files of a preference folder, under every name and as every program writes them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, PngImagePlugin

from scdpo_core.preferences.folder import category_of, check_folder, read_folder
from scdpo_core.preferences.listing import some_prompts
from scdpo_core.types import Problem


def pair_in(root: Path, stem: str, prompt: str = "a cat") -> None:
    for half, colour in (("chosen", "green"), ("rejected", "red")):
        (root / half).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(root / half / f"{stem}.png")
    (root / "chosen" / f"{stem}.txt").write_text(prompt, encoding="utf-8")


INFOTEXT = "a cat, <lora:x:1>, (red:1.2) hat\nNegative prompt: bad\nSteps: 20, Sampler: Euler, Seed: {}"


def test_prompts_as_webuis_write_them_are_read_as_words(tmp_path: Path) -> None:
    for stem in ("one", "two"):
        pair_in(tmp_path, stem, prompt=INFOTEXT.format(1))
    # The settings of the other side have another seed.
    (tmp_path / "rejected" / "one.txt").write_text(INFOTEXT.format(2), encoding="utf-8")
    notices: list[Problem] = []
    pairs = check_folder(tmp_path, notice=notices.append)
    assert [each.prompt for each in pairs] == ["a cat, red hat"] * 2
    (notice,) = notices
    assert "'a cat, red hat'" in notice.what and "2 other prompts" in notice.what
    assert some_prompts(tmp_path, 5) == ["a cat, red hat"]


def test_captions_and_doubled_endings_are_prompts(tmp_path: Path) -> None:
    for stem in ("one", "two", "three"):
        pair_in(tmp_path, stem)
    chosen = tmp_path / "chosen"
    (chosen / "one.txt").rename(chosen / "one.png.txt")
    (chosen / "two.txt").rename(chosen / "two.caption")
    (chosen / "three.caption").write_text("a cat that lies on a mat", encoding="utf-8")
    notices: list[Problem] = []
    pairs = check_folder(tmp_path, notice=notices.append)
    assert {each.prompt for each in pairs} == {"a cat"}
    assert [notice.path.name for notice in notices] == ["three.caption"]
    assert "ignored" in notices[0].what


def test_an_image_without_an_ending_is_found_and_a_foreign_one_is_named(tmp_path: Path) -> None:
    pair_in(tmp_path, "one")
    pair_in(tmp_path, "two")
    for half in ("chosen", "rejected"):
        (tmp_path / half / "one.png").rename(tmp_path / half / "one")
        (tmp_path / half / "two.png").unlink()
        (tmp_path / half / "two.jxl").write_bytes(b"\xff\x0a" + bytes(30))
    (tmp_path / "chosen" / "notes").write_text("no image")
    pairs, problems = read_folder(tmp_path)
    assert [each.id for each in pairs] == ["one"]
    told = {problem.path.name: problem.what for problem in problems}
    assert "not a kind of image" in told["two.jxl"] and "neither an image" in told["notes"]


def in_metadata(root: Path, stem: str, metadata: str) -> None:
    for side, colour in (("chosen", "green"), ("rejected", "red")):
        path = root / side / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", metadata)
        Image.new("RGB", (16, 16), colour).save(path, pnginfo=info)


def test_prompts_in_the_images_own_metadata_and_kohyas_numbers_are_said_once(tmp_path: Path) -> None:
    for stem in ("10_weapon/a", "benign/c"):
        in_metadata(tmp_path, stem, "a calm cat\nNegative prompt: blur\nSteps: 20, Seed: 1")
    notes: list[Problem] = []
    pairs = check_folder(tmp_path, notice=notes.append)
    assert [(pair.category, pair.prompt) for pair in pairs] == [
        ("weapon", "a calm cat"),
        ("benign", "a calm cat"),
    ]
    said = "\n".join(note.what for note in notes)
    assert len(notes) == 2
    assert "10_weapon, are repeats to kohya's trainer" in said
    assert "2 pairs have no .txt file: the prompts in their images' metadata are used." in said


def test_categories() -> None:
    stems = ("a", "weapon/a", "10_weapon/a", "3_x/y/a", "10_/a", "1980s/a", "5_Benign/a")
    assert [category_of(stem) for stem in stems] == ["", "weapon", "weapon", "x", "10_", "1980s", "benign"]


def test_names_and_prompts_can_be_checked_without_decoding(tmp_path: Path) -> None:
    pair_in(tmp_path, "a")
    (tmp_path / "rejected" / "a.png").write_bytes(b"no image")
    pairs, problems = read_folder(tmp_path, decode=False)
    assert ([pair.prompt for pair in pairs], problems) == (["a cat"], [])
    _, problems = read_folder(tmp_path)
    assert [problem.fatal for problem in problems] == [True]
