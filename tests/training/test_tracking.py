"""TensorBoard and wandb, fed from events: what arrives there, and that neither can end a run."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scdpo_core.run_store.events import Done, Event, Progress, Sample, Validated, Warned
from scdpo_core.training.job import run_job
from scdpo_core.training.tracking import TRACKERS, WANDB, Tracking, start_tracking
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_pairs, tiny_sd_folder, tiny_settings


class Recorder:
    """A tracker of the test's own."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.heard.append((step, dict(values)))

    def image(self, step: int, name: str, path: Path) -> None:
        self.heard.append((step, name, path))

    def close(self) -> None:
        self.heard.append("closed")


class Broken(Recorder):
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        raise OSError("the network is gone")


def test_events_become_figures_and_images(tmp_path: Path) -> None:
    recorder = Recorder()
    tracking = Tracking([recorder], tmp_path, lambda event: None)
    tracking(Progress("load", 1, 1))
    tracking(Progress("train", 4, 9, {"loss": 0.5, "u": None}, 2.0, 3.0))
    tracking(Validated(4, 2, {"accuracy": 0.5}))
    tracking(Sample(4, "samples/a.png", "a prompt", 1, -0.5))
    tracking(Done("finished", 9, "x", 1.0))
    tracking(Progress("train", 5, 9, {"loss": 0.5}))
    assert recorder.heard == [
        (4, {"train/loss": 0.5, "train/steps_per_second": 2.0}),
        (4, {"validation/accuracy": 0.5}),
        (4, "samples/1", tmp_path / "samples/a.png"),
        (4, {"cost/1": -0.5}),
        "closed",
    ]


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[Event] = []
    recorder = Recorder()
    tracking = Tracking([Broken(), recorder], tmp_path, said.append)
    for step in (1, 2):
        tracking(Progress("train", step, 2, {"loss": 1.0}))
    assert len(recorder.heard) == 2
    assert said == [
        Warned("Broken failed (the network is gone) and gets no more figures; the training goes on.")
    ]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ScdpoError, match=rf"--track {name} needs.*'\.\[{name}\]'"):
        start_tracking([name], tmp_path, lambda event: None)
    assert set(TRACKERS) == {"tensorboard", "wandb"}


def test_tensorboard_reads_what_a_run_wrote(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    base, pairs = tiny_sd_folder(tmp_path / "base"), tiny_pairs(tmp_path / "pairs", 4)
    settings = tiny_settings(
        base, pairs, tmp_path / "run", track=("tensorboard",), samples=1, max_train_steps=4, validation=0.25,
        validation_every=2,
    )  # fmt: skip
    heard: list[Event] = []
    run_job(settings, listen=heard.append)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    told = [event for event in heard if isinstance(event, Progress) and event.phase == "train"]
    assert losses == [(event.step, pytest.approx(event.metrics["loss"])) for event in told]
    assert [event.step for event in found.Scalars("validation/accuracy")] == [2, 4]
    assert [event.step for event in found.Images("samples/0")] == [0, 4]


def test_wandb_tells_runs_of_one_name_apart_and_goes_on_with_a_folder_that_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    monkeypatch.setitem(
        sys.modules,
        "wandb",
        SimpleNamespace(
            Settings=dict, init=lambda **given: begun.append(given), errors=SimpleNamespace(Error=OSError)
        ),
    )
    one, other = tmp_path / "a" / "lora", tmp_path / "b" / "lora"
    for folder in (one, other):
        folder.mkdir(parents=True)
        start_tracking(["wandb"], folder, lambda event: None)
    moved = one.rename(tmp_path / "moved")
    for folder in (moved, other):
        start_tracking(["wandb"], folder, lambda event: None)
    ids = [each["id"] for each in begun]
    assert ids[0] != ids[1]
    assert ids[2:] == ids[:2]
    # What wandb takes for an id.
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in ids)
    assert [each["name"] for each in begun] == ["lora", "lora", "moved", "lora"]
    # A file that somebody emptied is no id.
    (other / WANDB).write_text("", "utf-8")
    start_tracking(["wandb"], other, lambda event: None)
    assert begun[-1]["id"] == (other / WANDB).read_text("utf-8").strip() != ids[1]
