"""A run in words."""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args

from scdpo_core.reports.metrics import PHASES, STATES
from scdpo_core.run_store.events import Phase
from scdpo_core.run_store.state import State
from scdpo_core.runs.follow import Curve, RunView
from scdpo_core.runs.summary import latest, now, report

RISING: Curve = tuple((step, step / 100) for step in range(1, 101))
FALLING: Curve = tuple((step, 1.0 - step / 100) for step in range(1, 101))


def view(tmp_path: Path, **changes: object) -> RunView:
    values: dict[str, object] = {
        "phase": "train",
        "step": 100,
        "total": 400,
        "trained": 100,
        "steps": 400,
        "pairs": 60,
        "device": "cpu",
        "curves": {"loss": FALLING, "implicit_accuracy": RISING, "winner_gap": FALLING, "loser_gap": RISING},
        **changes,
    }
    return RunView("my lora", values.pop("state", "running"), **values)  # type: ignore[arg-type]


def test_words_while_it_trains(tmp_path: Path) -> None:
    running = view(tmp_path, ends=time.time() + 125.4, warnings=("old", "An image is odd."))
    assert now(running) == (
        "my lora: training: step 100 of 400, 2 min 5 s left\n"
        "loss 0, accuracy 1\n"
        "chosen gap 0, rejected gap 1\n"
        "Note: An image is odd."
    )
    assert "saving, then stopping" in now(view(tmp_path, state="stopping"))
    assert now(view(tmp_path, phase="cache", step=3, total=9, curves={})) == (
        "my lora: encoding the images: 3 of 9"
    )
    assert now(view(tmp_path, phase="load", step=0, total=1, curves={})) == "my lora: loading the model"
    assert now(view(tmp_path, state="stopped")) == "my lora was stopped and can be resumed."


def test_words_at_the_end(tmp_path: Path) -> None:
    done = view(
        tmp_path,
        state="finished",
        warnings=("An image is odd.",),
        files={"checkpoint": Path("c"), "report": Path("relabel.json")},
    )
    assert report(done).splitlines() == [
        "my lora is finished.",
        "Steps: 100 of 400, from 60 examples, on cpu.",
        "At the end: loss 0, accuracy 1, chosen gap 0, rejected gap 1.",
        # The last fifth of a hundred steps: .81 to 1, .19 to 0 and .81 to 1; means .905, .095 and .905.
        "Accuracy: the chosen image is preferred in 90 % of the pairs; look at the samples as well.",
        "Chosen: the error on chosen images is 0.095 above the base model's.",
        "Rejected: the error on rejected images is 0.9 above the base model's.",
        "Note: An image is odd.",
        "Report: relabel.json",
    ]
    failed = view(tmp_path, state="failed", message="The disk is full.", curves={}, trained=0)
    assert report(failed) == "my lora has failed.\nThe disk is full."
    assert latest(failed) == ""


def test_every_phase_and_state_has_words() -> None:
    assert set(PHASES) == {"start", *get_args(Phase)}
    assert set(STATES) == set(get_args(State))
