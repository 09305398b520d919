"""Prompts of anybody's making: odd headers, hostile texts, folders of images, seeds and categories."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from scdpo_core.pairs.requests import benign, harmful, read_all
from scdpo_core.pairs.rules import NO_RULES, Replacement, SafeWords
from scdpo_core.types import Problem, ScdpoError

WORDS = SafeWords({"knife": Replacement("spoon", "weapon")})


def read(*paths: Path, column: str | None = None) -> tuple[list[tuple[str, str]], list[str]]:
    notes: list[Problem] = []
    rows = read_all(paths, column, notes.append)
    return [(row.prompt, row.safe_prompt) for row in rows], [note.what for note in notes]


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("i2p.csv", ",prompt,categories,sd_seed\n0,a knife,violence,3\n", [("a knife", "")]),
        (
            "copro.csv",
            "unsafe_prompt;safe_prompt;category\na knife;a spoon;Violence\n",
            [("a knife", "a spoon")],
        ),
        ("rab.tsv", "Sensitive prompt\tSafe Prompt\r\na knife\ta spoon\r\n", [("a knife", "a spoon")]),
        ("mma.csv", "\ufeff adv_prompt ,prompt\nkn!fe,a knife\n", [("kn!fe", "")]),
        ("own.csv", "text,note\na knife,x\n", None),
        (
            "list.txt",
            "a (knife:1.3), <lora:x:1> red\n\n  \na cat\na cat\n",
            [("a knife, red", ""), ("a cat", "")],
        ),
        ("odd.txt", "\x1b[31ma knife\u202e\x00\n((()))\n", [("[31ma knife".replace("[", ""), "")]),
    ],
)
def test_files_are_read_as_they_are(
    tmp_path: Path, name: str, text: str, rows: list[tuple[str, str]] | None
) -> None:
    file = write(tmp_path, name, text)
    if rows is None:
        with pytest.raises(ScdpoError, match="no column"):
            read(file)
        assert read(file, column="Text")[0] == [("a knife", "")]
    else:
        assert read(file)[0] == rows


def test_lines_without_words_are_counted(tmp_path: Path) -> None:
    found, notes = read(write(tmp_path, "a.txt", "a cat\n((()))\n<lora:x:1>\n"))
    assert found == [("a cat", "")] and notes == ["2 of its 3 prompts hold no words and are left out."]


def test_images_give_their_prompts(tmp_path: Path) -> None:
    for number, text in enumerate(["a knife\nSteps: 20, Seed: 3", "a cat\nSteps: 20", "a knife", ""]):
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", text)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png", pnginfo=info)
    found, notes = read(tmp_path)
    assert found == [("a knife", ""), ("a cat", "")]
    assert notes == ["1 of 4 images carry no prompt."]


def test_images_without_prompts_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ScdpoError, match=r"No image in .* carries its prompt"):
        read(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScdpoError, match=r"none\.csv cannot be read"):
        read(tmp_path / "none.csv")


def test_each_prompt_gets_a_safe_one_a_category_and_a_seed(tmp_path: Path) -> None:
    table = (
        "prompt,safe_prompt,category,seed\n"
        "a knife,a fork,,\n"
        "a knife here,,,7\n"
        "a knife there,,../../etc,18446744073709551615\n"
        "a sword,a sword,benign,\n"
    )
    rows = read_all([write(tmp_path, "t.csv", table)], None, lambda note: None)
    found = harmful(rows, WORDS, "other", 2, seed=100)
    assert [(one.number, one.safe_prompt, one.category, one.seed) for one in found] == [
        (0, "a fork", "weapon", 100),
        (1, "a fork", "weapon", 101),
        (2, "a spoon here", "weapon", 7),
        (3, "a spoon here", "weapon", 8),
        # No folder outside: '/' becomes '-', and what begins with a dot is none.
        (4, "a spoon there", "weapon", 18446744073709551615),
        (5, "a spoon there", "weapon", 0),
        # A harmful list cannot say that it is harmless, and a safe prompt of the same words is none.
        (6, "", "other", 106),
        (7, "", "other", 107),
    ]
    assert [one.category for one in harmful(rows, NO_RULES, "", 1, 0)] == ["", "", "", ""]


def test_benign_prompts_count_on(tmp_path: Path) -> None:
    rows = read_all([write(tmp_path, "b.txt", "a cat\na dog\n")], None, lambda note: None)
    assert [(one.number, one.prompt, one.seed, one.is_benign) for one in benign(rows, 5, 10)] == [
        (5, "a cat", 15, True),
        (6, "a dog", 16, True),
    ]
