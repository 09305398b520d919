"""Importing folders: two folders, names with suffixes, SimpleTuner's data sets, unpaired images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from scdpo_core.importers.folders import NO_PARTNER
from scdpo_core.importers.images import NO_IMAGE, OUTSIDE
from scdpo_core.importers.pairing import SAME_IMAGE
from scdpo_core.importers.rows import NO_PROMPT
from scdpo_core.types import ScdpoError
from tests.support.import_sources import holds, image_bytes, imported, pairs_in, write_image


@pytest.mark.parametrize(
    ("good", "bad"),
    [("good", "bad"), ("w", "l"), ("Win", "Lose"), ("chosen", "rejected"), ("safe", "unsafe")],
)
def test_two_folders_with_equal_names(tmp_path: Path, good: str, bad: str) -> None:
    source = tmp_path / "mine"
    write_image(source / good / "weapon/a.png", 1)
    write_image(source / bad / "weapon/a.jpg", 2, "JPEG")
    (source / bad / "weapon/a.txt").write_text("a knife")
    write_image(source / good / "b.png", 3)
    write_image(source / bad / "b.png", 4)
    (source / good / "b.txt").write_text("a dog")
    outcome = imported(source, tmp_path / "pairs")
    assert (outcome.state.format, outcome.state.imported, outcome.state.skipped) == ("folders", 2, {})
    dog, knife = sorted(pairs_in(tmp_path / "pairs"), key=lambda pair: pair.prompt)
    assert (dog.prompt, dog.category, knife.prompt, knife.category) == ("a dog", "", "a knife", "weapon")
    assert holds(knife, image_bytes(1), image_bytes(2, "JPEG"))
    assert (knife.chosen.suffix, knife.rejected.suffix) == (".png", ".jpg")


def test_what_is_wrong_with_a_folder_is_counted_by_reason_with_examples(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    for number, name in enumerate(("whole", "alone", "damaged", "same", "mute")):
        write_image(source / "good" / f"{name}.png", number)
        write_image(source / "bad" / f"{name}.png", 10 + number)
        if name != "mute":
            (source / "good" / f"{name}.txt").write_text(f"a {name}")
    (source / "bad/alone.png").unlink()
    (source / "bad/damaged.png").write_bytes(image_bytes(12)[:200])
    (source / "bad/same.png").write_bytes(image_bytes(3))
    outcome = imported(source, tmp_path / "pairs")
    assert [pair.prompt for pair in pairs_in(tmp_path / "pairs")] == ["a whole"]
    skipped = outcome.state.skipped
    assert {reason: tally.count for reason, tally in skipped.items()} == {
        NO_PARTNER: 1,
        NO_IMAGE: 1,
        SAME_IMAGE: 1,
        NO_PROMPT: 1,
    }
    assert "damaged.png" in skipped[NO_IMAGE].examples[0]
    assert outcome.report is not None
    text = outcome.report.read_text()
    assert NO_PARTNER in text and "alone.png" in text and "train_lora.py --pairs" in text
    report = json.loads(outcome.report.with_suffix(".json").read_text())
    assert report["imported"] == 1 and report["skipped"][SAME_IMAGE]["count"] == 1


def test_kohya_folders_with_w_and_l_below_a_category(tmp_path: Path) -> None:
    source = tmp_path / "dataset"
    write_image(source / "10_weapon/w/a.png", 1)
    write_image(source / "10_weapon/l/a.png", 2)
    (source / "10_weapon/w/a.caption").write_text("a sword")
    imported(source, tmp_path / "pairs")
    (pair,) = pairs_in(tmp_path / "pairs")
    assert (pair.prompt, pair.category) == ("a sword", "weapon")


def test_two_folders_of_any_name_are_given_one_by_one(tmp_path: Path) -> None:
    write_image(tmp_path / "one/a.png", 1)
    write_image(tmp_path / "two/a.png", 2)
    imported(None, tmp_path / "pairs", chosen=tmp_path / "one", rejected=tmp_path / "two", prompt="a tree")
    (pair,) = pairs_in(tmp_path / "pairs")
    assert pair.prompt == "a tree" and holds(pair, image_bytes(1), image_bytes(2))


def test_prompts_stand_in_the_images_of_a1111(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    information = PngImagePlugin.PngInfo()
    information.add_text("parameters", "a (red:1.2) fox\nNegative prompt: blur\nSteps: 20, Sampler: Euler")
    write_image(source / "good/a.png", 1)
    with Image.open(source / "good/a.png") as image:
        image.load()
        image.save(source / "good/a.png", pnginfo=information)
    write_image(source / "bad/a.png", 2)
    imported(source, tmp_path / "pairs")
    assert [pair.prompt for pair in pairs_in(tmp_path / "pairs")] == ["a red fox"]


def test_one_folder_with_suffixes(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    for number, name in enumerate(("a_chosen", "a_rejected", "b-0_w", "b-1_l", "b-2_l", "c_w", "c_l", "d_e")):
        write_image(source / f"{name}.png", number)
    for name in ("a", "b-0_w", "c"):
        (source / f"{name}.txt").write_text(f"prompt {name}")
    outcome = imported(source, tmp_path / "pairs")
    assert outcome.state.format == "suffixes"
    prompts = sorted(pair.prompt for pair in pairs_in(tmp_path / "pairs"))
    assert prompts == ["prompt a", "prompt b-0_w", "prompt c"]
    everything = imported(source, tmp_path / "all", per_prompt="all")
    # b has one chosen and two rejected images.
    assert everything.state.imported == 4 and len(pairs_in(tmp_path / "all")) == 4


def test_simpletuner_names_its_two_data_sets(tmp_path: Path) -> None:
    source = tmp_path / "tuner"
    write_image(source / "win/a_red_fox.png", 1)
    write_image(source / "lose/a_red_fox.png", 2)
    backends = [
        {
            "id": "win",
            "type": "local",
            "instance_data_dir": "win",
            "caption_strategy": "filename",
            "conditioning_data": ["lose"],
        },
        {
            "id": "lose",
            "type": "local",
            "dataset_type": "conditioning",
            "conditioning_type": "reference_strict",
            "instance_data_dir": str(source / "lose"),
        },
        {"id": "texts", "type": "local", "dataset_type": "text_embeds", "cache_dir": "cache"},
    ]
    config = source / "multidatabackend.json"
    config.write_text(json.dumps(backends))
    outcome = imported(config, tmp_path / "pairs")
    assert outcome.state.format == "simpletuner"
    (pair,) = pairs_in(tmp_path / "pairs")
    assert pair.prompt == "a red fox" and holds(pair, image_bytes(1), image_bytes(2))
    backends[1]["instance_data_dir"] = str(write_image(tmp_path / "elsewhere/a_red_fox.png", 3).parent)
    config.write_text(json.dumps(backends))
    with pytest.raises(ScdpoError, match="lies elsewhere"):
        imported(config, tmp_path / "others")
    imported(config, tmp_path / "others", images=(tmp_path / "elsewhere",))
    assert holds(pairs_in(tmp_path / "others")[0], image_bytes(1), image_bytes(3))


def unpaired(source: Path) -> Path:
    for number, (name, prompt) in enumerate(
        (("safe/x", "a fox"), ("safe/y", "a boat"), ("unsafe/p", "a fox"), ("unsafe/gore/q", "a wound"))
    ):
        write_image(source / f"{name}.png", number)
        (source / f"{name}.txt").write_text(prompt)
    return source


def test_unpaired_images_are_matched_by_prompt_and_the_rest_is_listed(tmp_path: Path) -> None:
    outcome = imported(unpaired(tmp_path / "mine"), tmp_path / "pairs")
    assert (outcome.state.format, outcome.state.imported, outcome.left_over) == ("unpaired", 1, 1)
    (pair,) = pairs_in(tmp_path / "pairs")
    assert pair.prompt == "a fox" and holds(pair, image_bytes(0), image_bytes(2))
    assert outcome.state.skipped[NO_PARTNER].count == 2
    assert (tmp_path / "pairs/benign_prompts.txt").read_text() == "a boat\n"
    assert outcome.report is not None
    assert f"train_cost.py --unsafe {tmp_path}/mine/unsafe --safe" in outcome.report.read_text()


def test_unpaired_images_are_matched_by_chance_only_when_asked(tmp_path: Path) -> None:
    outcome = imported(unpaired(tmp_path / "mine"), tmp_path / "pairs", match="random")
    assert (outcome.state.imported, outcome.left_over) == (2, 0)
    fox, wound = sorted(pairs_in(tmp_path / "pairs"), key=lambda pair: pair.prompt)
    # By chance, the pair has the rejected image's prompt and category.
    assert (wound.prompt, wound.category) == ("a wound", "gore")
    assert holds(wound, image_bytes(1), image_bytes(3)) and fox.category == ""


def test_links_that_lead_out_are_not_followed_unless_the_folder_is_named(tmp_path: Path) -> None:
    source, private = tmp_path / "mine", write_image(tmp_path / "private/a.png", 1)
    write_image(source / "bad/a.png", 2)
    (source / "good").mkdir()
    (source / "good/a.png").symlink_to(private)
    (source / "bad/a.txt").write_text("a fox")
    outcome = imported(source, tmp_path / "pairs")
    assert outcome.state.imported == 0 and outcome.state.skipped[OUTSIDE].count == 1
    again = imported(source, tmp_path / "others", images=(private.parent,))
    assert again.state.imported == 1


def test_a_text_file_that_links_out_is_no_prompt(tmp_path: Path) -> None:
    source, secret = tmp_path / "mine", tmp_path / "secret.txt"
    secret.write_text("the password")
    write_image(source / "good/a.png", 1)
    write_image(source / "bad/a.png", 2)
    (source / "good/a.txt").symlink_to(secret)
    outcome = imported(source, tmp_path / "pairs")
    assert outcome.state.imported == 0 and outcome.state.skipped[NO_PROMPT].count == 1


def test_by_link_nothing_is_copied_and_the_pair_can_be_trained_on(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    original = write_image(source / "good/a.weird.png", 1)
    write_image(source / "bad/a.weird.png", 2)
    (source / "bad/a.weird.txt").write_text("a fox")
    imported(source, tmp_path / "pairs", by="link")
    (pair,) = pairs_in(tmp_path / "pairs")
    assert pair.chosen.is_symlink() and pair.rejected.is_symlink() and pair.chosen.samefile(original)


def test_a_folder_of_nothing_known_says_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScdpoError, match=r"no known format.*folders, suffixes, pickapic"):
        imported(tmp_path / "empty", tmp_path / "pairs")
    with pytest.raises(ScdpoError, match="inside the source"):
        imported(tmp_path / "empty", tmp_path / "empty/pairs")
