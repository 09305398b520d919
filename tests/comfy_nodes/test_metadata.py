"""Scores in saved files: each file carries the score of its own pixels, or none."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.comfy_contract import RECORDED, Door, open_door


@pytest.fixture
def door(tmp_path: Any) -> Iterator[Door]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        opened = open_door(sorted(RECORDED)[-1], tmp_path, monkeypatch)
        for node in opened.nodes.values():
            node.hidden = types.SimpleNamespace(unique_id="7", prompt={})
        yield opened


class Judge:
    """Finds the cost of an image in its red."""

    id, categories = "judge", ("weapon",)

    def __init__(self, door: Door, sign: float = 1.0, mark: str = "0123456789ab") -> None:
        self.kind, self.sign, self.hash = door.module("scdpo_core.types").CostScore, sign, mark

    def prepare(self, image: Image.Image) -> float:
        return (image.getpixel((0, 0))[0] - 128) / 8.0  # type: ignore[index]

    def score_prepared(self, prepared: Sequence[float]) -> list[Any]:
        return [self.kind(self.sign * cost, {"weapon": cost}, self.id, self.hash) for cost in prepared]


def batch(*reds: int, channels: int = 3, pattern: int = 0) -> torch.Tensor:
    """Images whose first pixel has so much red, and whose others tell them apart."""
    generator = torch.Generator().manual_seed(pattern)
    images = torch.randint(0, 256, (len(reds), 24, 20, channels), generator=generator).float() / 255
    images[:, 0, 0, 0] = torch.tensor(reds) / 255 + 1e-4
    return images


def scored(door: Door, images: torch.Tensor, judge: Judge | None = None) -> Any:
    return door.nodes["SCDPO_ScoreSafetyCost"].execute(images, judge or Judge(door), "off").args


def gated(door: Door, images: torch.Tensor, action: str, judge: Any = None) -> Any:
    node = door.nodes["SCDPO_SafetyGate"]
    return node.execute(images, judge or Judge(door), action, "above the threshold", 0.0).args


def saved(door: Door, images: torch.Tensor) -> list[dict[str, Any] | None]:
    """What Save Image's files say of their score."""
    import sys

    node = sys.modules["nodes"].NODE_CLASS_MAPPINGS["SaveImage"]()
    notes = []
    for entry in node.save_images(images=images, extra_pnginfo={"workflow": {}})["ui"]["images"]:
        with Image.open(door.folder / "output" / entry["filename"]) as image:
            texts = image.text  # type: ignore[attr-defined]
            assert texts["workflow"] == "{}"
            notes.append(json.loads(texts["safety_cost"]) if "safety_cost" in texts else None)
    return notes


def costs(notes: list[dict[str, Any] | None]) -> list[float | None]:
    return [None if found is None else found["cost"] for found in notes]


def test_each_file_of_a_batch_carries_its_own_score_as_the_command_line_writes_it(door: Door) -> None:
    images = batch(88, 168)
    scored(door, images)
    # (88 - 128) / 8 and (168 - 128) / 8.
    assert saved(door, images) == [
        {"cost": -5.0, "band": "safe", "categories": {"weapon": -5.0}, "scorer": "judge@0123456789ab"},
        {"cost": 5.0, "band": "unsafe", "categories": {"weapon": 5.0}, "scorer": "judge@0123456789ab"},
    ]


def test_a_list_of_images_keeps_each_score_with_its_image(door: Door) -> None:
    images = batch(88, 168, 128)
    # ComfyUI runs the node once for each item of a list, and Save Image afterwards.
    for image in images:
        scored(door, image[None])
    assert [costs(saved(door, image[None])) for image in images] == [[-5.0], [5.0], [0.0]]


def test_a_held_image_is_never_called_safe(door: Door) -> None:
    out, held, *_ = gated(door, batch(88, 168), "drop")
    assert costs(saved(door, out)) == [-5.0]
    assert costs(saved(door, held)) == [5.0]


def test_two_branches_do_not_mix(door: Door) -> None:
    first, second = batch(88), batch(168, pattern=1)
    scored(door, first)
    scored(door, second)
    assert (costs(saved(door, first)), costs(saved(door, second))) == ([-5.0], [5.0])


def test_what_was_not_scored_or_was_changed_since_carries_none(door: Door) -> None:
    images = batch(168)
    scored(door, images)
    redrawn, brighter = batch(168, pattern=1), (images * 1.1).clamp(max=1.0)
    assert saved(door, redrawn) == [None]
    assert saved(door, brighter) == [None]


def test_a_run_in_which_nothing_is_computed_again_still_has_the_scores(door: Door) -> None:
    images = batch(88, 168)
    scored(door, images)
    # However the page spells the prompt, the pixels are the same.
    assert costs(saved(door, images)) == costs(saved(door, images.clone())) == [-5.0, 5.0]


@pytest.mark.parametrize("action", ["blur", "pixelate"])
def test_a_cover_says_what_was_hidden(door: Door, action: str) -> None:
    out = gated(door, batch(88, 168), action)[0]
    safe, hidden = saved(door, out)
    assert safe is not None and "action" not in safe
    assert hidden is not None and (hidden["cost"], hidden["action"]) == (5.0, action)


def test_one_card_for_many_images_carries_no_cost(door: Door) -> None:
    out = gated(door, batch(168, 248), "replace")[0]
    assert saved(door, out) == [{"action": "replace", "scorer": "judge@0123456789ab"}] * 2


def test_scores_of_other_images_do_not_reach_the_covers(door: Door) -> None:
    scores = scored(door, batch(168))[1]
    out = gated(door, batch(168, pattern=1), "blur", scores)[0]
    assert saved(door, out) == [None]


def test_two_scorers_are_both_named_the_newest_first(door: Door) -> None:
    images = batch(168)
    scored(door, images)
    scored(door, images, Judge(door, -1.0, "ba9876543210"))
    (found,) = saved(door, images)
    assert found is not None and (found["cost"], found["scorer"]) == (-5.0, "judge@ba9876543210")
    assert [(one["cost"], one["scorer"]) for one in found["others"]] == [(5.0, "judge@0123456789ab")]


def test_what_is_transparent_counts_as_it_is(door: Door) -> None:
    images = batch(168, channels=4)
    scored(door, images)
    clear = images.clone()
    clear[..., 3] = 1.0
    assert [found is not None for found in (*saved(door, images), *saved(door, clear))] == [True, False]


def test_saving_works_as_ever_when_a_note_cannot_be_written(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = batch(168)
    scored(door, images)
    monkeypatch.setattr(door.module("comfy_nodes.metadata"), "atomic_path", None)
    assert saved(door, images) == [None]
    assert "could not be written" in caplog.text


def test_metadata_that_is_turned_off_stays_off(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    images = batch(168)
    scored(door, images)
    monkeypatch.setattr(sys.modules["comfy.cli_args"].args, "disable_metadata", True)
    assert saved(door, images) == [None]


def test_only_so_many_images_are_remembered(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door.module("comfy_nodes.metadata"), "_MOST", 2)
    images = batch(88, 168, 128)
    scored(door, images)
    assert costs(saved(door, images)) == [None, 5.0, 0.0]
