"""A made-up family: one record and a class of a few lines make it known everywhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from a1111_extension.checkpoints import checkpoint_of
from scdpo_core.families import FAMILIES, family_of, registered
from scdpo_core.families.diffusers_family import DiffusersFamily
from scdpo_core.families.sd1 import LAYOUT, SD1Model
from scdpo_core.family_info import FAMILY_INFO, FamilyInfo, PairCost, family_by_class, trainable
from scdpo_core.lora.adapter import attach_file
from scdpo_core.lora.file import read_lora_info
from scdpo_core.lora.identity import sidecar_version
from scdpo_core.training.job import run_job
from tests.support.lora_script import tool
from tests.support.tiny import tiny_pairs, tiny_settings
from tests.support.tiny_families import tiny_folder

__all__ = ["tool"]

INFO = FamilyInfo(
    name="toy",
    title="Toy Diffusion",
    short_title="Toy",
    version="toy_v1",
    architecture="toy-diffusion-v1/lora",
    metadata_prefixes=("toy_v1", "toy-diffusion"),
    sidecars=("Toy",),
    engines=("ToyEngine",),
    comfy_classes=("ToyModel",),
    lora_keys="sd1",
    pipeline="ToyPipeline",
    denoiser="unet",
    cost=PairCost(64, 0.01, 0.001, (0.01, 0.01), (0.001, 0.001)),
)


class ToyModel(SD1Model):
    family = "toy"


@pytest.fixture(autouse=True)
def _toy() -> Iterator[None]:
    with registered(DiffusersFamily(INFO, LAYOUT, ToyModel)):
        yield


def test_it_trains_exports_and_reloads(tmp_path: Path) -> None:
    base = tiny_folder("sd1", tmp_path / "base")
    index = base / "model_index.json"
    index.write_text(
        json.dumps(json.loads(index.read_text("utf-8")) | {"_class_name": INFO.pipeline}), "utf-8"
    )
    pairs = tiny_pairs(tmp_path / "pairs", 4)
    assert family_of("auto", base).name == "toy"

    result = run_job(tiny_settings(base, pairs, tmp_path / "lora", max_train_steps=2, lr=0.05))

    assert result.outcome.step == 2 and result.lora is not None
    info = read_lora_info(result.lora.path)
    assert info.family == "toy"
    assert info.metadata["ss_base_model_version"] == "toy_v1"
    assert info.metadata["modelspec.architecture"] == "toy-diffusion-v1/lora"
    card = json.loads(result.lora.path.with_suffix(".json").read_text("utf-8"))
    assert card["sd version"] == "Toy" == sidecar_version("toy")
    model = FAMILIES["toy"].load(base, torch.device("cpu"), torch.float32)
    (before,) = model.sample(["a thing 0"], [0], 2, 3.0)
    attach_file(model.denoiser, result.lora.path)
    (after,) = model.sample(["a thing 0"], [0], 2, 3.0)
    assert after.tobytes() != before.tobytes()


def test_every_door_knows_it(capsys: pytest.CaptureFixture[str], tool: ModuleType) -> None:
    with pytest.raises(SystemExit):
        tool.main(["convert", "--help"])
    assert "toy" in capsys.readouterr().out
    engine = SimpleNamespace(model_config=type("ToyEngine", (), {})())
    assert (checkpoint_of(engine).family, checkpoint_of(engine).title) == ("toy", "Toy Diffusion")
    # The one look-up of the ComfyUI nodes, which load only inside a host.
    assert family_by_class("ToyModel", "comfy_classes") is INFO
    assert INFO in trainable()


def test_a_name_or_a_pipeline_belongs_to_one_family() -> None:
    for taken in (INFO, dataclasses.replace(INFO, name="other"), dataclasses.replace(INFO, pipeline="Other")):
        with (
            pytest.raises(ValueError, match="known already"),
            registered(DiffusersFamily(taken, LAYOUT, ToyModel)),
        ):
            pass
    assert [*FAMILY_INFO][-1] == "toy"


def test_it_is_gone_afterwards() -> None:
    other = dataclasses.replace(INFO, name="other", pipeline="Other")
    with registered(DiffusersFamily(other, LAYOUT, ToyModel)):
        assert "other" in FAMILIES and "other" in FAMILY_INFO
    assert "other" not in FAMILIES and "other" not in FAMILY_INFO
