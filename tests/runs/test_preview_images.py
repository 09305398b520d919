"""A run in words and images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from scdpo_core.run_store.events import Phase, Sample
from scdpo_core.runs.follow import Curve, RunView
from scdpo_core.runs.preview_images import board, curves, samples
from scdpo_core.runs.summary import PHASES, latest, now, report, spell

RISING: Curve = tuple((step, step / 100) for step in range(1, 101))
FALLING: Curve = tuple((step, 1.0 - step / 100) for step in range(1, 101))
BLUE, RED = (20, 110, 190), (183, 28, 28)


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


def drawn(tmp_path: Path, *steps: int) -> tuple[Sample, ...]:
    found = []
    for step in steps:
        for number in range(2):
            path = tmp_path / f"{step}-{number}.png"
            Image.new("RGB", (32, 16), (step % 256, 100 * number, 0)).save(path)
            found.append(Sample(step, str(path), "a cat", number))
    return tuple(found)


def columns_of(image: Image.Image, colour: tuple[int, int, int]) -> dict[int, list[int]]:
    """x -> rows in which that very colour stands."""
    pixels = image.load()
    assert pixels is not None
    found: dict[int, list[int]] = {}
    for x in range(image.width):
        rows = [y for y in range(image.height) if pixels[x, y] == colour]
        if rows:
            found[x] = rows
    return found


def test_a_falling_loss_falls_in_the_image(tmp_path: Path) -> None:
    image = curves(view(tmp_path, curves={"loss": FALLING}, steps=100), (400, 200))
    assert image.size == (400, 200)
    line = {x: max(rows) for x, rows in columns_of(image, BLUE).items() if max(rows) > 50}
    first, last = min(line), max(line)
    assert line[first] < 60 and line[last] > 150
    assert last > 380


def test_what_is_above_zero_stands_above_what_is_below(tmp_path: Path) -> None:
    gaps = {"winner_gap": tuple((k, -v) for k, v in RISING), "loser_gap": RISING}
    image = curves(view(tmp_path, curves=gaps), (400, 200))
    chosen, rejected = ({x: rows[-1] for x, rows in columns_of(image, c).items()} for c in (BLUE, RED))
    assert chosen[max(chosen)] > rejected[max(rejected)] + 60


def test_a_run_without_a_step_says_so(tmp_path: Path) -> None:
    assert curves(view(tmp_path, curves={})).size == (960, 320)
    assert samples(view(tmp_path)) is None


@pytest.mark.parametrize("curve", [((1, 0.0),), ((1, 2.0), (2, 2.0)), ((1, float("inf")), (2, 1.0))])
def test_odd_curves_are_drawn(tmp_path: Path, curve: Curve) -> None:
    assert curves(view(tmp_path, curves={"loss": curve})).getextrema() != ((250, 250),) * 3


def test_samples_are_before_and_now(tmp_path: Path) -> None:
    sheet = samples(view(tmp_path, samples=drawn(tmp_path, 0, 50, 100)), side=64)
    assert sheet is not None and sheet.size == (2 * 66 + 2, 2 * (14 + 64 + 2) + 2)
    # The first row is of step 0, the second of step 100; an image of half the height lies in the middle.
    assert sheet.getpixel((34, 2 + 14 + 32)) == (0, 0, 0)
    assert sheet.getpixel((34, 2 + 80 + 14 + 32)) == (100, 0, 0)
    assert sheet.getpixel((34 + 66, 2 + 80 + 14 + 32)) == (100, 100, 0)


def test_a_sample_that_is_gone_is_grey(tmp_path: Path) -> None:
    found = drawn(tmp_path, 0)
    Path(found[0].path).unlink()
    sheet = samples(view(tmp_path, samples=found), side=64)
    assert sheet is not None and sheet.getpixel((34, 40)) == (212, 215, 219)


def test_a_board_has_samples_above_and_curves_below(tmp_path: Path) -> None:
    whole = board(view(tmp_path, samples=drawn(tmp_path, 0)))
    sheet = samples(view(tmp_path, samples=drawn(tmp_path, 0)))
    assert sheet is not None
    assert whole.size == (768, sheet.height + 256)
    assert board(view(tmp_path)).size == (960, 320)


def test_words_while_it_trains(tmp_path: Path) -> None:
    running = view(tmp_path, ends=time.time() + 125.4, warnings=("old", "An image is odd."))
    assert now(running) == (
        "my lora: training: step 100 of 400, 2 min 5 s left\n"
        "loss 0, accuracy 1\n"
        "chosen gap 0, rejected gap 1\n"
        "Note: An image is odd."
    )
    assert "saving, then leaving" in now(view(tmp_path, state="stopping"))
    assert now(view(tmp_path, phase="cache", step=3, total=9, curves={})) == (
        "my lora: encoding the images: 3 of 9"
    )
    assert now(view(tmp_path, phase="load", step=0, total=1, curves={})) == "my lora: loading the model"
    assert now(view(tmp_path, state="stopped")) == "my lora was stopped; run it again to go on."


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


@pytest.mark.parametrize(("seconds", "words"), [(3.6, "4 s"), (125, "2 min 5 s"), (7260, "2 h 1 min")])
def test_times_are_spelt(seconds: float, words: str) -> None:
    assert spell(seconds) == words


def test_every_phase_has_words() -> None:
    assert set(PHASES) == {"start", *get_args(Phase)}


def test_many_charts_stand_in_rows_of_three_and_long_legends_in_lines(tmp_path: Path) -> None:
    curves_of_all = {
        "loss": FALLING,
        "redirect": FALLING,
        "keep": RISING,
        "keep_empty": RISING,
        "keep_text": FALLING,
        "preference_loss": FALLING,
        "winner_gap": FALLING,
        "loser_gap": RISING,
    }
    assert curves(view(tmp_path, curves=curves_of_all), (600, 200)).size == (600, 400)
    terms = {name: curves_of_all[name] for name in ("loss", "redirect", "keep", "keep_empty", "keep_text")}
    image = curves(view(tmp_path, curves=terms), (600, 200))
    assert image.size == (600, 200)
    # The third name of the keep terms does not fit beside the others: it stands in a line of its own, within
    # the last third of the image.
    green = columns_of(image, (27, 120, 55))
    assert min(green) >= 400


def test_a_chart_shows_the_level_that_means_nothing_was_learnt(tmp_path: Path) -> None:
    high = tuple((step, 4.0 + step / 100) for step in range(1, 101))
    image = curves(view(tmp_path, curves={"keep": high}), (400, 200))
    # From 0 to 5: the curve stays in the upper quarter, the level at the very bottom.
    line = [y for rows in columns_of(image, BLUE).values() for y in rows if y > 50]
    level = [y for rows in columns_of(image, (96, 102, 110)).values() for y in rows]
    assert max(line) < 110 < 150 < max(level)
