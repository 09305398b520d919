from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scdpo_core.io.image_metadata import plain, prompt_of
from scdpo_core.preferences.folder import check_folder
from scdpo_core.preferences.labelling_session import STATE, Session, import_pairs, propose
from scdpo_core.types import ScdpoError

A1111 = """a (red:1.3) cat, [blurry], <lora:foo:0.8>
Negative prompt: dog
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64"""
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"positive": ["9", 0], "negative": ["7", 0], "seed": 1}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad", "clip": ["4", 1]}},
    "9": {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["6", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["8", 0], "clip": ["4", 1]}},
    "8": {"class_type": "PrimitiveString", "inputs": {"value": "a green dog"}},
}


def image(path: Path, colour: int = 0, **texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    Image.new("RGB", (16, 16), (colour % 256, 90, 10)).save(path, pnginfo=chunks)
    return path


def folder_of(root: Path, count: int = 4, prompt: str = "a cat") -> Path:
    for number in range(count):
        image(root / f"{number}.png", 40 * number, parameters=f"{prompt}\nSteps: 20, Sampler: Euler")
    return root


def test_a1111_prompts_lose_weights_and_networks(tmp_path: Path) -> None:
    assert prompt_of(image(tmp_path / "a.png", parameters=A1111)) == "a red cat, blurry"


def test_a1111_prompts_of_jpeg_lie_in_its_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode("utf-16-be")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", exif=exif)
    assert prompt_of(tmp_path / "a.jpg") == "a red cat, blurry"


def test_comfyui_prompts_are_followed_back_from_the_sampler(tmp_path: Path) -> None:
    assert prompt_of(image(tmp_path / "a.png", prompt=json.dumps(GRAPH))) == "a green dog"


def test_a_graph_that_bites_its_tail_has_no_prompt(tmp_path: Path) -> None:
    graph = {"1": {"inputs": {"positive": ["2", 0]}}, "2": {"inputs": {"conditioning_1": ["2", 0]}}}
    assert prompt_of(image(tmp_path / "a.png", prompt=json.dumps(graph))) == ""


def test_a_text_file_beside_the_image_is_the_last_resort(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    assert prompt_of(tmp_path / "a.png") == ""
    (tmp_path / "a.txt").write_text("a\n bird \n", "utf-8")
    assert prompt_of(tmp_path / "a.png") == "a bird"


def test_files_that_are_no_images_have_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    assert prompt_of(tmp_path / "a.png") == prompt_of(tmp_path / "none.png") == ""


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("(a (b:1.2):1.1) c", "a b c"),
        (r"smile \(happy\)", "smile (happy)"),
        ("<lora:x:1>, cat", "cat"),
        ("cat, <hypernet:x:1>", "cat"),
        ("a < b", "a < b"),
    ],
)
def test_plain(written: str, read: str) -> None:
    assert plain(written) == read


@given(st.text(alphabet="ab(:1.)[]<>\\ ,", max_size=40))
def test_plain_never_fails_and_is_one_line(text: str) -> None:
    assert "\n" not in plain(text)


def test_images_of_one_prompt_are_taken_two_by_two(tmp_path: Path) -> None:
    folder_of(tmp_path / "out", 3)
    image(tmp_path / "out" / "z.png", parameters="a lonely dog\nSteps: 1")
    found = propose(sorted((tmp_path / "out").glob("*.png")), tmp_path / "out")
    names = [{one.left.name, one.right.name} for one in found]
    assert names == [{"0.png", "1.png"}, {"0.png", "2.png"}] and {one.prompt for one in found} == {"a cat"}


def test_images_of_one_name_in_two_folders_belong_together(tmp_path: Path) -> None:
    files = [image(tmp_path / side / f"{name}.png", parameters=name) for side in "ab" for name in "xy"]
    found = propose(files, tmp_path)
    assert [one.prompt for one in found] == ["x", "y"]
    assert {one.left.parent.name for one in found} | {one.right.parent.name for one in found} == {"a", "b"}


def test_answers_become_a_folder_that_can_be_trained_on(tmp_path: Path) -> None:
    session = Session(folder_of(tmp_path / "out"), tmp_path / "pairs")
    first = session.view().current
    assert first is not None and session.view().total == 2
    session.answer(first.id, "right", category="benign")
    second = session.view().current
    assert second is not None and second != first
    session.answer(second.id, "left", prompt="another prompt")
    view = session.view()
    assert view.current is None and (view.answered, view.kept) == (2, 2)
    by_prompt = {pair.prompt: pair for pair in check_folder(tmp_path / "pairs")}
    assert by_prompt["a cat"].chosen.read_bytes() == first.right.read_bytes()
    assert by_prompt["a cat"].rejected.read_bytes() == first.left.read_bytes()
    assert (by_prompt["a cat"].category, by_prompt["another prompt"].category) == ("benign", "")
    assert by_prompt["another prompt"].chosen.read_bytes() == second.left.read_bytes()


def test_a_key_that_is_pressed_twice_answers_once(tmp_path: Path) -> None:
    session = Session(folder_of(tmp_path / "out"), tmp_path / "pairs")
    first = session.view().current
    assert first is not None
    session.answer(first.id, "left")
    assert session.answer(first.id, "left").answered == 1


def test_undo_takes_the_files_back_and_outlives_the_program(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "out")
    session = Session(source, tmp_path / "pairs")
    first = session.view().current
    assert first is not None and not session.view().can_undo
    session.answer(first.id, "left")
    again = Session(source, tmp_path / "pairs")
    assert again.view().answered == 1 and again.view().current != first
    view = again.undo()
    assert view.current == first and not view.can_undo
    assert not [path for path in (tmp_path / "pairs").rglob("*") if path.is_file() and path.name != STATE]
    assert again.undo() == view


def test_skipped_pairs_are_not_asked_again(tmp_path: Path) -> None:
    session = Session(folder_of(tmp_path / "out", 2), tmp_path / "pairs")
    current = session.view().current
    assert current is not None
    view = session.answer(current.id, "skip")
    assert (view.current, view.answered, view.kept) == (None, 1, 0)


@pytest.mark.parametrize("category", ["../up", "a/b", ".hidden", "x:y"])
def test_a_category_is_no_path(tmp_path: Path, category: str) -> None:
    session = Session(folder_of(tmp_path / "out", 2), tmp_path / "pairs")
    current = session.view().current
    assert current is not None
    with pytest.raises(ScdpoError, match="cannot be the name of a folder"):
        session.answer(current.id, "left", category=category)
    assert session.view().answered == 0


def test_images_without_a_prompt_need_one(tmp_path: Path) -> None:
    image(tmp_path / "out" / "a.png")
    image(tmp_path / "out" / "b.png", 9)
    session = Session(tmp_path / "out", tmp_path / "pairs")
    current = session.view().current
    assert current is not None and current.prompt == ""
    with pytest.raises(ScdpoError, match="prompt is empty"):
        session.answer(current.id, "left")
    assert session.answer(current.id, "left", prompt="a cat").kept == 1


def test_a_damaged_session_says_so(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "out", 2)
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / STATE).write_text("{", "utf-8")
    with pytest.raises(ScdpoError, match="is damaged"):
        Session(source, tmp_path / "pairs")


def test_the_preference_folder_may_lie_in_the_images_folder(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "out", 2)
    session = Session(source, source / "pairs")
    current = session.view().current
    assert current is not None
    session.answer(current.id, "left")
    assert Session(source, source / "pairs").view().total == 1


def test_sorted_images_are_imported_by_name(tmp_path: Path) -> None:
    good = [image(tmp_path / f"g{n}.png", n, parameters=f"prompt {n}") for n in (2, 1)]
    bad = [image(tmp_path / f"b{n}.png", n + 100) for n in (1, 2)]
    assert import_pairs(tmp_path / "pairs", good, bad, category="benign") == 2
    pairs = {pair.prompt: pair for pair in check_folder(tmp_path / "pairs")}
    assert pairs["prompt 1"].rejected.read_bytes() == (tmp_path / "b1.png").read_bytes()


def test_an_import_that_cannot_be_whole_writes_nothing(tmp_path: Path) -> None:
    good = [image(tmp_path / "g1.png", 1, parameters="prompt"), image(tmp_path / "g2.png", 2)]
    bad = [image(tmp_path / "b1.png", 3), image(tmp_path / "b2.png", 4)]
    with pytest.raises(ScdpoError, match=r"g2\.png does not say its prompt"):
        import_pairs(tmp_path / "pairs", good, bad)
    with pytest.raises(ScdpoError, match="2 preferred images and 1 others"):
        import_pairs(tmp_path / "pairs", good, bad[:1], "a prompt")
    assert not (tmp_path / "pairs").exists()


def test_of_a_preference_folder_only_both_sides_are_compared(tmp_path: Path) -> None:
    for number, side in enumerate(("chosen", "rejected", "masks", "building/drawn")):
        image(tmp_path / "pairs" / side / "weapon" / "a.png", 40 * number)
    (tmp_path / "pairs" / "chosen" / "weapon" / "a.txt").write_text("a knife\n", "utf-8")
    session = Session(tmp_path / "pairs", tmp_path / "reviewed")
    view = session.view()
    assert view.total == 1 and view.current is not None and view.current.prompt == "a knife"
    sides = {
        path.relative_to(tmp_path / "pairs").parts[0] for path in (view.current.left, view.current.right)
    }
    assert sides == {"chosen", "rejected"}
