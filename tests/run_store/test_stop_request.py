"""Asking to stop while a job looks at the images, which takes minutes for large folders."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scdpo_core.io import images
from scdpo_core.io.images import inspect_images
from scdpo_core.run_store.events import Done, Event, Progress, Sample, read_events
from scdpo_core.training.job import run_job
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_pairs, tiny_sd_folder, tiny_settings


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "my pairs")


def last_of(folder: Path) -> Event:
    return [record.event for record in read_events(folder / "events.jsonl")][-1]


def at_the_first_image(do: Callable[[], None]) -> Callable[[Event], None]:
    """Listens to a job, and does something once it looks at its files; known images are passed over."""
    done: list[bool] = []

    def listen(event: Event) -> None:
        if isinstance(event, Progress) and event.phase in ("check", "load") and not done:
            done.append(True)
            do()

    return listen


def test_the_caller_stops_the_checks_and_nothing_is_left(base: Path, pairs: Path, tmp_path: Path) -> None:
    heard: list[Event] = []
    result = run_job(
        tiny_settings(base, pairs, tmp_path / "run"), listen=heard.append, should_stop=lambda: True
    )
    assert (result.outcome.reason, result.outcome.step, result.lora) == ("stopped", 0, None)
    assert [event.reason for event in heard if isinstance(event, Done)] == ["stopped"]
    assert not (tmp_path / "run").exists()


def test_a_stop_is_heard_even_where_no_output_was_named(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stop").touch()
    settings = tiny_settings(base, pairs, None)  # type: ignore[arg-type]
    # The file of that name in the current folder is the artist's.
    with pytest.raises(ScdpoError, match="Say where the results go"):
        run_job(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["stop"]


def test_a_file_stops_the_checks_of_a_run_that_a_door_began(base: Path, pairs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "job.toml").write_text("# the door's", "utf-8")
    result = run_job(tiny_settings(base, pairs, run), listen=at_the_first_image((run / "stop").touch))
    assert result.outcome.reason == "stopped"
    ended = last_of(run)
    assert isinstance(ended, Done) and (ended.reason, ended.step) == ("stopped", 0)
    assert sorted(path.name for path in run.iterdir()) == ["events.jsonl", "job.toml", "run.lock"]
    assert (run / "job.toml").read_text("utf-8") == "# the door's"
    assert run_job(tiny_settings(base, pairs, run, max_train_steps=2), resume=True).outcome.step == 2


def test_an_old_file_asks_nobody_and_a_new_one_ends_a_resumed_run_where_it_was(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_job(tiny_settings(base, pairs, run, max_train_steps=2))
    lora = (run / "run.safetensors").read_bytes()
    settings = tiny_settings(base, pairs, run, max_train_steps=4)
    (run / "stop").touch()

    def again() -> None:
        # Some file systems count time in large steps.
        (run / "stop").unlink()
        time.sleep(0.02)
        (run / "stop").touch()

    stopped = run_job(settings, resume=True, listen=at_the_first_image(again))
    assert (stopped.outcome.reason, stopped.outcome.step) == ("stopped", 2)
    ended = last_of(run)
    # It was stopped before the folder was known to be its own: the log is that of the finished run.
    assert isinstance(ended, Done) and (ended.reason, ended.step) == ("finished", 2)
    assert (run / "run.safetensors").read_bytes() == lora and not (run / "stop").exists()

    (run / "stop").touch()
    assert run_job(settings, resume=True).outcome.step == 4
    assert not (run / "stop").exists()


def test_the_file_of_a_finished_run_that_is_refused_stays(base: Path, pairs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = tiny_settings(base, pairs, run, max_train_steps=2)
    run_job(settings)
    (run / "stop").touch()
    log = (run / "events.jsonl").read_bytes()
    with pytest.raises(ScdpoError, match="ever overwritten"):
        run_job(settings)
    assert (run / "stop").exists() and (run / "events.jsonl").read_bytes() == log


def test_whoever_stops_does_not_wait_for_the_images_that_are_left(
    pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, looked = images.open_image, []

    def slow(path: Path) -> object:
        looked.append(path)
        time.sleep(0.01)
        return real(path)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "open_image", slow)
    files = sorted(pairs.rglob("*.png")) * 50
    with pytest.raises(KeyboardInterrupt):
        inspect_images(files, stop)
    assert len(files) == 600 and len(looked) < 100


@pytest.mark.parametrize(("before", "step"), [(None, 0), (2, 3)])
def test_a_stop_is_heard_while_samples_are_drawn(
    base: Path, pairs: Path, tmp_path: Path, before: int | None, step: int
) -> None:
    """Large ones take minutes on a processor: those before the training, and those after its second step."""
    settings = tiny_settings(
        base,
        pairs,
        tmp_path / "run",
        max_train_steps=9,
        log_every=1,
        samples=2,
        sample_steps=50,
        sample_every=2,
    )
    heard: list[Event] = []
    asked: list[bool] = []

    def listen(event: Event) -> None:
        heard.append(event)
        trained = max((e.step for e in heard if isinstance(e, Progress) and e.phase == "train"), default=None)
        if isinstance(event, Progress) and event.phase == "sample" and trained == before:
            asked.append(True)

    result = run_job(settings, listen=listen, should_stop=lambda: bool(asked))
    assert (result.outcome.reason, result.outcome.step) == ("stopped", step)
    drawn = {event.step for event in heard if isinstance(event, Sample)}
    assert drawn == (set() if before is None else {0})
