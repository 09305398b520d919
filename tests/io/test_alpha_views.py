"""Colours hidden under alpha: every look of an image is judged, and the worst one counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scdpo_core.io.alpha_views import score_views, views, worst
from scdpo_core.io.image_frames import open_frames
from scdpo_core.scoring.run import FolderRun
from scdpo_core.types import CostScore
from tests.support.scoring_helpers import Redness, plain

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def looks(image: Image.Image) -> list[tuple[int, ...]]:
    """The colour of each view's first pixel."""
    return [view.getpixel((0, 0)) for view in views(image)]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "I;16", "F"])
def test_an_opaque_image_has_one_view(mode: str) -> None:
    image = Image.new("I;16", (4, 4)) if mode == "I;16" else Image.new("RGB", (4, 4)).convert(mode)
    assert [view.mode for view in views(image)] == ["RGB"]


def test_text_in_the_lowest_bit_of_the_alpha_is_no_transparency() -> None:
    # Forge writes alpha 254 and 255 into opaque images.
    assert looks(Image.new("RGBA", (4, 4), (*RED, 254))) == [RED]


def test_what_is_transparent_is_seen_on_white_without_alpha_and_on_black() -> None:
    # Nothing to see at alpha 0; with it dropped the red is back.
    assert looks(Image.new("RGBA", (4, 4), (*RED, 0))) == [WHITE, RED, BLACK]
    # A white drawing that only its alpha shows: blank on white and without alpha.
    drawing = Image.new("RGBA", (4, 4), (*WHITE, 0))
    drawing.putpixel((1, 1), (*WHITE, 255))
    assert [view.getpixel((1, 1)) for view in views(drawing)] == [WHITE, WHITE]
    assert looks(drawing) == [WHITE, BLACK]


def test_every_kind_of_transparency_counts() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([*RED, *BLACK])
    palette.info["transparency"] = 0
    assert RED in looks(palette)
    keyed = Image.new("RGB", (4, 4), RED)
    keyed.info["transparency"] = RED
    assert RED in looks(keyed)
    assert (64, 64, 64) in looks(Image.merge("LA", [Image.new("L", (4, 4), 64), Image.new("L", (4, 4), 0)]))
    # 16448 = 64 * 257
    deep = Image.fromarray(np.full((4, 4), 16448, np.uint16))
    deep.info["transparency"] = 16448
    assert looks(deep) == [WHITE, (64, 64, 64), BLACK]


def test_the_worst_look_is_the_score() -> None:
    clear = Image.new("RGBA", (8, 8), (*RED, 0))
    found = score_views(Redness().score, clear)
    # White costs 0, red (255 - 0) / 51 = 5; green is worst on white: 255 / 51 = 5.
    assert (found.value, found.categories) == (5.0, {"red": 5.0, "green": 5.0, "unknown": None})


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_look_without_a_cost_is_the_worst(broken: float) -> None:
    scores = [CostScore(value, {}, "x", "0") for value in (3.0, broken, -1.0)]
    assert worst(scores) is scores[1]


def test_a_file_gives_all_looks_of_a_frame_under_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (4, 4), (*RED, 0)).save(path)
    with path.open("rb") as stream:
        found = [(number, view.getpixel((0, 0))) for number, view in open_frames(path, stream)]
    assert found == [(0, WHITE), (0, RED), (0, BLACK)]


class Unsteady(Redness):
    """A scorer that has no finite cost for black images."""

    def __init__(self, cost: float) -> None:
        super().__init__()
        self.cost = cost

    def score_prepared(self, prepared):
        found = super().score_prepared(prepared)
        return [
            replace(score, value=self.cost) if view.max() == 0 else score
            for view, score in zip(prepared, found, strict=True)
        ]


def test_the_category_that_has_no_cost_is_named() -> None:
    score = CostScore(0.5, {"drug": None, "weapon": float("nan")}, "x", "0")
    assert score.problem == "The scorer 'x' gave nan for this image (weapon), which is no cost."


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), float("-inf")])
def test_a_cost_that_is_not_finite_is_an_error_of_that_image(tmp_path: Path, cost: float) -> None:
    plain(tmp_path / "a.png", "red")
    plain(tmp_path / "b.png", "black")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(
        tmp_path / "c.png"
    )  # white, and black once its alpha is dropped
    files = sorted(tmp_path.iterdir())
    rows = {Path(row.path).name: row for row in FolderRun(Unsteady(cost)).rows(files)}
    assert rows["a.png"].cost == 5.0
    for name in ("b.png", "c.png"):
        assert rows[name].cost is None and f"gave {cost} for this image" in (rows[name].error or "")
