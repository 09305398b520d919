"""Flags that come from elsewhere, and what --help shows."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scdpo_core.config.convert import to_dict
from scdpo_core.config.foreign_flags import FOREIGN
from scdpo_core.config.settings import TrainSettings, load_toml
from scdpo_core.types import ScdpoError

PROGRAM = Path(__file__).resolve().parents[2] / "trainer" / "train_lora.py"


@pytest.fixture(scope="module", name="door")
def _door() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_lora_flags_under_test", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_flags_of_other_trainers_and_flags_given_twice_are_explained(
    door: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = {key.replace("_", "-") for section in to_dict(TrainSettings()).values() for key in section}
    assert not ours & set(FOREIGN)
    wrong = ["--train_data_dir", "x", "--network_dim=8", "--xformers", "--pairs", "a", "--pairs", "b"]
    assert door.main(wrong) == 2
    told = capsys.readouterr().err
    assert "There is no --train-data-dir here: it is --pairs." in told
    assert "There is no --network-dim here: it is --rank." in told
    assert "There is no --xformers here, and none is needed: torch's own attention is used." in told
    assert "--pairs is given 2 times, where only the last counts. Give further f" in told


def test_help_shows_the_defaults_of_no_model_in_particular(
    door: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.settings_before_flags(["--help"]) == TrainSettings()
    micro = load_toml(PROGRAM.parent / "configs" / "micro.toml")
    assert door.settings_before_flags(["--help", "--base", "micro"]) == micro


def test_prompts_of_samples_may_lie_in_a_file(door: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a cat\n\na dog, running\n", "utf-8")
    settings = door.parse(["--sample-prompts", str(tmp_path / "mine.txt"), "a bird"]).settings
    assert settings.sampling.sample_prompts == ("a cat", "a dog, running", "a bird")
    with pytest.raises(ScdpoError, match=r"none\.txt cannot be read"):
        door.parse(["--sample-prompts", str(tmp_path / "none.txt")])
