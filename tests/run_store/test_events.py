"""The log of events: what goes in comes out, whatever happened to the file in between."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from scdpo_core.run_store.events import (
    KINDS,
    Done,
    Estimated,
    Event,
    EventLog,
    Failed,
    Progress,
    Sample,
    Saved,
    Started,
    Validated,
    Warned,
    last_run,
    read_events,
)

EVENTS: list[Event] = [
    Started("cat", 12, 0, 10, 4, "cpu", "abc"),
    Progress("train", 2, 10, {"loss": 0.5, "chosen_cost": None}, 2.5, 3.0),
    Sample(0, "samples/a.png", "a cät", 3),
    Validated(1, 3, {"accuracy": 0.75, "u": None}),
    Estimated(5_000_000, None, 12.5),
    Saved(2, "checkpoints/x", "checkpoint"),
    Warned("odd"),
    Failed("broken"),
    Done("stopped", 2, "cat.safetensors", 1.5),
]


def test_every_kind_survives_the_log(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "new" / "events.jsonl")
    for event in EVENTS:
        log(event)
    records = list(read_events(log.path))
    assert [record.event for record in records] == EVENTS
    assert {event.kind for event in EVENTS} == set(KINDS)
    assert all(a.time <= b.time for a, b in itertools.pairwise(records))


def test_each_line_is_strict_json_with_time_and_kind(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log(Progress("train", 1, 2, {"loss": math.nan, "u": math.inf}))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    value = json.loads(log.path.read_text("utf-8"), parse_constant=refuse)
    assert value["event"] == "progress"
    assert value["metrics"] == {"loss": None, "u": None}
    assert value["time"] > 1e9


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_cut_off_by_a_crash_costs_nothing_but_itself(tmp_path: Path, cut: int) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log(EVENTS[0])
    log(EVENTS[1])
    log.path.write_bytes(log.path.read_bytes()[:-cut])
    whole = [EVENTS[0]] if cut > 1 else EVENTS[:2]
    assert [record.event for record in read_events(log.path)] == whole
    log(EVENTS[4])
    assert [record.event for record in read_events(log.path)] == [*whole, EVENTS[4]]


def test_a_crash_in_the_middle_of_a_letter_costs_nothing_more(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log(EVENTS[2])
    content = log.path.read_bytes()
    log.path.write_bytes(content[: content.index("ä".encode()) + 1])
    log(EVENTS[4])
    assert [record.event for record in read_events(log.path)] == [EVENTS[4]]


def test_what_a_newer_version_wrote_is_skipped_or_read_as_far_as_known(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [
        {"time": 1, "event": "dreamt", "of": "sheep"},
        {"time": 2, "event": "warning", "message": "m", "colour": "red"},
        {"time": 3, "event": "warning"},
        [],
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    assert [record.event for record in read_events(path)] == [Warned("m")]


def test_no_log_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "none.jsonl")) == []


def test_the_last_run_begins_with_the_last_start(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log(EVENTS[4])
    assert [record.event for record in last_run(log.path)] == [EVENTS[4]]
    for event in (EVENTS[0], EVENTS[1], EVENTS[0], EVENTS[6]):
        log(event)
    assert [record.event for record in last_run(log.path)] == [EVENTS[0], EVENTS[6]]
