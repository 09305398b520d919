"""Every preset in trainer/configs trains: a tiny random model, the real command line, the LoRA it leaves."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scdpo_core.config.convert import to_dict
from scdpo_core.config.settings import TrainSettings, load_toml
from scdpo_core.families import FAMILIES
from scdpo_core.family_info import MICRO
from scdpo_core.lora.adapter import attach_file
from scdpo_core.lora.file import load_lora
from scdpo_core.training.batches import timestep_law
from scdpo_core.training.distributed import SingleProcess
from scdpo_core.training.loading import load_base
from scdpo_core.training.optimizers import learning_rate
from tests.support.tiny import tiny_pairs
from tests.support.tiny_families import WITH_T5, tiny_folder
from tests.support.tiny_parts import T5_TOKENS
from tests.trainer.test_train_lora import PROGRAM, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = sorted(path.stem for path in (PROGRAM.parent / "configs").glob("*.toml"))
# What a test must choose: which model and images, where to, how long, and how much is drawn. T5's prompts
# are as long as the tiny one's. `device` keeps a machine's GPU out of it. Nothing in a preset needs a GPU: 8
# bits, tiles and checkpointing work on a CPU, and precision 'auto' becomes fp32 there.
CHOSEN: dict[str, dict[str, Any]] = {
    "model": {"device": "cpu"},
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


# Settings of published launchers; the presets' comments say where each stands.
PUBLISHED: dict[str, dict[str, Any]] = {
    # 1e-5 with scale_lr on one GPU: times 4 pairs, times 4 accumulated. 500 of 2,000 steps are 0.25 of them.
    "safetydpo": {
        "lr": 1e-5 * 4 * 4, "max_train_steps": 2000, "warmup": 500 / 2000, "schedule": "constant", "rank": 4,
        "caption_dropout": 0.2, "flip": True, "batch_size": 4, "accumulation": 4, "beta": 5000.0,
    },
    "safetydpo-sdxl": {
        "lr": 1e-5, "max_train_steps": 2000, "warmup": 0.0, "schedule": "constant", "optimizer": "adafactor",
        "caption_dropout": 0.2, "flip": True, "max_grad_norm": 0.0, "beta": 5000.0, "rank": 4,
    },
    "duo": {
        "lr": 6e-5, "max_train_steps": 1000, "schedule": "constant", "warmup": 0.0, "rank": 32, "beta": 500.0,
        "batch_size": 1, "accumulation": 1, "targets": "self-attention", "weight_decay": 1e-4,
        "timestep_max": 750 / 1000, "prior_weight": 1e6 / 100,
    },
    # A beta of 2,500 without the one half.
    "diffusion-dpo": {
        "lr": 1e-5, "max_train_steps": 10000, "schedule": "constant", "warmup": 0.0, "rank": 8, "flip": True,
        "beta": 2 * 2500.0,
    },
    "diffusion-dpo-sdxl": {
        "lr": 1e-5, "max_train_steps": 2000, "schedule": "constant", "warmup": 0.0, "rank": 8, "flip": True,
        "beta": 5000.0,
    },
}  # fmt: skip
# Pairs that a step learns from, however they are split.
PAIRS_A_STEP = {
    "safetydpo": 16, "safetydpo-sdxl": 16, "duo": 1, "diffusion-dpo": 32, "diffusion-dpo-sdxl": 16
}  # fmt: skip


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_of_peers_are_their_published_recipes(preset: str) -> None:
    settings = load_toml(PROGRAM.parent / "configs" / f"{preset}.toml")
    flat = {key: value for section in to_dict(settings).values() for key, value in section.items()}
    assert {key: flat[key] for key in PUBLISHED[preset]} == pytest.approx(PUBLISHED[preset])
    assert settings.optim.batch_size * settings.optim.accumulation == PAIRS_A_STEP[preset]
    # Everything in it is said, and nothing else is changed.
    source = told(preset)
    assert {key for section in source.values() for key in section} - {
        "objective",
        "batch_size",
        "accumulation",
    } <= (PUBLISHED[preset].keys())
    text = (PROGRAM.parent / "configs" / f"{preset}.toml").read_text("utf-8")
    assert "github.com/" in text or "diffusers' examples" in text


def test_the_learning_rate_of_safetydpo_rises_over_500_steps_and_stays() -> None:
    optim = load_toml(PROGRAM.parent / "configs" / "safetydpo.toml").optim
    # The first step has 1 of 501 parts of it, the 500th 500.
    assert learning_rate(0, optim) == pytest.approx(1.6e-4 / 501)
    assert learning_rate(499, optim) == pytest.approx(1.6e-4 * 500 / 501)
    assert [learning_rate(step, optim) for step in (500, 1000, 1999)] == pytest.approx([1.6e-4] * 3)


def test_the_last_timestep_of_duo_is_749() -> None:
    steps = timestep_law(load_toml(PROGRAM.parent / "configs" / "duo.toml")).steps(1000)
    assert (steps.start, steps.stop) == (0, 750)


def test_every_family_has_a_preset_and_every_preset_says_something() -> None:
    assert {*FAMILIES, MICRO} <= set(PRESETS)
    assert all(told(preset) for preset in PRESETS)


def trains(preset: str, tmp_path: Path) -> None:
    family = family_for(preset)
    base = MICRO if family == MICRO else str(tiny_folder(family, tmp_path / "base"))
    pairs, folder = tiny_pairs(tmp_path / "pairs", 4), tmp_path / "runs" / "calm"
    mine: dict[str, dict[str, Any]] = {
        **CHOSEN,
        "model": {**CHOSEN["model"], "base": base} | ({"t5_tokens": T5_TOKENS} if family in WITH_T5 else {}),
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
    model = load_base(load_toml(folder / "job.toml"), torch.device("cpu"), SingleProcess())
    adapter, _ = attach_file(model.denoiser, lora)
    assert {f"{module}.up" for module in adapter.modules} <= state.keys()


def test_the_preset_of_stable_diffusion_1_trains(tmp_path: Path) -> None:
    trains("sd1", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "sd1"])
def test_every_other_preset_trains(preset: str, tmp_path: Path) -> None:
    trains(preset, tmp_path)
