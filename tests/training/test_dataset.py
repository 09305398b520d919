"""Images of several shapes through a whole run, and what SDXL is told of their sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scdpo_core.config.settings import load_toml
from scdpo_core.families import FAMILIES
from scdpo_core.preferences.folder import check_folder
from scdpo_core.preferences.relabel import unscored
from scdpo_core.training.dataset import Dataset, encode, real_sizes
from scdpo_core.training.distributed import SingleProcess
from scdpo_core.training.job import run_job
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_pairs, tiny_settings
from tests.support.tiny_families import tiny_folder

CPU = torch.device("cpu")
AREA = {"width": 32, "height": 32, "buckets": True, "bucket_step": 8}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("sdxl", tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pairs; the images of two are wide, those of one are high."""
    folder = tiny_pairs(tmp_path_factory.mktemp("pairs") / "pairs", 6)
    for number, size in ((0, (48, 24)), (2, (40, 20)), (3, (16, 32))):
        for path in folder.rglob(f"pair{number}.png"):
            with Image.open(path) as image:
                larger = image.resize(size)
            larger.save(path)
    return folder


def _encoded(base: Path, pairs: Path, tmp_path: Path, **changes: Any) -> Dataset:
    settings = tiny_settings(base, pairs, tmp_path, **changes)
    found = unscored(check_folder(pairs))
    model = FAMILIES["sdxl"].load(base, CPU, torch.float32)
    return encode(found, model, settings, tmp_path / "cache", SingleProcess(), lambda *_: None)


def test_every_pair_is_encoded_at_its_own_size_and_told_so(base: Path, pairs: Path, tmp_path: Path) -> None:
    data = _encoded(base, pairs, tmp_path, **AREA, real_sizes=True)
    # 32 x 32 = 1024 pixels leave 32x32, 40x24 and 24x40 in steps of 8; 48x16 is longer than 2.5 to 1. Each
    # latent cell is two pixels wide.
    shapes = {
        each.pair.id[-1]: tuple(one.latents.shape[2:])
        for each, one in zip(data.labelled, data.cached, strict=True)
    }
    assert shapes == {"0": (12, 20), "2": (12, 20), "3": (20, 12), **dict.fromkeys("145", (16, 16))}
    assert data.sizes is not None
    told = {each.pair.id[-1]: row.tolist() for each, row in zip(data.labelled, data.sizes, strict=True)}
    # Height and width as they were, top and left of the crop, height and width asked for: 48x24 covers 40x24
    # as it is, with 4 cut off on the left.
    assert told["0"] == [24, 48, 0, 4, 24, 40]
    assert told["1"] == [16, 16, 0, 0, 32, 32]


def test_the_crop_is_told_where_there_is_one(pairs: Path) -> None:
    found = {each.pair.id[-1]: each for each in unscored(check_folder(pairs))}
    # 48x24 to cover 16x16: scaled to 32x16, 8 cut off on the left.
    assert real_sizes(found["0"], (16, 16)) == [24, 48, 0, 8, 16, 16]


@pytest.mark.parametrize("reference_draws", [0, 2])
def test_buckets_train_with_and_without_known_references_and_resume(
    base: Path, pairs: Path, tmp_path: Path, reference_draws: int
) -> None:
    def settings(name: str) -> Any:
        return tiny_settings(
            base, pairs, tmp_path / name / "lora", **AREA, real_sizes=True, samples=0,
            max_train_steps=6, reference_draws=reference_draws, validation=0.3, weighting="min_snr",
            timestep_min=0.2,
        )  # fmt: skip

    whole = run_job(settings("whole"))
    calls = iter(range(10**6))
    stopped = run_job(settings("parts"), should_stop=lambda: whole_is_enough(next(calls), tmp_path))
    assert stopped.outcome.reason == "stopped"
    resumed = run_job(settings("parts"), resume=True)
    assert whole.lora is not None and resumed.lora is not None
    assert resumed.lora.path.read_bytes() == whole.lora.path.read_bytes()


def whole_is_enough(_: int, tmp_path: Path) -> bool:
    """Whether the second run has a checkpoint to go on from."""
    return any((tmp_path / "parts" / "lora" / "checkpoints").glob("step-*"))


def test_a_size_that_the_model_does_not_know_is_refused(base: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ScdpoError, match="lower --bucket-step"):
        _encoded(base, pairs, tmp_path, buckets=True)


@pytest.mark.parametrize("recipe", ["small-gpu", "prodigy"])
def test_the_ready_made_settings_train(base: Path, pairs: Path, tmp_path: Path, recipe: str) -> None:
    own = load_toml(
        ROOT / "trainer" / "configs" / f"{recipe}.toml", tiny_settings(base, pairs, tmp_path / "run", rank=4)
    )
    small = dataclasses.replace(own, optim=dataclasses.replace(own.optim, accumulation=1, max_train_steps=2))
    result = run_job(small)
    assert result.outcome.step == 2
    assert result.lora is not None
