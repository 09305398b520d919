"""Training with blocks that wait in main memory: the same bytes, resumed across, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scdpo_core.config.settings import ModelSettings, TrainSettings, load_toml, to_toml
from scdpo_core.families import FAMILIES
from scdpo_core.families.block_offload import offload_of
from scdpo_core.run_store.events import Event, Warned
from scdpo_core.run_store.folder import checkpoint_steps
from scdpo_core.training import estimate as estimates
from scdpo_core.training.distributed import SingleProcess
from scdpo_core.training.job import run_job
from scdpo_core.training.loading import load_base
from scdpo_core.training.setting_checks import invalid
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_pairs, tiny_settings
from tests.support.tiny_families import tiny_folder
from tests.support.tiny_parts import T5_TOKENS


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "pairs", 4)


def settings_of(family: str, base: Path, pairs: Path, output: Path, **changes: Any) -> TrainSettings:
    own: dict[str, Any] = {"max_train_steps": 2, "lr": 0.05, "save_dtype": "fp32"}
    if FAMILIES[family].name in ("sd3", "flux"):
        own["t5_tokens"] = T5_TOKENS
    return tiny_settings(base, pairs, output, **(own | changes))


def trained(settings: TrainSettings, **job: Any) -> bytes:
    result = run_job(settings, **job)
    assert result.lora is not None
    return result.lora.path.read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_family_trains_to_the_same_bytes(
    family: str, checkpointing: bool, pairs: Path, tmp_path: Path
) -> None:
    base = tiny_folder(family, tmp_path / "base")
    changes = {"gradient_checkpointing": checkpointing, "cache": tmp_path / "cache", "samples": 1}
    plain = trained(settings_of(family, base, pairs, tmp_path / "plain" / "lora", **changes))
    offloaded = trained(
        settings_of(family, base, pairs, tmp_path / "offloaded" / "lora", offload_blocks=99, **changes)
    )
    assert offloaded == plain
    drawn = [sorted((tmp_path / run / "lora" / "samples").glob("*.png")) for run in ("plain", "offloaded")]
    assert len(drawn[0]) == 2
    assert [image.read_bytes() for image in drawn[0]] == [image.read_bytes() for image in drawn[1]]


@pytest.mark.parametrize(
    "changes",
    [
        {"quantize": "int8"},
        {"quantize": "fp8"},
        {"quantize": "nf4"},
        {"precision": "bf16"},
        {"kind": "dora"},
        {"kind": "loha"},
        {"train_text": True},
        {"objective": "redirect_keep", "keep_text": 1.0, "keep_images": 2},
        {"reference_draws": 2},
    ],
)
def test_with_every_other_saving_and_kind(changes: dict[str, Any], pairs: Path, tmp_path: Path) -> None:
    base = tiny_folder("sdxl", tmp_path / "base")
    runs = [
        trained(
            settings_of("sdxl", base, pairs, tmp_path / str(count) / "lora", offload_blocks=count, **changes)
        )
        for count in (0, 3)
    ]
    assert runs[0] == runs[1]


def test_a_run_goes_on_with_another_number_of_blocks(pairs: Path, tmp_path: Path) -> None:
    base = tiny_folder("sd3", tmp_path / "base")
    changes: dict[str, Any] = {"max_train_steps": 4, "checkpoint_every": 2}
    whole = trained(settings_of("sd3", base, pairs, tmp_path / "whole" / "lora", **changes))
    output = tmp_path / "parts" / "lora"
    first = settings_of("sd3", base, pairs, output, offload_blocks=2, **changes)
    run_job(first, should_stop=lambda: bool(checkpoint_steps(output / "checkpoints")))
    model = dataclasses.replace(first.model, offload_blocks=0)
    assert trained(dataclasses.replace(first, model=model), resume=True) == whole


def test_auto_is_corrected_by_the_estimate_and_said(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_folder("sdxl", tmp_path / "base")
    plain = trained(settings_of("sdxl", base, pairs, tmp_path / "plain" / "lora"))
    free = 0
    monkeypatch.setattr("scdpo_core.families.block_offload.free_memory", lambda device: free)
    monkeypatch.setattr(estimates, "free_memory", lambda device: free)
    fit, counts = estimates.fit_blocks, []

    def noted(settings: Any, model: Any, *others: Any) -> Iterator[Event]:
        yield from fit(settings, model, *others)
        offload = offload_of(model.denoiser)
        assert offload is not None
        counts.append((offload.count, offload.total))

    monkeypatch.setattr(estimates, "fit_blocks", noted)
    notes = []
    for free in (2**50, 0):
        events = list[Event]()
        settings = settings_of("sdxl", base, pairs, tmp_path / str(free) / "lora", offload_blocks="auto")
        assert trained(settings, listen=events.append) == plain
        notes.append([event.message for event in events if isinstance(event, Warned)])
    (roomy, total), (full, _) = counts
    assert roomy == 0 and full == total > 2
    sentence = f"{total} of the model's {total} blocks wait in main memory"
    assert not any(sentence in note for note in notes[0]) and any(sentence in note for note in notes[1])


def test_the_settings_file_holds_a_number_or_auto(tmp_path: Path) -> None:
    for value in (12, "auto"):
        settings = TrainSettings(model=ModelSettings(offload_blocks=value))  # type: ignore[arg-type]
        (tmp_path / "job.toml").write_text(to_toml(settings), "utf-8")
        assert load_toml(tmp_path / "job.toml").model.offload_blocks == value
    for wrong in ('"some"', "1.5", "true"):
        (tmp_path / "job.toml").write_text(f"[model]\noffload_blocks = {wrong}\n", "utf-8")
        with pytest.raises(ScdpoError, match=r"'model\.offload_blocks' must be a whole number or 'auto'"):
            load_toml(tmp_path / "job.toml")


def test_what_cannot_be_had_beside_it_is_refused() -> None:
    settings = TrainSettings(model=ModelSettings(offload_blocks=2, compile="blocks"))
    assert any(
        "model.offload_blocks and model.compile do not go together" in each for each in invalid(settings)
    )
    settings = TrainSettings(model=ModelSettings(offload_blocks=-1))
    assert any("model.offload_blocks must be at least 0" in each for each in invalid(settings))
    team = SingleProcess()
    team.sharded = True
    with pytest.raises(ScdpoError, match="--offload-blocks and weights that are spread over several GPUs"):
        load_base(TrainSettings(model=ModelSettings(offload_blocks="auto")), torch.device("cpu"), team)
