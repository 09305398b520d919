"""Preference folders: what is read, and that everything wrong is told at once and by name."""

from __future__ import annotations

import errno
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scdpo_core.io.image_types import formats
from scdpo_core.preferences.folder import FolderError, check_folder, read_folder
from scdpo_core.preferences.problems import in_words
from scdpo_core.types import PreferencePair, Problem, ScdpoError


def _image(path: Path, seed: int, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def _pair(root: Path, stem: str, prompt: str | None = "a cat") -> None:
    _image(root / "chosen" / f"{stem}.png", seed=1)
    _image(root / "rejected" / f"{stem}.png", seed=2)
    if prompt is not None:
        (root / "chosen" / f"{stem}.txt").write_text(prompt, encoding="utf-8")


def _told(root: Path, fatal: bool = True) -> dict[str, str]:
    """What is said of each file, by its name below the folder."""
    said: dict[str, str] = {}
    for problem in read_folder(root)[1]:
        if problem.fatal == fatal:
            name = problem.path.relative_to(root).as_posix()
            said[name] = f"{said[name]} {problem.what}" if name in said else problem.what
    return said


@pytest.mark.parametrize("ending", ["gif", "webp", "tif"])
def test_of_an_animation_it_is_said_that_one_image_is_used(tmp_path: Path, ending: str) -> None:
    _pair(tmp_path, "cat")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    (tmp_path / "chosen" / "cat.png").unlink()
    frames[0].save(tmp_path / "chosen" / f"cat.{ending}", save_all=True, append_images=frames[1:])
    assert _told(tmp_path, fatal=False) == {
        f"chosen/cat.{ending}": "this file has 3 frames; the first one is used."
    }
    assert len(check_folder(tmp_path)) == 1


def test_a_good_folder_is_read(tmp_path: Path) -> None:
    _pair(tmp_path, "cat", prompt=None)
    (tmp_path / "rejected" / "cat.txt").write_text("\ufeffa  black\ncat ", encoding="utf-8")
    _pair(tmp_path, "weapon/deep/knife.v2", prompt="a knife")
    _image(tmp_path / "chosen" / "dog.png", seed=3)
    _image(tmp_path / "rejected" / "dog.BMP", seed=4)
    for half in ("chosen", "rejected"):
        (tmp_path / half / "dog.txt").write_text("a dog" + " " * (half == "chosen"), encoding="utf-8")
    pairs, problems = read_folder(tmp_path)
    assert problems == []
    good, bad = tmp_path / "chosen", tmp_path / "rejected"
    deep = "weapon/deep/knife.v2"
    assert pairs == [
        PreferencePair("cat", "a black cat", good / "cat.png", bad / "cat.png", ""),
        PreferencePair("dog", "a dog", good / "dog.png", bad / "dog.BMP", ""),
        PreferencePair(deep, "a knife", good / f"{deep}.png", bad / f"{deep}.png", "weapon"),
    ]
    assert check_folder(tmp_path) == pairs


def test_hidden_files_and_their_like_are_ignored(tmp_path: Path) -> None:
    _pair(tmp_path, "a")
    for name in (".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", ".cache/x.png"):
        path = tmp_path / "chosen" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    pairs, problems = read_folder(tmp_path)
    assert [pair.id for pair in pairs] == ["a"]
    assert problems == []


def test_folders_of_systems_are_passed_over_with_a_note(tmp_path: Path) -> None:
    _pair(tmp_path, "a")
    names = ("@eaDir", "#recycle", ".AppleDouble", "__MACOSX", ".thumbnails")
    for name in names:
        (tmp_path / "chosen" / name).mkdir()
        (tmp_path / "chosen" / name / "x.png").write_bytes(b"x")
    pairs, problems = read_folder(tmp_path)
    assert [pair.id for pair in pairs] == ["a"]
    assert {problem.path.name for problem in problems} == set(names)
    assert not any(problem.fatal for problem in problems)
    notes: list[Problem] = []
    assert check_folder(tmp_path, notice=notes.append) == pairs and len(notes) == 5


def test_benign_counts_in_whatever_capitals_and_the_odd_spelling_is_said(tmp_path: Path) -> None:
    _pair(tmp_path, "Benign/a")
    (tmp_path / "rejected" / "Benign").rename(tmp_path / "rejected" / "BENIGN")
    pairs, problems = read_folder(tmp_path)
    assert [(pair.id, pair.category) for pair in pairs] == [("benign/a", "benign")]
    assert {problem.path.name for problem in problems} == {"Benign", "BENIGN"}
    assert all("counts as 'benign'" in problem.what and not problem.fatal for problem in problems)


def test_accents_of_two_systems_are_the_same_name(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    _image(tmp_path / "chosen" / f"{composed}.png", seed=1)
    _image(tmp_path / "rejected" / f"{decomposed}.png", seed=2)
    (tmp_path / "rejected" / f"{decomposed}.txt").write_text("a café", encoding="utf-8")
    assert [pair.id for pair in check_folder(tmp_path)] == [composed]


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    chosen, rejected = tmp_path / "chosen", tmp_path / "rejected"
    _pair(tmp_path, "fine")
    _pair(tmp_path, "no_prompt", prompt=None)
    _pair(tmp_path, "empty_prompt", prompt=" \n")
    _pair(tmp_path, "latin_prompt")
    (chosen / "latin_prompt.txt").write_bytes("une fée".encode("latin-1"))
    _pair(tmp_path, "wide_prompt")
    (chosen / "wide_prompt.txt").write_bytes("a cat".encode("utf-16-le"))
    _pair(tmp_path, "long_prompt", prompt="word " * 20000)
    _pair(tmp_path, "two_prompts")
    (rejected / "two_prompts.txt").write_text("a dog", encoding="utf-8")
    _pair(tmp_path, "no_twin")
    (rejected / "no_twin.png").unlink()
    _pair(tmp_path, "no_twin_either")
    (chosen / "no_twin_either.png").unlink()
    _pair(tmp_path, "double")
    _image(chosen / "double.bmp", seed=3)
    _pair(tmp_path, "same")
    _image(rejected / "same.png", seed=1)
    _pair(tmp_path, "broken")
    (chosen / "broken.png").write_bytes((chosen / "fine.png").read_bytes()[:-60])
    (rejected / "broken.png").write_bytes(b"")
    _pair(tmp_path, "text")
    (rejected / "text.png").write_text("not an image")

    with pytest.raises(FolderError) as caught:
        check_folder(tmp_path)
    expected = {
        "chosen/broken.png": "cut off",
        "rejected/broken.png": "empty",
        "chosen/double.png": "double.bmp beside it has the same name",
        "chosen/empty_prompt.txt": "prompt is empty",
        "chosen/latin_prompt.txt": "UTF-8",
        "chosen/wide_prompt.txt": "UTF-8",
        "chosen/long_prompt.txt": "64 KB",
        "chosen/no_prompt.png": "no_prompt.txt",
        "chosen/no_twin.png": "no image of this name in rejected/",
        "rejected/no_twin_either.png": "no image of this name in chosen/",
        "chosen/same.png": "rejected/same.png is the same image",
        "rejected/text.png": "text file",
        "rejected/two_prompts.txt": "differs from chosen/two_prompts.txt",
    }
    told = _told(tmp_path)
    assert told.keys() == expected.keys()
    for name, part in expected.items():
        assert part in told[name]
        assert told[name].endswith(".")
    lines = str(caught.value).splitlines()
    assert "13 problems" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:]] == sorted(expected)
    assert [pair.id for pair in read_folder(tmp_path)[0]] == ["fine"]


def test_a_image_without_twin_and_prompt_is_told_both(tmp_path: Path) -> None:
    _pair(tmp_path, "fine")
    _image(tmp_path / "chosen" / "Lonely.png", seed=5)
    _image(tmp_path / "rejected" / "lonely.png", seed=6)
    told = _told(tmp_path)
    assert "Lonely.txt" in told["chosen/Lonely.png"]
    assert "There is rejected/lonely: capitals have to agree." in told["chosen/Lonely.png"]
    assert "There is chosen/Lonely: capitals have to agree." in told["rejected/lonely.png"]


def test_long_lists_are_whole_and_put_together_by_what_is_wrong(tmp_path: Path) -> None:
    for number in range(53):
        _image(tmp_path / "chosen" / f"{number:02}.png", seed=number)
        (tmp_path / "chosen" / f"{number:02}.txt").write_text("a cat")
    (tmp_path / "rejected").mkdir()
    with pytest.raises(FolderError, match="53 problems") as caught:
        check_folder(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  53 files: there is no image of this name in rejected/. Add it there")
    assert lines[2:55] == [f"    chosen/{number:02}.png" for number in range(53)]
    # Said again where a terminal shows it.
    assert lines[55:] == ["In short:", lines[1]]
    assert len(caught.value.problems) == 53


def test_three_thousand_problems_are_a_few_sentences_and_every_name() -> None:
    folder = Path("/pairs")
    prompts = [
        Problem(file, f"it has no prompt. Write the text into {file.stem}.txt beside it.")
        for file in (folder / "chosen" / "weapon" / f"knife {number}.v2.png" for number in range(3000))
    ]
    same = [
        Problem(folder / "chosen" / name, f"rejected/{name} is the same image.")
        for name in ("a.png", "weapon/a.png")
    ]
    alone = Problem(folder / "rejected" / "x.png", "the file is empty (0 bytes).")
    odd = [Problem(folder / "chosen" / f"{name}.md", "this is left out.", fatal=False) for name in "pq"]
    told = in_words([*prompts, *same, alone, *odd], folder).splitlines()
    assert [line for line in told if not line.startswith("    ")] == [
        "  3000 files: it has no prompt. Write the text into NAME.txt beside it.",
        "  2 files: rejected/NAME.png is the same image.",
        "  rejected/x.png: the file is empty (0 bytes).",
        "  Note: 2 files: this is left out.",
        "In short:",
        "  3000 files: it has no prompt. Write the text into NAME.txt beside it.",
        "  2 files: rejected/NAME.png is the same image.",
        "  Note: 2 files: this is left out.",
        "  1 of other kinds",
    ]
    named = {line.strip() for line in told if line.startswith("    ")}
    every = [*prompts, *same, *odd]
    assert named == {each.path.relative_to(folder).as_posix() for each in every}


def test_what_is_left_out_is_told_but_stops_nothing(tmp_path: Path) -> None:
    _pair(tmp_path, "a")
    _pair(tmp_path, "wide")
    _image(tmp_path / "rejected" / "wide.png", seed=3, size=(16, 8))
    # 100 x 67 and 150 x 100 are the same shape but for rounding.
    _pair(tmp_path, "rounded")
    _image(tmp_path / "chosen" / "rounded.png", seed=3, size=(100, 67))
    _image(tmp_path / "rejected" / "rounded.png", seed=4, size=(150, 100))
    (tmp_path / "chosen" / "notes.json").write_text("{}")
    (tmp_path / "rejected" / "old.txt").write_text("a hat")
    notices: list[Problem] = []
    assert len(check_folder(tmp_path, notice=notices.append)) == 3
    told = _told(tmp_path, fatal=False)
    assert "neither an image" in told["chosen/notes.json"]
    assert "8 x 8 pixels and rejected/wide.png is 16 x 8" in told["chosen/wide.png"]
    assert "no image of this name" in told["rejected/old.txt"]
    assert len(told) == 3
    assert {problem.path.name for problem in notices} == {"notes.json", "wide.png", "old.txt"}


def test_images_of_other_kinds_are_called_that(tmp_path: Path) -> None:
    _pair(tmp_path, "a")
    (tmp_path / "chosen" / "a.png").rename(tmp_path / "chosen" / "a.heic")
    (tmp_path / "chosen" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0\xff\xfe")
    told = _told(tmp_path)
    assert told.keys() == {"chosen/a.heic"}
    # With a plug-in for HEIC the file is a damaged image, without one its kind and the package are named.
    readable = "HEIF" in formats()
    assert ("damaged" if readable else "this is HEIC, which needs the package") in told["chosen/a.heic"]


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no folder chosen/ and no folder rejected/") as caught:
        check_folder(tmp_path)
    assert "chosen/cat.png, chosen/cat.txt, rejected/cat.png" in str(caught.value)
    (tmp_path / "chosen").mkdir()
    (tmp_path / "rejected").mkdir()
    with pytest.raises(FolderError, match="hold no images"):
        check_folder(tmp_path)
    (tmp_path / "chosen" / "notes.md").write_text("x")
    with pytest.raises(FolderError, match="hold no images"):
        check_folder(tmp_path)


def test_other_layouts_get_a_hint(tmp_path: Path) -> None:
    for name in ("good", "Rejected", "misc"):
        (tmp_path / name).mkdir()
    with pytest.raises(FolderError) as caught:
        check_folder(tmp_path)
    assert "There is good/: rename it to chosen/" in str(caught.value)
    assert "There is Rejected/: rename it to rejected/" in str(caught.value)
    assert "misc" not in str(caught.value).replace(str(tmp_path), "")

    _pair(tmp_path / "outer" / "pairs", "a")
    with pytest.raises(FolderError, match="Perhaps you mean") as caught:
        check_folder(tmp_path / "outer")
    assert str(tmp_path / "outer" / "pairs") in str(caught.value)
    with pytest.raises(FolderError, match="folder above it") as caught:
        check_folder(tmp_path / "outer" / "pairs" / "chosen")
    assert str(tmp_path / "outer" / "pairs") in str(caught.value)


def test_missing_folder_and_file_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no such folder"):
        check_folder(tmp_path / "nowhere")
    (tmp_path / "pairs.zip").write_bytes(b"PK")
    with pytest.raises(FolderError, match="a file, not a folder"):
        check_folder(tmp_path / "pairs.zip")
    assert issubclass(FolderError, ScdpoError)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    _pair(tmp_path, "a")
    try:
        (tmp_path / "chosen" / "loop").symlink_to(tmp_path / "chosen", target_is_directory=True)
    except OSError:
        pytest.skip("this system lets nobody make links")
    assert [pair.id for pair in check_folder(tmp_path)] == ["a"]


def test_unreadable_folders_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything, so the refusal is staged.
    _pair(tmp_path, "a")
    _pair(tmp_path, "sub/b")
    real_scandir, real_open = os.scandir, Path.open

    def scandir(folder: Path) -> Any:
        if Path(folder).match("rejected/sub"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_scandir(folder)

    def opened(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name in ("a.txt", "b.png"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    told = _told(tmp_path)
    assert told.keys() == {"chosen/a.txt", "chosen/sub/b.png", "rejected/sub/b.png"}
    assert all("permission" in what for what in told.values())
    monkeypatch.setattr(os, "scandir", scandir)
    # Nothing is said of the twins that may well be in there.
    told = _told(tmp_path)
    assert told.keys() == {"rejected/sub"}
    assert "permission" in told["rejected/sub"]


def test_progress_counts_images(tmp_path: Path) -> None:
    _pair(tmp_path, "a")
    _pair(tmp_path, "b")
    told: list[tuple[int, int]] = []
    check_folder(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
