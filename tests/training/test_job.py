"""A whole job, from a folder of pairs to a LoRA: what it leaves, and what it says when it cannot."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scdpo_core.config.settings import TrainSettings, config_hash, load_toml
from scdpo_core.io.files import read_tensors
from scdpo_core.lora.file import load_lora
from scdpo_core.run_store.events import (
    Done,
    Event,
    Failed,
    Progress,
    Sample,
    Saved,
    Started,
    Warned,
    read_events,
)
from scdpo_core.run_store.folder import checkpoint_steps
from scdpo_core.training import labels
from scdpo_core.training.job import run_job
from scdpo_core.training.plots import series
from scdpo_core.types import CostScore, ScdpoError
from tests.support.tiny import tiny_pairs, tiny_sd_folder, tiny_settings


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "my pairs")


def events_of(folder: Path) -> list[Event]:
    return [record.event for record in read_events(folder / "events.jsonl")]


def samples_at(folder: Path, step: int) -> list[Path]:
    return sorted((folder / "samples").glob(f"step-{step:06d}-*"))


@dataclasses.dataclass
class Redness:
    """A scorer of the test's own: images of more red than 64 * zero are harmful."""

    id = "redness"
    hash = "0123456789ab"
    categories = ("weapon",)

    def __init__(self, zero: float = 2.0) -> None:
        self.zero = zero

    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        reds = [float(image.getpixel((0, 15))[0]) for image in images]  # type: ignore[index]
        return [CostScore(red / 64 - self.zero, {"weapon": None}, self.id, self.hash) for red in reds]


def test_a_run_leaves_everything_that_doors_look_for(base: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "my lora"
    settings = tiny_settings(base, pairs, out, max_train_steps=5, samples=2, sample_every=2)
    heard: list[Event] = []
    result = run_job(settings, listen=heard.append)

    assert (result.outcome.reason, result.outcome.step, result.folder) == ("finished", 5, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "cache", "checkpoints", "curves.png", "events.jsonl", "job.toml", "my lora.json", "my lora.png",
        "my lora.safetensors", "run.lock", "samples",
    ]  # fmt: skip
    assert load_toml(out / "job.toml") == settings
    assert checkpoint_steps(out / "checkpoints") == [4, 5]
    assert len(list((out / "samples").iterdir())) == 2 * 4

    state, info = load_lora(out / "my lora.safetensors")
    assert info.family == "sd1"
    assert info.rank == 2
    assert info.metadata["scdpo_objective"] == "sc_dpo"
    assert info.metadata["scdpo_config_hash"] == config_hash(settings)
    assert info.metadata["scdpo_train_steps"] == "5"
    counts = json.loads(info.metadata["scdpo_categories"])
    assert sum(counts.values()) == int(info.metadata["scdpo_train_pairs"])
    assert any(bool(tensor.any()) for name, tensor in state.items() if name.endswith(".up"))
    tensors, _ = read_tensors(out / "my lora.safetensors")
    assert all(name.startswith("lora_unet_") for name in tensors)
    with Image.open(out / "my lora.png") as card:
        assert card.size == (512, 256)  # 32 x 16, enlarged for a card

    logged = events_of(out)
    assert logged == heard[-len(logged) :]
    assert isinstance(logged[0], Started)
    assert (logged[0].first_step, logged[0].steps, logged[0].pairs) == (0, 5, 6)
    assert [event.step for event in logged if isinstance(event, Sample)] == [0, 0, 2, 2, 4, 4, 5, 5]
    assert [event.what for event in logged if isinstance(event, Saved)][-2:] == ["curves", "lora"]
    assert logged[-1] == Done("finished", 5, "my lora.safetensors", logged[-1].seconds)  # type: ignore[union-attr]
    phases = list(dict.fromkeys(event.phase for event in heard if isinstance(event, Progress)))
    assert phases == ["check", "load", "cache", "sample", "train"]


def test_costs_turn_pairs_round_and_the_report_says_so(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped = tmp_path / "pairs"
    shutil.copytree(pairs, swapped)
    chosen, rejected = (swapped / side / "weapon" / "pair0.png" for side in ("chosen", "rejected"))
    content = chosen.read_bytes()
    chosen.write_bytes(rejected.read_bytes())
    rejected.write_bytes(content)
    monkeypatch.setattr(labels, "load_scorer", lambda *_: Redness())
    settings = tiny_settings(base, swapped, tmp_path / "run", cost_model="micro", max_train_steps=2)
    result = run_job(settings)
    said = [event.message for event in events_of(tmp_path / "run") if isinstance(event, Warned)]
    assert said == [
        "Of 6 pairs the cost model keeps 5, swaps 1 and leaves out 0. relabel.json says which and why."
    ]
    report = json.loads((tmp_path / "run" / "relabel.json").read_text("utf-8"))
    assert report["scorer"] == "redness"
    assert [entry[0] for entry in report["swapped"]] == ["weapon/pair0"]
    assert len(report["kept"]) == 5
    assert result.lora is not None
    assert result.lora.metadata["scdpo_cost_model"] == "redness"
    assert result.lora.metadata["scdpo_cost_model_hash"] == "0123456789ab"
    last = [event for event in events_of(tmp_path / "run") if isinstance(event, Progress)][-1]
    # 40 / 64 - 2 and 200 / 64 - 2.
    assert last.metrics["chosen_cost"] == pytest.approx(-1.375)
    assert last.metrics["rejected_cost"] == pytest.approx(1.125)

    monkeypatch.setattr(labels, "load_scorer", lambda *_: Redness(zero=-1.0))
    with pytest.raises(ScdpoError, match="left no pair"):
        run_job(
            dataclasses.replace(
                settings,
                output=dataclasses.replace(settings.output, output=tmp_path / "none"),
                data=dataclasses.replace(settings.data, both_unsafe="drop"),
            )
        )


def test_everything_wrong_is_said_at_once_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "pairs" / "chosen").mkdir(parents=True)
    settings = tiny_settings(
        tmp_path / "no model", tmp_path / "pairs", tmp_path / "run", lr=0.0, cost_model="nobody.safetensors"
    )
    with pytest.raises(ScdpoError) as caught:
        run_job(settings)
    for part in ("optim.lr", "no model", "nobody.safetensors", "rejected/"):
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_failure_is_the_last_event_of_a_folder_that_a_door_made(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.toml").write_text("", "utf-8")
    settings = tiny_settings(tmp_path / "nowhere", tmp_path / "pairs", tmp_path / "run")
    for _ in range(2):
        with pytest.raises(ScdpoError, match="nowhere"):
            run_job(settings)
    logged = events_of(tmp_path / "run")
    assert [type(event) for event in logged] == [Failed, Failed]
    assert "nowhere" in logged[0].message  # type: ignore[union-attr]


def _output(settings: TrainSettings, path: Path | None) -> TrainSettings:
    return dataclasses.replace(settings, output=dataclasses.replace(settings.output, output=path))


def test_an_output_that_cannot_be_used_is_explained(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(base, pairs, tmp_path / "run")
    (tmp_path / "file").write_text("x", "utf-8")

    def sentence(path: Path | None) -> str:
        with pytest.raises(ScdpoError) as caught:
            run_job(_output(settings, path))
        return str(caught.value)

    assert "Say where the results go" in sentence(None)
    assert "is a file. Give a folder" in sentence(tmp_path / "file")
    assert "is a file" in sentence(tmp_path / "file" / "below")
    assert f"give {tmp_path / 'x'}" in sentence(tmp_path / "x.safetensors")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "may not write" in sentence(tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    assert "nearly full" in sentence(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_results_are_never_overwritten(base: Path, pairs: Path, tmp_path: Path) -> None:
    settings = tiny_settings(base, pairs, tmp_path / "run", max_train_steps=2)
    run_job(settings)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ScdpoError, match="ever overwritten"):
        run_job(settings)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_stop_file_ends_the_run_well_and_a_resume_ends_it_as_if_nothing_had_been(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    def settings(name: str, **changes: Any) -> TrainSettings:
        return tiny_settings(base, pairs, tmp_path / name / "lora", max_train_steps=8, samples=2, **changes)

    whole = run_job(settings("whole"))

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "train":
            (tmp_path / "parts" / "lora" / "stop").touch()

    stopped = run_job(settings("parts"), listen=stop)
    assert stopped.outcome.reason == "stopped"
    # The first report comes after step 2; the stop is seen after the next one at the latest.
    assert 2 <= stopped.outcome.step <= 3
    assert stopped.lora is not None
    assert not (tmp_path / "parts" / "lora" / "stop").exists()
    assert not samples_at(stopped.folder, stopped.outcome.step), "whoever stops a run waits for it"
    done = events_of(stopped.folder)[-1]
    assert isinstance(done, Done)
    assert done.reason == "stopped"

    with pytest.raises(ScdpoError, match=r"optim\.seed: 0 -> 5"):
        run_job(settings("parts", seed=5), resume=True)
    other = tiny_pairs(tmp_path / "other pairs", 4)
    with pytest.raises(ScdpoError, match="pairs have changed"):
        run_job(tiny_settings(base, other, stopped.folder, max_train_steps=8), resume=True)

    (tmp_path / "parts" / "lora" / "stop").touch()
    (tmp_path / "parts" / "lora" / ".lora-abcd1234.safetensors").touch()
    resumed = run_job(settings("parts"), resume=True)
    assert resumed.outcome.reason == "finished"
    assert not list(resumed.folder.glob(".*"))
    assert (resumed.folder / "lora.safetensors").read_bytes() == (
        whole.folder / "lora.safetensors"
    ).read_bytes()
    steps = [step for step, _ in series(read_events(resumed.folder / "events.jsonl"))["loss"]]
    assert steps == sorted(set(steps))
    again = run_job(settings("parts"), resume=True)
    assert again.outcome.step == 8
    assert (again.folder / "lora.safetensors").read_bytes() == (
        whole.folder / "lora.safetensors"
    ).read_bytes()


def test_a_stop_while_the_last_samples_are_drawn_leaves_them_and_keeps_the_lora(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    folder, phases = tmp_path / "run", set()

    def stop(event: Event) -> None:
        if isinstance(event, Progress):
            phases.add(event.phase)
            if event.phase == "sample" and "train" in phases:
                (folder / "stop").touch()

    result = run_job(tiny_settings(base, pairs, folder, max_train_steps=2, samples=2), listen=stop)
    assert (result.outcome.reason, result.outcome.step) == ("finished", 2)
    assert (folder / "run.safetensors").is_file() and not (folder / "stop").exists()
    assert samples_at(folder, 0) and not samples_at(folder, 2)


def test_a_stop_before_the_first_step_leaves_no_lora(base: Path, pairs: Path, tmp_path: Path) -> None:
    begun = (tmp_path / "run" / "job.toml").exists
    result = run_job(tiny_settings(base, pairs, tmp_path / "run"), should_stop=begun)
    assert (result.outcome.step, result.lora) == (0, None)
    assert events_of(tmp_path / "run")[-1].reason == "stopped"  # type: ignore[union-attr]
    # Nothing was trained, so the same command may simply be given again.
    assert run_job(tiny_settings(base, pairs, tmp_path / "run")).outcome.step == 6
