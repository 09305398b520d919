"""The prepared GPU script, at its smallest size on a processor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_step


def run(*arguments: str) -> int:
    return gpu_step.main(["--tiny", "--device", "cpu", *arguments])


def test_it_measures_every_kind_of_step_and_writes_both_files(tmp_path: Path) -> None:
    files = [tmp_path / "gpu.json", tmp_path / "gpu.md"]
    assert (
        gpu_step.main(["--tiny", "--device", "cpu", "--json", str(files[0]), "--markdown", str(files[1])])
        == 0
    )
    found = json.loads(files[0].read_text("utf-8"))
    savings = ["as it is", "checkpointing", "offload", "checkpointing, offload"]
    assert [case["saving"] for case in found["cases"]] == savings
    kinds = ["redirect and keep", "redirect floor", "sc_dpo", "floor + reference"]
    for case in found["cases"]:
        assert list(case["seconds"]) == kinds and case["note"] == ""
        assert all(len(taken) == 1 and taken[0] > 0 for taken in case["seconds"].values())
        waiting, total = case["blocks"]
        assert total == 16 and waiting == (total if "offload" in case["saving"] else 0)
    rows = files[1].read_text("utf-8").splitlines()
    assert sum(row.startswith("| small, 64 |") for row in rows) == 2 * len(savings)


def test_what_does_not_fit_and_what_there_is_no_time_for_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(gpu_step, "kinds_of_step", full)
    file = tmp_path / "gpu.json"
    assert gpu_step.main(["--tiny", "--device", "cpu", "--json", str(file)]) == 0
    assert {case["note"] for case in json.loads(file.read_text("utf-8"))["cases"]} == {"does not fit"}
    assert gpu_step.main(["--tiny", "--device", "cpu", "--json", str(file), "--minutes", "-1"]) == 0
    assert {case["note"] for case in json.loads(file.read_text("utf-8"))["cases"]} == {
        "not run: no time was left"
    }


def test_the_whole_of_it_is_both_networks_with_every_saving() -> None:
    listed = {(case.shape, case.size, case.saving) for case in gpu_step.cases(tiny=False)}
    assert listed == {
        (*shape, saving) for shape in (("sd1", 512), ("sdxl", 1024)) for saving in gpu_step.SAVINGS
    }
