"""Every preset in trainer/configs trains: a tiny random model, the real command line, the LoRA it leaves."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scdpo_core.config import TrainSettings, load_toml
from scdpo_core.families import FAMILIES
from scdpo_core.families.source import MICRO
from scdpo_core.lora.adapter import attach_file
from scdpo_core.lora.file import load_lora
from scdpo_core.sections import to_dict
from scdpo_core.training.loading import load_base
from scdpo_core.training.team import Alone
from tests.test_train_lora_cli import PROGRAM, run
from tests.tiny import tiny_pairs
from tests.tiny_families import T5_TOKENS, tiny_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = sorted(path.stem for path in (PROGRAM.parent / "configs").glob("*.toml"))
# What a test must choose: which model and pictures, where to, how long, and how much is drawn. T5's prompts
# are as long as the tiny one's. `device` keeps a machine's GPU out of it. Nothing in a preset needs a GPU: 8
# bits, tiles and checkpointing work on a CPU, and precision 'auto' becomes fp32 there.
CHOSEN: dict[str, dict[str, Any]] = {
    "model": {"device": "cpu", "t5_tokens": T5_TOKENS},
    "optim": {"max_train_steps": 2},
    "sampling": {"samples": 1, "sample_steps": 2},
    "output": {"log_every": 1},
}


def told(preset: str) -> dict[str, dict[str, Any]]:
    """What a preset's file says, read without our own reader."""
    found: dict[str, dict[str, Any]] = tomllib.loads(
        (PROGRAM.parent / "configs" / f"{preset}.toml").read_text("utf-8")
    )
    return found


def family_for(preset: str) -> str:
    """The preset's own family; those that go with every model are tried on Stable Diffusion 1."""
    return preset if preset in (*FAMILIES, MICRO) else "sd1"


def test_every_family_has_a_preset_and_every_preset_says_something() -> None:
    assert {*FAMILIES, MICRO} <= set(PRESETS)
    assert all(told(preset) for preset in PRESETS)


def trains(preset: str, tmp_path: Path) -> None:
    family = family_for(preset)
    base = MICRO if family == MICRO else str(tiny_folder(family, tmp_path / "base"))
    pairs, folder = tiny_pairs(tmp_path / "pairs", 4), tmp_path / "runs" / "calm"
    mine: dict[str, dict[str, Any]] = {
        **CHOSEN,
        "model": {**CHOSEN["model"], "base": base},
        "data": {"pairs": str(pairs)},
        "output": {**CHOSEN["output"], "output": str(folder)},
    }
    flags = [
        word
        for section in mine.values()
        for name, value in section.items()
        for word in (f"--{name.replace('_', '-')}", value)
    ]
    path = PROGRAM.parent / "configs" / f"{preset}.toml"
    code, out, err = run("--config", path, *flags, cwd=tmp_path)
    assert code == 0, err
    lora = folder / "calm.safetensors"
    assert f"The LoRA is {lora}" in out

    # Defaults, the family's own preset, the one that was named, and what this test chose, in this order.
    expected = to_dict(TrainSettings())
    for layer in (told(family), told(preset), mine):
        for section, values in layer.items():
            assert values.keys() <= {
                field.name for field in dataclasses.fields(getattr(TrainSettings(), section))
            }
            expected[section] |= values
    assert to_dict(load_toml(folder / "job.toml")) == expected

    state, info = load_lora(lora)
    assert info.family == family
    assert any(weight.any() for name, weight in state.items() if name.endswith(".up"))
    metadata = info.metadata
    assert metadata["scdpo_objective"] == expected["objective"]["objective"]
    assert json.loads(metadata["scdpo_train_steps"]) == 2
    assert metadata["ss_network_dim"] == str(expected["lora"]["rank"])
    # It fits a fresh model of the family, module by module.
    model = load_base(load_toml(folder / "job.toml"), torch.device("cpu"), Alone())
    adapter, _ = attach_file(model.denoiser, lora)
    assert {f"{module}.up" for module in adapter.modules} <= state.keys()


def test_the_preset_of_stable_diffusion_1_trains(tmp_path: Path) -> None:
    trains("sd1", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "sd1"])
def test_every_other_preset_trains(preset: str, tmp_path: Path) -> None:
    trains(preset, tmp_path)
