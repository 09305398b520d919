from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scdpo_core.run_store.state import State, state_of
from scdpo_core.runs.queue import Queue
from scdpo_core.runs.supervisor import Supervisor
from scdpo_core.types import ScdpoError
from tests.support.runs_helpers import PYTHON, begin, make_run, until


class Card:
    """A graphics card that notes who has it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.lock = threading.Lock()

    @contextmanager
    def lend(self, name: str) -> Iterator[None]:
        with self.lock:
            self.log.append(f"free {name}")
            try:
                yield
            finally:
                self.log.append(f"back {name}")


def supervisor(root: Path, card: Card, ended: list[tuple[str, State]]) -> Supervisor:
    return Supervisor(
        root,
        card.lend,
        lambda folder, state: ended.append((folder.name, state)),
        queue=Queue(root, begin),
        python=lambda tell: PYTHON,
        every=0.02,
    )


def test_runs_are_trained_one_after_the_other_and_the_card_goes_back_in_between(tmp_path: Path) -> None:
    card, ended = Card(), list[tuple[str, State]]()
    boss = supervisor(tmp_path, card, ended)
    first, second = (make_run(tmp_path, name, steps=4, pause=0.05) for name in "ab")
    assert boss.add(first) == "'a' starts."
    until(lambda: state_of(first) == "running")
    assert boss.add(second) == "'b' waits until 'a' has ended."
    third = make_run(tmp_path, "c", steps=1)
    assert boss.add(third) == "'c' waits until 'a' and 1 more have ended."
    assert boss.stop(third) == "'c' was removed from the queue."
    assert boss.add(first) == "'a' is already running."
    until(lambda: len(ended) == 2)
    assert ended == [("a", "finished"), ("b", "finished")]
    assert card.log == ["free a", "back a", "free b", "back b"]


def test_a_run_that_is_started_before_add_has_looked_begins(tmp_path: Path) -> None:
    class Fast(Queue):
        def add(self, folder: Path, *, resume: bool = False) -> int:
            place = super().add(folder, resume=resume)
            self.pump(PYTHON)  # as our own thread does when it still looks after the run before
            return place

    boss = Supervisor(tmp_path, queue=Fast(tmp_path, begin), python=lambda tell: PYTHON, every=0.02)
    assert boss.add(make_run(tmp_path, "one", steps=50, pause=0.02)) == "'one' starts."
    boss.stop(tmp_path / "one")
    boss.wait(60)


def test_a_run_that_fails_gives_the_card_back(tmp_path: Path) -> None:
    card, ended = Card(), list[tuple[str, State]]()
    boss = supervisor(tmp_path, card, ended)
    boss.add(make_run(tmp_path, "bad", end="vanish"))
    until(lambda: len(ended) == 1)
    assert ended == [("bad", "interrupted")] and card.log == ["free bad", "back bad"]


def test_a_run_is_stopped_and_resumed(tmp_path: Path) -> None:
    card, ended = Card(), list[tuple[str, State]]()
    boss = supervisor(tmp_path, card, ended)
    run = make_run(tmp_path, "long", steps=400, pause=0.02)
    boss.add(run)
    until(lambda: (run / "trained").exists())
    assert "saves and stops" in boss.stop(run)
    until(lambda: ended == [("long", "stopped")])
    assert boss.stop(run) == "'long' is not running."
    (run / "job.toml").write_text('steps = 3\npause = 0.0\nend = "finish"\n', "utf-8")
    boss.add(run, resume=True)
    until(lambda: ended[-1] == ("long", "finished"))


def test_a_waiting_run_leaves_the_queue(tmp_path: Path) -> None:
    card, ended = Card(), list[tuple[str, State]]()
    boss = supervisor(tmp_path, card, ended)
    long, waits = make_run(tmp_path, "long", steps=400, pause=0.02), make_run(tmp_path, "waits")
    boss.add(long)
    until(lambda: state_of(long) == "running")
    boss.add(waits)
    assert boss.stop(waits) == "'waits' was removed from the queue."
    boss.stop(long)
    until(lambda: ended == [("long", "stopped")])
    boss.wait(5)
    assert not (waits / "events.jsonl").exists()


def test_a_host_that_starts_again_lends_the_card_to_the_run_that_still_works(tmp_path: Path) -> None:
    run = make_run(tmp_path, "on", steps=60, pause=0.05)
    Queue(tmp_path, begin).start(run, PYTHON)
    card, ended = Card(), list[tuple[str, State]]()
    boss = supervisor(tmp_path, card, ended)
    boss.wake()
    until(lambda: card.log == ["free on"])
    assert state_of(run) == "running"
    until(lambda: ended == [("on", "finished")])
    assert card.log == ["free on", "back on"]


def test_a_host_with_nothing_to_do_keeps_its_card(tmp_path: Path) -> None:
    card = Card()
    boss = supervisor(tmp_path, card, [])
    boss.wake()
    boss.wait(10)
    assert card.log == []


def test_without_a_python_nothing_begins_and_the_reason_is_said(tmp_path: Path) -> None:
    def no_python(tell: object) -> None:
        raise ScdpoError("The disk is full.")

    card = Card()
    boss = Supervisor(tmp_path, card.lend, queue=Queue(tmp_path, begin), python=no_python, every=0.02)  # type: ignore[arg-type]
    run = make_run(tmp_path, "a")
    boss.add(run)
    boss.wait(10)
    assert boss.note == "Nothing can be trained: The disk is full."
    assert state_of(run) == "queued" and card.log == []


def test_many_wakes_make_one_supervisor(tmp_path: Path) -> None:
    card, ended = Card(), list[tuple[str, State]]()
    boss = supervisor(tmp_path, card, ended)
    run = make_run(tmp_path, "a", steps=10, pause=0.05)
    boss.add(run)
    for _ in range(20):
        boss.wake()
        time.sleep(0.005)
    until(lambda: len(ended) == 1)
    boss.wait(5)
    assert card.log == ["free a", "back a"]
