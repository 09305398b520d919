"""What the nodes say where something is wrong: in the words of a graph, and before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.comfy_contract import RECORDED, Door, open_door


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield open_door(sorted(RECORDED)[-1], tmp_path_factory.mktemp("comfyui"), monkeypatch)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (
            "or give its folder: 'freepik=FOLDER'.",
            "or put its folder into models/safety_cost and call it 'freepik'.",
        ),
        (
            "nothing holds it: --text-encoders FOLDER.",
            "nothing holds it: 'text_encoders = \"FOLDER\"' under [model] in settings.",
        ),
        (
            "Raise --winner, or lower --lr.",
            "Raise 'winner' under [objective] in settings, or lower learning_rate.",
        ),
        ("Give another --output, or a lower --rank.", "Give another output_name, or a lower rank."),
        ("smaller images (--width and --height)", "smaller images (a lower resolution)"),
        ("no --train-text", "no 'train_text' under [lora] in settings"),
        ("Go on with it (--resume), or not.", "Go on with it, or not."),
        (
            "before it was finished; --resume goes on from",
            "before it was finished; running it again goes on from",
        ),
        ("python install.py --trainer", "python install.py --trainer"),
        ("a -- b, well-known, x--y", "a -- b, well-known, x--y"),
    ],
)
def test_flags_become_inputs_and_settings(door: Door, said: str, heard: str) -> None:
    assert door.module("comfy_nodes.errors").without_flags(said) == heard


def test_an_error_shows_no_path_of_this_machine(door: Door) -> None:
    """ComfyUI shows an exception's module and name; the pack's modules are named by their path."""
    node = door.nodes["SCDPO_LoadSafetyLora"]
    with pytest.raises(Exception, match="would end before it begins") as caught:
        node.execute(None, "a.safetensors", 1.0, 1.0, start_percent=0.6, end_percent=0.4)
    kind = type(caught.value)
    assert f"{kind.__module__}.{kind.__qualname__}" == "scdpo.SafetyError"
    assert caught.value.__suppress_context__


def test_no_node_lets_an_error_of_the_core_through(door: Door) -> None:
    assert {node.execute.__name__ for node in door.nodes.values()} == {"execute"}
    assert all(hasattr(node.execute.__func__, "__wrapped__") for node in door.nodes.values())


PLAN = {"folder": "mine", "category": "", "rule": "as prompted", "prompts": "a", "safe_prompts": "b"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"folder": None, "category": None, "rule": None, "prompts": None, "safe_prompts": None}, None),
        ({"category": "a/b"}, "'a/b' cannot be the name of a folder"),
        ({"safe_prompts": ""}, "needs safe prompts"),
        # Connected: known only when it runs.
        ({"safe_prompts": None}, None),
        ({"rule": "the best"}, "There is no rule 'the best'"),
        ({"prompts": " "}, "at least one prompt"),
        ({"prompts": "a\nb\nc", "safe_prompts": "a\nb"}, "3 prompts and 2 safe prompts"),
        ({"folder": "../x"}, "output folder"),
    ],
)
def test_what_makes_no_pairs_is_said_before_the_run(door: Door, changes: Any, words: str | None) -> None:
    answer = door.nodes["SCDPO_MakePreferencePairs"].validate_inputs(**{**PLAN, **changes})
    assert answer is True if words is None else words in answer


@pytest.mark.parametrize("changes", [{"category": "a/b"}, {"rule": "as prompted", "safe_prompts": ""}])
def test_what_was_connected_is_checked_before_the_first_image(
    door: Door, changes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door.module("comfy_nodes.pairs"), "draw", lambda **_: pytest.fail("drawn"))
    values = {**PLAN, "rule": "less harmful wins", "gap": 0.0, "seed": 0, "seeds": 1, **changes}
    with pytest.raises(Exception, match=r"cannot be the name|needs safe prompts"):
        door.nodes["SCDPO_MakePreferencePairs"].execute(object(), object(), **values)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("mine", "output/mine"),
        ("output/mine", "output/mine"),
        (' "input/yours" ', "input/yours"),
        ("yours", "input/yours"),
        ("both", "output/both"),
    ],
)
def test_a_part_of_a_path_is_looked_for_in_comfyuis_folders(
    door: Door, typed: str, found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for place in ("output/mine", "input/yours", "output/both", "input/both"):
        (door.folder / place).mkdir(parents=True, exist_ok=True)
    # Where ComfyUI was started from means nothing.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    folders = door.module("comfy_nodes.folders")
    assert folders.typed_folder(typed) == door.folder / found
    assert folders.typed_folder(str(tmp_path)) == tmp_path
    assert folders.typed_folder_or_none(' "" ') is None


def test_a_part_of_a_path_that_is_nowhere_says_where_it_was_looked_for(door: Door) -> None:
    with pytest.raises(Exception, match=r"There is no folder 'gone' in .*output nor in .*input\. Give"):
        door.nodes["SCDPO_PreferenceFolder"].execute("example: drawings", "gone")


def test_a_classifier_of_the_hub_may_lie_in_the_folder_of_cost_models(door: Door) -> None:
    cost = door.module("comfy_nodes.cost")
    assert cost.spec_of("freepik") == "freepik"
    folder = door.folder / "models" / "safety_cost" / "freepik"
    folder.mkdir()
    (folder / "config.json").write_text("{}", "utf-8")
    assert cost.spec_of("freepik") == f"freepik={folder}"
