"""Logs read while they grow, and what a door shows of a run."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdpo_core.run_store.events import (
    Done,
    Estimated,
    Event,
    EventLog,
    Failed,
    Progress,
    Record,
    Sample,
    Saved,
    Started,
    Validated,
    Warned,
)
from scdpo_core.runs import follow
from scdpo_core.runs.follow import EventReader, Follower, RunView, after

FOLDER = Path("/runs/r")


def started(first: int = 0, steps: int = 100) -> Started:
    return Started("r", 1, first, steps, 7, "cpu", "")


def train(step: int, loss: float | None = None, left: float | None = None) -> Progress:
    return Progress("train", step, 100, {} if loss is None else {"loss": loss}, 2.0, left)


def view_of(*events: Event) -> RunView:
    view = RunView("r", "running")
    for number, event in enumerate(events):
        view = after(view, Record(1000.0 + number, event), FOLDER)
    return view


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert reader.new() == ([], False)
    EventLog(path)(Warned("ä" * 100))
    whole = path.read_bytes()
    path.write_bytes(whole[:60])  # in the middle of a letter
    assert reader.new() == ([], False)
    path.write_bytes(whole)
    (record,), anew = reader.new()
    assert record.event == Warned("ä" * 100) and not anew
    assert reader.new() == ([], False)


def test_a_log_begun_anew_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    for message in ("one", "two"):
        EventLog(path)(Warned(message))
    assert len(reader.new()[0]) == 2
    path.unlink()
    # As long as the old one or longer: its size alone tells nothing.
    for number in range(4):
        time.sleep(0.002)
        EventLog(path)(Warned(f"new {number}"))
    records, anew = reader.new()
    assert [record.event for record in records] == [Warned(f"new {number}") for number in range(4)] and anew
    path.write_bytes(b"")
    assert reader.new() == ([], True)
    path.unlink()
    assert reader.new() == ([], False)


@given(st.lists(st.text(max_size=40), max_size=12), st.integers(1, 200))
def test_any_cut_of_a_log_gives_the_same_events(texts: list[str], chunk: int) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as place:
        source, path = Path(place) / "source", Path(place) / "events.jsonl"
        for text in texts:
            EventLog(source)(Warned(text))
        data = source.read_bytes() if texts else b""
        reader, seen = EventReader(path), []
        for begin in range(0, len(data), chunk):
            with path.open("ab") as stream:
                stream.write(data[begin : begin + chunk])
            records, anew = reader.new()
            assert not anew
            seen += [record.event for record in records]
        assert seen == [Warned(text) for text in texts]


def test_what_a_door_shows() -> None:
    view = view_of(
        started(),
        Progress("cache", 3, 7),
        Sample(0, "samples/0.png", "a cat", 5),
        train(10, 0.7, left=45.0),
        Warned("odd"),
        Saved(10, "checkpoints/10.state.safetensors", "checkpoint"),
        train(20, None, left=40.0),
    )
    assert (view.phase, view.step, view.total, view.trained, view.steps) == ("train", 20, 100, 20, 100)
    assert view.curves == {"loss": ((10, 0.7),)}
    assert view.samples == (Sample(0, str(FOLDER / "samples/0.png"), "a cat", 5),)
    assert view.warnings == ("odd",) and view.pairs == 7 and view.share == 0.2
    # The last report was event 6, at 1006: 40 seconds later is 1046.
    assert view.ends == 1046.0 and view.seconds_left(1016.0) == 30.0 and view.seconds_left(2000.0) == 0.0
    assert view.files == {"checkpoint": FOLDER / "checkpoints/10.state.safetensors"} and view.result is None
    finished = view_of(
        started(), train(100), Saved(100, "r.safetensors", "lora"), Done("finished", 100, "r.safetensors", 9)
    )
    assert finished.result == FOLDER / "r.safetensors" and finished.seconds_left() is None


def test_a_cost_model_is_a_result() -> None:
    assert view_of(started(), Saved(9, "c.safetensors", "cost")).result == FOLDER / "c.safetensors"


def test_resuming_forgets_what_is_done_again() -> None:
    before = [
        started(),
        Sample(0, "a.png", "", 0),
        train(50, 0.5),
        Sample(50, "b.png", "", 0),
        train(60, 0.4),
    ]
    view = view_of(*before, Failed("full"), started(first=50), train(60, 0.3))
    assert view.curves == {"loss": ((50, 0.5), (60, 0.3))}
    assert [sample.step for sample in view.samples] == [0, 50]
    assert view_of(*before, started(first=50)).trained == 50
    again = view_of(*before, started())
    assert again.curves == {} and again.samples == () and again.trained == 0


def test_figures_of_held_out_pairs_are_curves_of_their_own() -> None:
    looks = [Validated(3, 2, {"accuracy": 0.5, "u": None}), Validated(6, 2, {"accuracy": 0.75})]
    view = view_of(started(), train(3, 0.5), looks[0], train(6, 0.4), looks[1])
    assert view.curves == {
        "loss": ((3, 0.5), (6, 0.4)),
        "held_out_accuracy": ((3, 0.5), (6, 0.75)),
    }


def test_what_training_will_need_is_known_before_its_first_step() -> None:
    view = view_of(started(), Progress("cache", 7, 7), Estimated(3 << 30, 8 << 30, 600.0))
    # The last event came at 1002.
    assert (view.memory, view.available, view.ends) == (3 << 30, 8 << 30, 1602.0)
    later = view_of(started(), Estimated(3 << 30, None, 600.0), train(1, 0.5, left=90.0))
    assert (later.memory, later.available, later.ends) == (3 << 30, None, 1092.0)


def test_curves_keep_a_size_their_ends_and_their_evenness() -> None:
    view = view_of(started(), *(train(step, 1.0 / step) for step in range(1, 1201)))
    curve = view.curves["loss"]
    assert len(curve) == follow.MOST_POINTS
    assert curve[0] == (1, 1.0) and curve[-1] == (1200, 1.0 / 1200)
    gaps = [right[0] - left[0] for left, right in pairwise(curve)]
    # 1,200 steps over 511 gaps are 2.3 each.
    assert min(gaps) >= 1 and max(gaps) <= 5


def test_samples_and_warnings_keep_a_size() -> None:
    many = [Warned(str(number)) for number in range(60)]
    view = view_of(started(), *many, *(Sample(step, f"{step}.png", "", 0) for step in range(300)))
    assert len(view.warnings) == follow.MOST_WARNINGS and view.warnings[-1] == "59"
    assert len(view.samples) == follow.MOST_SAMPLES and view.samples[-1].step == 299


def test_following_a_folder(tmp_path: Path) -> None:
    (tmp_path / "job.toml").touch()
    follower = Follower(tmp_path)
    assert (follower.view().state, follower.view().phase) == ("queued", "start")
    log = EventLog(tmp_path / "events.jsonl")
    log(Started("r", os.getpid(), 0, 10, 7, "cpu", ""))
    log(train(5, 0.5, left=30))
    view = follower.view()
    assert view.state == "running" and view.trained == 5 and 0 < (view.seconds_left() or 0) <= 30
    log(Failed("The disk is full."))
    (tmp_path / "events.jsonl").write_bytes(
        (tmp_path / "events.jsonl").read_bytes().replace(f'"pid": {os.getpid()}'.encode(), b'"pid": 0')
    )
    view = Follower(tmp_path).view()
    assert (view.state, view.message, view.seconds_left()) == ("failed", "The disk is full.", None)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../other/secret.png", "samples/../../x.png", "C:\\x.png"]
)
def test_a_log_shows_nothing_from_outside_its_folder(path: str) -> None:
    view = view_of(
        started(),
        Sample(0, path, "a cat", 5),
        Saved(9, path, "report"),
        Saved(9, path, "lora"),
        Done("finished", 9, path, 1.0),
    )
    assert (view.samples, view.files, view.result) == ((), {}, None)
