from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scdpo_core.evaluation.compare import compare
from scdpo_core.run_store.events import EventLog, Progress, Started
from scdpo_core.run_store.folder import kind_of
from scdpo_core.runs.comparison import (
    Cell,
    CompareJob,
    Comparison,
    defaults_of,
    parse_weights,
    problems,
    read_comparison,
    read_result,
    write_comparison,
    write_result,
)
from scdpo_core.types import ScdpoError


def job(root: Path) -> CompareJob:
    lora = root / "calm.safetensors"
    lora.write_bytes(b"weights")
    return CompareJob(lora, "micro", root / "runs", "compare-calm", ("a cat", "a dog"), (0.0, 1.0), "micro")


def test_a_job_goes_to_the_disk_and_back(tmp_path: Path) -> None:
    wanted = job(tmp_path)
    folder = write_comparison(wanted)
    assert read_comparison(folder / "job.toml") == wanted and kind_of(folder) == "compare"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "a/b"}, "cannot be a file name"),
        ({"lora": Path("/nowhere/x.safetensors")}, "There is no LoRA"),
        ({"prompts": ()}, "Give 1 to 64 prompts"),
        ({"weights": ()}, "Give 1 to 8 weights"),
        ({"weights": (9.0,)}, "must be between -4 and 4"),
        ({"base": " "}, "Choose a base model"),
        ({"base": "/models/caf\udce9"}, r"/models/caf\\udce9: this name is not valid Unicode"),
        ({"prompts": ("a \ud800",)}, "not valid Unicode"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    wanted = replace(job(tmp_path), **change)  # type: ignore[arg-type]
    with pytest.raises(ScdpoError, match=said):
        write_comparison(wanted)
    assert not (tmp_path / "runs").exists()


def test_a_comparison_is_never_written_over_another(tmp_path: Path) -> None:
    write_comparison(job(tmp_path))
    assert list(problems(job(tmp_path))) == ["A run 'compare-calm' already exists. Choose another name."]


def test_weights() -> None:
    assert parse_weights("0, 0.5; 1,1,") == (0.0, 0.5, 1.0)
    with pytest.raises(ScdpoError, match="is not a list of weights"):
        parse_weights("0, half")


def test_a_result_goes_to_the_disk_and_back(tmp_path: Path) -> None:
    cells = tuple(
        Cell("a cat", 0, weight, f"samples/{weight}.png", weight, "safe", 1 - weight) for weight in (0.0, 0.5)
    )
    result = Comparison("calm", "micro", "micro@0", cells)
    write_result(tmp_path, result)
    assert read_result(tmp_path) == result
    far = replace(result, cells=(*result.cells, replace(result.cells[0], path="../../secret.png")))
    write_result(tmp_path, far)
    assert read_result(tmp_path) is None
    assert result.weights == (0.0, 0.5) and result.at(0.5) == [cells[1]]
    (tmp_path / "compare.json").write_text("{", "utf-8")
    assert read_result(tmp_path) is None


def trained(root: Path, base: str, speed: float, batch: int = 8) -> Path:
    run = root / "runs" / "earlier"
    run.mkdir(parents=True)
    pairs = root / "pairs"
    (pairs / "chosen").mkdir(parents=True)
    for number in range(4):
        (pairs / "chosen" / f"{number}.txt").write_text(f"prompt {number}", "utf-8")
    (run / "job.toml").write_text(
        f'[model]\nbase = "{base}"\n[data]\npairs = "{pairs.as_posix()}"\n'
        f"[optim]\nmax_train_steps = 10\nbatch_size = {batch}\naccumulation = 1\n"
        "[sampling]\nguidance = 3.0\nsample_steps = 7\n",
        "utf-8",
    )
    log = EventLog(run / "events.jsonl")
    log(Started("earlier", 1, 0, 10, 4, "cpu", "0"))
    log(Progress("train", 10, 10, {"loss": 0.1}, speed, 0.0))
    return run


def test_a_lora_is_compared_as_it_was_sampled(tmp_path: Path) -> None:
    found = defaults_of(trained(tmp_path, "micro", 2.0), prompts=2)
    assert found is not None
    assert (found.base, found.steps, found.guidance) == ("micro", 7, 3.0)
    assert found.prompts == ("prompt 0", "prompt 2")
    assert defaults_of(tmp_path) is None


def test_a_lora_of_another_family_is_named_before_anything_is_drawn(tmp_path: Path) -> None:
    lora = tmp_path / "xl.safetensors"
    module = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    wide = {
        f"{module}.lora_down.weight": torch.zeros(4, 2048),
        f"{module}.lora_up.weight": torch.zeros(640, 4),
    }
    save_file({**wide, f"{module}.alpha": torch.tensor(4.0)}, str(lora))
    with pytest.raises(ScdpoError, match=r"xl\.safetensors is a LoRA for .* XL, and micro is the embedded"):
        compare(replace(job(tmp_path), lora=lora), tmp_path / "run", torch.device("cpu"), lambda *_: None)
    assert not (tmp_path / "run").exists()
