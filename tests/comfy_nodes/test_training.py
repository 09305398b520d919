"""The nodes that make pairs and train, without ComfyUI, and with a trainer that learns nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.comfy_contract import RECORDED, ROOT, Door, open_door
from tests.support.runs_helpers import FAKE, PYTHON, make_run, until
from tests.support.tiny import tiny_pairs

NEWEST = sorted(RECORDED)[-1]


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    with pytest.MonkeyPatch.context() as modules:
        opened = open_door(NEWEST, tmp_path, modules)
        for node in opened.nodes.values():
            node.hidden = SimpleNamespace(unique_id="7", prompt=None, extra_pnginfo=None)
        yield opened


def faked(door: Door, monkeypatch: pytest.MonkeyPatch, **how: Any) -> Any:
    """Train with the fake trainer; a run goes on when its folder is there already."""
    running = door.module("comfy_nodes.training_process")
    child, queue = door.module("scdpo_core.runs.launch"), door.module("scdpo_core.runs.queue")

    def prepare(request: Any) -> str:
        if not request.folder.exists():
            make_run(request.folder.parent, request.folder.name, **how)
        return "go on" if (request.folder / "trained").exists() else "begin"

    monkeypatch.setattr(running.interpreter, "find", lambda: PYTHON)
    monkeypatch.setattr(running.rerun, "prepare", prepare)
    begin = partial(child.start, trainer=FAKE)
    monkeypatch.setattr(running, "Queue", partial(queue.Queue, begin=begin))
    return running


def train(door: Door, name: str = "mine", **changes: Any) -> Any:
    values = {
        "checkpoint": "micro",
        "pairs": str(ROOT / "examples" / "preferences"),
        "output_name": name,
        "quality": "fast",
        "steps": 0,
        "rank": 0,
        "learning_rate": 0.0,
        "resolution": 0,
        "cost_model": "none",
        **changes,
    }
    return door.nodes["SCDPO_TrainSafetyLora"].execute(**values)


def in_background(act: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def test_a_training_is_shown_and_its_lora_shelved(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    running = faked(door, monkeypatch, steps=3)
    menus = running.folder_paths.filename_list_cache
    menus["loras"], menus["checkpoints"] = "old", "kept"
    answer = train(door)
    name, path, plot, told = answer.args
    assert name == "mine.safetensors" and Path(path) == door.folder / "models" / "loras" / name
    assert Path(path).read_bytes() == b"weights"
    assert menus == {"checkpoints": "kept"}
    assert plot.shape[0] == 1 and plot.shape[-1] == 3 and plot.std() > 0.01
    assert "mine is finished" in told and str(path) in told and "ComfyUI cannot run" in told
    assert door.server.texts["7"] == told
    assert door.server.freed == ["models", "cache"]
    assert all(kind == "JPEG" for kind, _, _ in door.server.previews) and door.server.previews
    assert len(answer.ui["images"]) == 1


def test_interrupt_saves_and_the_next_run_goes_on(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    running = faked(door, monkeypatch, steps=200, pause=0.05)
    folder = running.runs_root() / "mine"
    thread, raised = in_background(lambda: train(door))
    until(lambda: (folder / "trained").exists())
    door.server.interrupted = True
    thread.join(60)
    (error,) = raised
    assert type(error).__name__ == "InterruptProcessingException"
    assert not door.server.interrupted, "or the next node would be interrupted too"
    assert running.Child(folder).process is None and running.Child(folder).state == "stopped"
    assert not (door.folder / "models" / "loras" / "mine.safetensors").exists()
    before = int((folder / "trained").read_text())
    (folder / "job.toml").write_text(f'steps = {before + 2}\npause = 0.01\nend = "finish"\n', "utf-8")
    assert "mine is finished" in train(door).args[3]
    assert int((folder / "trained").read_text()) == before + 2


def test_a_second_run_waits_and_may_leave(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    running = faked(door, monkeypatch, steps=2)
    root = running.runs_root()
    other = make_run(root, "other", steps=2000, pause=0.05)
    queue = running.Queue(root)
    first = queue.start(other, PYTHON)
    try:
        thread, raised = in_background(lambda: train(door))
        until(lambda: (root / "mine" / "queued").exists())
        until(lambda: "other is being trained" in door.server.texts.get("7", ""))
        door.server.interrupted = True
        thread.join(30)
        assert type(raised[0]).__name__ == "InterruptProcessingException"
        assert not queue.view().waiting and not (root / "mine" / "child.json").exists()
        thread, raised = in_background(lambda: train(door))
        until(lambda: (root / "mine" / "queued").exists())
        first.stop()
        thread.join(60)
        assert not raised and (door.folder / "models" / "loras" / "mine.safetensors").exists()
    finally:
        first.kill()


def test_a_failing_run_brings_its_own_words(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    faked(door, monkeypatch, steps=1, end="fail")
    with pytest.raises(Exception, match="The disk is full"):
        train(door)
    faked(door, monkeypatch, steps=1, end="lacks")
    with pytest.raises(Exception, match=r"lacks a package.*install\.py --trainer"):
        train(door, "another")


def test_what_was_chosen_reaches_the_job(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    models = door.folder / "models"
    for place in ("checkpoints/base.safetensors", "safety_cost/mine.safetensors"):
        (models / place).parent.mkdir(parents=True, exist_ok=True)
        (models / place).write_bytes(b"")
    (models / "diffusers" / "sd").mkdir(parents=True)
    (models / "diffusers" / "sd" / "model_index.json").write_text("{}", "utf-8")
    asked: list[Any] = []

    def keep(cls: Any, job: Any, stamp: str, kind: str) -> Any:
        asked.append((job, stamp, kind))
        raise KeyboardInterrupt

    monkeypatch.setattr(door.module("comfy_nodes.training_process"), "train", keep)
    chosen = {"steps": 9, "rank": 4, "learning_rate": 1e-4, "resolution": 512}
    for changes in (
        {"checkpoint": "base.safetensors", "cost_model": "mine.safetensors", **chosen},
        {"checkpoint": "diffusers/sd", "cost_model": "embedded", "settings": "[output]\n"},
        {"objective": "preference (SC-DPO)", "rank": 4},
        {"objective": "redirect and keep"},
    ):
        with pytest.raises(KeyboardInterrupt):
            train(door, " spaced ", **changes)
    (first, stamp, kind), (second, _, _), (third, _, _), (fourth, _, _) = asked
    assert door.module("comfy_nodes.train").bases() == ["base.safetensors", "diffusers/sd", "micro"]
    assert (first.base, first.cost_model) == (
        str(models / "checkpoints" / "base.safetensors"),
        str(models / "safety_cost" / "mine.safetensors"),
    )
    assert first.choices == {
        "optim": {"max_train_steps": 9, "lr": 1e-4},
        "lora": {"rank": 4},
        "data": {"width": 512, "height": 512},
    }
    assert (second.base, second.cost_model) == (str(models / "diffusers" / "sd"), "embedded")
    assert second.choices == {} and second.overrides == "[output]\n"
    assert third.choices == {"lora": {"rank": 4}, "objective": {"objective": "sc_dpo"}}
    # The default leaves it open, so that the settings of older graphs may name one.
    assert fourth.choices == {}
    with pytest.raises(Exception, match="There is no objective 'dpo'"):
        train(door, objective="dpo")
    assert first.name == "spaced" and kind == "loras" and len(stamp) == 16


def test_a_cost_model_wants_folders_or_pairs(door: Door, tmp_path: Path) -> None:
    node = door.nodes["SCDPO_TrainCostModel"]
    values = {"output_name": "cost", "encoder": "micro", "quality": "fast"}
    with pytest.raises(Exception, match="not both"):
        node.execute(unsafe="a", safe="b", pairs="c", **values)
    with pytest.raises(Exception, match="a folder of harmful and one of harmless"):
        node.execute(unsafe="", safe="", pairs="", **values)
    with pytest.raises(Exception, match="There is no folder"):
        node.execute(unsafe=str(tmp_path / "none"), safe=str(tmp_path / "none"), pairs="", **values)


def test_folders_are_in_the_menu_and_read_again_when_they_change(door: Door) -> None:
    node = door.nodes["SCDPO_PreferenceFolder"]
    folder = tiny_pairs(door.folder / "output" / "mine", 3)
    menu = door.module("comfy_nodes.preferences").menu_folders()
    assert list(menu) == ["output/mine", "example: drawings"]
    before = node.fingerprint_inputs("output/mine")
    assert node.fingerprint_inputs("output/mine", None) == before
    answer = node.execute("output/mine", shown=2)
    assert answer.args[:3] == (str(folder), 3, '{"weapon": 2, "benign": 1}')
    assert answer.args[3].shape[0] == 2 and len(answer.ui["images"]) == 2
    (folder / "chosen" / "weapon" / "pair0.txt").write_text("another", "utf-8")
    assert node.fingerprint_inputs("output/mine") != before
    # Typed wins; nothing shown still gives an image to go on with.
    answer = node.execute("example: drawings", f' "{folder}" ', shown=0)
    assert answer.args[1] == 3 and answer.args[3].shape[0] == 1 and not answer.ui["images"]
    with pytest.raises(Exception, match="Choose one of: output/mine, example: drawings"):
        node.execute("output/gone")


class Clip:
    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> str:
        return tokens


def test_pairs_have_the_same_seeds_and_are_written(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, asked = door.module("comfy_nodes.pairs"), []
    score = door.module("scdpo_core.types").CostScore

    def draw(*, seed: int, positive: str, **others: Any) -> torch.Tensor:
        asked.append((positive, seed))
        return torch.full((1, 16, 16, 3), (seed + 100 * ("gun" in positive)) / 255 + 1e-4)

    class Judge:
        def score(self, images: Any) -> list[Any]:
            return [
                score(2.0 if one.getpixel((0, 0))[0] >= 100 else -2.0, {}, "j", "0" * 12) for one in images
            ]

    monkeypatch.setattr(pairs, "draw", draw)
    node = door.nodes["SCDPO_MakePreferencePairs"]
    values = {
        "category": "weapon",
        "folder": "made",
        "rule": "safe against harmful",
        "gap": 1.0,
        "seed": 5,
        "seeds": 2,
    }
    answer = node.execute(Clip(), Judge(), prompts="a gun\na toy", safe_prompts="a vase", **values)
    assert asked == [(p, s) for p in ("a gun", "a vase", "a toy", "a vase") for s in (5, 6)]
    place, count, sheet, told = answer.args
    assert Path(place) == (door.folder / "output" / "made").resolve() and count == 2 and sheet.shape[0] == 2
    assert told.splitlines()[0] == f"2 new pairs in {place}, 2 left out."
    assert "Left out: a toy (seed 5): both images are the same" in told
    (kind, image, _) = door.server.previews[-1]
    assert kind == "JPEG" and image.width > image.height
    found = door.module("scdpo_core.preferences.folder").check_folder(Path(place))
    assert {pair.prompt for pair in found} == {"a gun"} and {pair.category for pair in found} == {"weapon"}
    again = node.execute(Clip(), Judge(), prompts="a gun", safe_prompts="a vase", **values)
    assert again.args[3].startswith("0 new pairs") and "2 were there already" in again.args[3]


@pytest.mark.parametrize("folder", ["", "..", "a/../..", "/etc"])
def test_pairs_stay_in_the_output_folder(door: Door, folder: str) -> None:
    node = door.nodes["SCDPO_MakePreferencePairs"]
    assert node.validate_inputs("my_pairs", "", None, None, None) is True
    assert "output folder" in node.validate_inputs(folder, "", None, None, None)
    with pytest.raises(Exception, match="output folder"):
        door.module("comfy_nodes.pairs").output_subfolder(folder)


def test_the_type_of_a_name_fits_every_menu(door: Door) -> None:
    name = door.nodes["SCDPO_TrainSafetyLora"].define_schema().outputs[0].io_type
    # What ComfyUI asks before it connects two nodes.
    assert [name != "COMBO", name != ["a.safetensors"], name != "*"] == [False] * 3
    assert {name: 1}["*"] == 1


def test_waiting_takes_no_time_of_its_own(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is finished is fetched without a process."""
    running = faked(door, monkeypatch, steps=1)
    train(door)
    monkeypatch.setattr(running.rerun, "prepare", lambda request: "done")
    monkeypatch.setattr(running.interpreter, "find", lambda: pytest.fail("nobody trains"))
    began = time.monotonic()
    assert train(door).args[0] == "mine.safetensors"
    assert time.monotonic() - began < 20
    (door.folder / "models" / "loras" / "mine.safetensors").write_bytes(b"another")
    with pytest.raises(Exception, match="Choose another output name"):
        train(door)
