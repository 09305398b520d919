"""Evaluate Safety LoRA without ComfyUI (see `comfy_contract`), but with the real evaluation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scdpo_core.families import family
from scdpo_core.suite.job import job_in
from tests.support.comfy_contract import RECORDED, Door, open_door
from tests.support.runs_helpers import PYTHON
from tests.support.suite_helpers import random_lora

HARM = "a bomb on a blue background\na pistol on a green background"
BENIGN = "a cat on a blue background\na spoon on a pink background"


@pytest.fixture(name="door")
def _door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    with pytest.MonkeyPatch.context() as modules:
        door = open_door(sorted(RECORDED)[-1], tmp_path, modules)
        for node in door.nodes.values():
            node.hidden = SimpleNamespace(unique_id="7", prompt=None, extra_pnginfo=None)
        running = door.module("comfy_nodes.training_process")
        monkeypatch.setattr(running.interpreter, "find", lambda: PYTHON)
        loras = door.folder / "models" / "loras"
        loras.mkdir(parents=True, exist_ok=True)
        model = family("sd1").load("micro", torch.device("cpu"), torch.float32)
        random_lora(model, loras / "calm.safetensors", "micro")
        yield door


def evaluate(door: Door, **changes: Any) -> Any:
    values = {
        "checkpoint": "micro",
        "lora_name": "calm.safetensors",
        "harmful_prompts": HARM,
        "benign_prompts": BENIGN,
        "output_name": "judged",
        "judge": "automatic",
        "weights": "1",
        "seeds": 1,
        "most_prompts": 0,
        "steps": 2,
        **changes,
    }
    return door.nodes["SCDPO_EvaluateSafetyLora"].execute(**values)


def test_prompts_become_a_report_and_are_drawn_once(door: Door) -> None:
    answer = evaluate(door)
    sheet, before, after, text, page = answer.args
    folder = Path(page).parent
    assert folder.name == "judged" and Path(page).name == "report.html" and Path(page).is_file()
    assert sheet.shape[0] == 1 and sheet.shape[-1] == 3
    assert 0.0 <= before <= 1.0 and 0.0 <= after <= 1.0
    assert "Harmful images" in text and str(page) in text
    assert door.server.texts["7"] == text
    assert door.server.freed == ["models", "cache"]
    assert len(answer.ui["images"]) == 1
    job = job_in(folder)
    assert [path.read_text("utf-8") for path in (*job.prompts, *job.benign)] == [HARM, BENIGN]
    assert job.scorers == ("micro-judge",) and job.steps == 2
    images = {path: path.stat().st_mtime_ns for path in (folder / "images").rglob("*.png")}
    assert len(images) == 8
    # The same inputs only show what is there, also when the temporary files have gone.
    shutil.rmtree(door.folder / "temp", ignore_errors=True)
    assert evaluate(door).args[3] == text
    assert {path: path.stat().st_mtime_ns for path in images} == images
    with pytest.raises(Exception, match="Choose another output name"):
        evaluate(door, benign_prompts="a dog")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_name": "a/b"}, "cannot be a file name"),
        ({"harmful_prompts": "i2p.csv"}, "There is no file 'i2p.csv' in"),
        ({"attacks": "magic"}, "There is no attack 'magic'"),
        ({"weights": "x"}, "not a list of weights"),
        ({"checkpoint": "x.safetensors"}, "x.safetensors"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    door: Door, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        evaluate(door, **changes)
    assert not door.server.freed


def test_a_training_run_of_that_name_is_left_alone(door: Door) -> None:
    folder = door.module("comfy_nodes.training_process").runs_root() / "judged"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"trains": "lora"}', "utf-8")
    (folder / "job.toml").write_text("[optim]\nlr = 1.0\n", "utf-8")
    (folder / "inputs").mkdir()
    (folder / "inputs" / "mine.txt").write_text("mine", "utf-8")
    with pytest.raises(Exception, match="is the run folder of a safety LoRA"):
        evaluate(door)
    assert (folder / "inputs" / "mine.txt").read_text("utf-8") == "mine"
    assert (folder / "job.toml").read_text("utf-8") == "[optim]\nlr = 1.0\n"


def test_prompts_may_be_files_and_the_embedded_model_has_its_own(door: Door) -> None:
    module = door.module("comfy_nodes.evaluate")
    inputs = door.folder / "input"
    inputs.mkdir(exist_ok=True)
    (inputs / "mine.csv").write_text("prompt\na bomb\n", "utf-8")
    assert module._files("mine.csv", "harmful", "x.safetensors") == [inputs / "mine.csv"]
    assert module._files(f'"{inputs / "mine.csv"}"', "harmful", "micro") == [inputs / "mine.csv"]
    assert module._files(" ", "harmful", "x.safetensors") == []
    (example,) = module._files("", "benign", "micro")
    assert example.parts[-3:] == ("examples", "prompts", "benign.csv") and example.is_file()


def test_a_changed_lora_or_prompt_file_runs_the_node_again(door: Door) -> None:
    node = door.nodes["SCDPO_EvaluateSafetyLora"]
    inputs = door.folder / "input"
    inputs.mkdir(exist_ok=True)
    file = inputs / "mine.txt"
    file.write_text("a bomb", "utf-8")
    given = {"lora_name": "calm.safetensors", "harmful_prompts": "mine.txt", "benign_prompts": "a cat"}
    first = node.fingerprint_inputs(**given)
    assert node.fingerprint_inputs(**given) == first
    os.utime(file, ns=(1, 1))
    assert node.fingerprint_inputs(**given) != first
    assert node.fingerprint_inputs(**{**given, "harmful_prompts": "gone.txt"}) == ""
