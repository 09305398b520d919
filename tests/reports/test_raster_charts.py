"""Charts and samples as images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from scdpo_core.reports.curves import Points
from scdpo_core.reports.raster_charts import (
    HISTOGRAM_COLOURS,
    cost_histogram,
    sample_sheet,
    training_board,
    training_curves,
)
from scdpo_core.run_store.events import Sample

RISING: Points = tuple((step, step / 100) for step in range(1, 101))
FALLING: Points = tuple((step, 1.0 - step / 100) for step in range(1, 101))
CURVES = {"loss": FALLING, "implicit_accuracy": RISING, "winner_gap": FALLING, "loser_gap": RISING}
BLUE, RED = (20, 110, 190), (183, 28, 28)


def test_bars_stand_where_the_costs_are() -> None:
    # From -5 to 5, in steps of a half: 20 places on 690 pixels.
    image = cost_histogram([("before", [3.2, 3.3, -3.2]), ("after", [-3.2])], (718, 420))
    before, after = HISTOGRAM_COLOURS[:2]
    columns = {
        colour: {x for x in range(718) for y in range(30, 380) if image.getpixel((x, y)) == colour}
        for colour in (before, after)
    }

    def bar(cost: float) -> int:
        return round(14 + 690 * (cost + 5) / 10)

    assert {bar(3.25), bar(-3.25)} <= columns[before]
    assert bar(-3.25) in columns[after] and bar(3.25) not in columns[after]
    assert bar(1.25) not in columns[before]


def test_one_cost_is_enough_for_a_histogram() -> None:
    assert cost_histogram([("all", [0.0])]).size == (720, 420)
    assert cost_histogram([("all", [16.1]), ("none", [])]).size == (720, 420)


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
    image = training_curves({"loss": FALLING}, 100, (400, 200))
    assert image.size == (400, 200)
    line = {x: max(rows) for x, rows in columns_of(image, BLUE).items() if max(rows) > 50}
    first, last = min(line), max(line)
    assert line[first] < 60 and line[last] > 150
    assert last > 380


def test_what_is_above_zero_stands_above_what_is_below(tmp_path: Path) -> None:
    gaps = {"winner_gap": tuple((k, -v) for k, v in RISING), "loser_gap": RISING}
    image = training_curves(gaps, 400, (400, 200))
    chosen, rejected = ({x: rows[-1] for x, rows in columns_of(image, c).items()} for c in (BLUE, RED))
    assert chosen[max(chosen)] > rejected[max(rejected)] + 60


def test_a_run_without_a_step_says_so(tmp_path: Path) -> None:
    assert training_curves({}, 400).size == (960, 320)
    assert sample_sheet(()) is None


@pytest.mark.parametrize("curve", [((1, 0.0),), ((1, 2.0), (2, 2.0)), ((1, float("inf")), (2, 1.0))])
def test_odd_curves_are_drawn(tmp_path: Path, curve: Points) -> None:
    assert training_curves({"loss": curve}, 400).getextrema() != ((250, 250),) * 3


def test_samples_are_before_and_now(tmp_path: Path) -> None:
    sheet = sample_sheet(drawn(tmp_path, 0, 50, 100), side=64)
    assert sheet is not None and sheet.size == (2 * 66 + 2, 2 * (14 + 64 + 2) + 2)
    # The first row is of step 0, the second of step 100; an image of half the height lies in the middle.
    assert sheet.getpixel((34, 2 + 14 + 32)) == (0, 0, 0)
    assert sheet.getpixel((34, 2 + 80 + 14 + 32)) == (100, 0, 0)
    assert sheet.getpixel((34 + 66, 2 + 80 + 14 + 32)) == (100, 100, 0)


def test_a_sample_that_is_gone_is_grey(tmp_path: Path) -> None:
    found = drawn(tmp_path, 0)
    Path(found[0].path).unlink()
    sheet = sample_sheet(found, side=64)
    assert sheet is not None and sheet.getpixel((34, 40)) == (212, 215, 219)


def test_a_board_has_samples_above_and_curves_below(tmp_path: Path) -> None:
    whole = training_board(CURVES, 400, drawn(tmp_path, 0))
    sheet = sample_sheet(drawn(tmp_path, 0))
    assert sheet is not None
    assert whole.size == (768, sheet.height + 256)
    assert training_board(CURVES, 400, ()).size == (960, 320)


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
    assert training_curves(curves_of_all, 400, (600, 200)).size == (600, 400)
    terms = {name: curves_of_all[name] for name in ("loss", "redirect", "keep", "keep_empty", "keep_text")}
    image = training_curves(terms, 400, (600, 200))
    assert image.size == (600, 200)
    # The third name of the keep terms does not fit beside the others: it stands in a line of its own, within
    # the last third of the image.
    green = columns_of(image, (27, 120, 55))
    assert min(green) >= 400


def test_a_chart_shows_the_level_that_means_nothing_was_learnt(tmp_path: Path) -> None:
    high = tuple((step, 4.0 + step / 100) for step in range(1, 101))
    image = training_curves({"keep": high}, 400, (400, 200))
    # From 0 to 5: the curve stays in the upper quarter, the level at the very bottom.
    line = [y for rows in columns_of(image, BLUE).values() for y in rows if y > 50]
    level = [y for rows in columns_of(image, (96, 102, 110)).values() for y in rows]
    assert max(line) < 110 < 150 < max(level)
