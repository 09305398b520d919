"""Every JSON file of a runs root, damaged in many ways: an answer or a sentence, never a traceback."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from scdpo_core.panels import run as panel
from scdpo_core.run_store import folder as names
from scdpo_core.run_store.events import Done, Estimated, EventLog, Progress, Sample, Saved, Started, Validated
from scdpo_core.run_store.process import ProcessId
from scdpo_core.run_store.state import last_words, state_of
from scdpo_core.runs import summary
from scdpo_core.runs.comparison import RESULT, Cell, Comparison, defaults_of, read_comparison, read_result
from scdpo_core.runs.follow import Follower
from scdpo_core.runs.install_result import MARK, installed
from scdpo_core.runs.queue import ACTIVE, WAITING, Queue
from scdpo_core.types import ScdpoError
from tests.support.runs_helpers import PYTHON, make_run

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1 << 70, 0.5, -1e308, 1e308, float("nan"), float("inf")),
    *("", "x", "\0", "\ud800", "../../etc", "/etc/passwd", "9" * 400, [], [[]], {}, {"a": 1}, [None] * 3),
)


def mutations(value: Any, count: int, seed: int) -> Iterator[str]:
    """The value as JSON with something replaced, left out, added or cut off."""
    dice = random.Random(seed)
    for _ in range(count):
        changed = copy.deepcopy(value)
        places = list(_places(changed))
        holder, key = dice.choice(places)
        act = dice.randrange(4)
        if act == 0 and isinstance(holder, dict):
            del holder[key]
        elif act == 1 and isinstance(holder, list):
            holder.insert(key, dice.choice(ODD))
        else:
            holder[key] = copy.deepcopy(dice.choice(ODD))
        text = json.dumps(changed if dice.randrange(20) else dice.choice(ODD))
        yield text[: dice.randrange(len(text))] if dice.randrange(20) == 0 and text else text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def survives(act: Callable[[], object]) -> None:
    """An answer, or a sentence."""
    try:
        act()
    except ScdpoError as error:
        assert len(str(error)) > 20


def launched(folder: Path) -> dict[str, Any]:
    return asdict(names.Launch(ProcessId(os.getpid(), "another"), 0, 0))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "runs", "calm")
    log = EventLog(folder / names.EVENTS)
    log(Started("calm", 1, 0, 10, 3, "cpu", "0123"))
    log(Estimated(1, None, 2.0))
    log(Progress("train", 3, 10, {"loss": 0.5, "u": None}, 2.0, 3.5))
    log(Validated(3, 2, {"u": 0.5}))
    log(Sample(3, "samples/0.png", "a cat", 0, 0.25))
    log(Saved(3, "calm.safetensors", "lora"))
    log(Done("finished", 10, "calm.safetensors", 1.5))
    return folder


def test_the_queue(run: Path) -> None:
    root = run.parent
    queue = Queue(root, begin=lambda folder, python, resume: (_ for _ in ()).throw(ScdpoError("not now")))
    files = {
        ACTIVE: {"run": str(run), "process": {"pid": 4, "token": "x"}},
        WAITING: {"waiting": [{"run": str(run), "resume": False}, {"run": "/gone", "resume": True}]},
    }
    for name, value in files.items():
        for text in mutations(value, 300, 1):
            (root / name).write_text(text, "utf-8")
            for act in (queue.view, lambda: queue.remove(run), lambda: queue.move(run, 1)):
                survives(act)
            survives(lambda: queue.pump(PYTHON))
        (root / name).unlink()
    # The one that was seen: a pid of letters.
    (root / ACTIVE).write_text('{"run": "/x", "process": {"pid": "four", "token": "x"}}', "utf-8")
    with pytest.raises(ScdpoError, match=r"active.json is damaged \(process.pid is not a whole number\)"):
        queue.view()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (names.KIND, {"trains": "cost"}),
        (names.LAUNCH, {"process": {"pid": 4, "token": "x"}, "events_from": 0, "log_from": 0}),
    ],
)
def test_the_records_of_a_run(run: Path, name: str, value: dict[str, Any]) -> None:
    for text in mutations(value, 300, 2):
        (run / name).write_text(text, "utf-8")
        for act in (names.kind_of, names.launch_of, state_of, last_words):
            survives(lambda act=act: act(run))


def test_the_log(run: Path) -> None:
    lines = [json.loads(line) for line in (run / names.EVENTS).read_text("utf-8").splitlines()]
    for number, line in enumerate(lines):
        for text in mutations(line, 60, number):
            before = [json.dumps(other) for other in lines[:number]]
            after = [json.dumps(other) for other in lines[number + 1 :]]
            (run / names.EVENTS).write_text("\n".join([*before, text, *after]) + "\n", "utf-8")

            def look() -> None:
                view = Follower(run).view()
                told = (summary.now(view), summary.report(view), panel.status(view), panel.curves(view))
                assert all(isinstance(part, str) for part in told)
                view.seconds_left()

            survives(look)


def test_a_comparison_and_where_a_lora_was_put(run: Path, tmp_path: Path) -> None:
    cell = Cell("a cat", 0, 0.5, "samples/0.png", -1.5, "safe", 1.0)
    for text in mutations(asdict(Comparison("calm", "micro", "x@0", (cell, cell))), 300, 3):
        (run / RESULT).write_text(text, "utf-8")
        found = read_result(run)
        assert found is None or all(isinstance(one.cost, float) for one in found.cells)
    for text in mutations({"path": str(tmp_path), "sha256": "0"}, 200, 4):
        (run / MARK).write_text(text, "utf-8")
        installed(run)


def test_settings_that_are_read_back(run: Path) -> None:
    import tomli_w

    compare = {
        "lora": "/a",
        "base": "micro",
        "output": "/b",
        "name": "x",
        "prompts": ["a"],
        "weights": [0.0, 1],
        "cost_model": "micro",
        "seed": 0,
        "steps": 20,
        "guidance": 5.0,
    }
    train = {"model": {"base": "micro"}, "data": {"pairs": "/p"}, "sampling": {"sample_steps": 4}}
    for value, read in (
        (compare, lambda: read_comparison(run / names.JOB)),
        (train, lambda: defaults_of(run)),
    ):
        for text in mutations(value, 200, 5):
            try:
                told = tomli_w.dumps(json.loads(text))
                (run / names.JOB).write_text(told, "utf-8")
            except (TypeError, ValueError, AttributeError):  # what TOML cannot say
                continue
            survives(read)
