"""The host's own X/Y/Z plot with our axes, run over the API: what each of its images is, and the grid."""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import Image

from tests.hosts.webui.running import Answer, WebUi, cost_in

pytestmark = pytest.mark.slow

SWITCH, THRESHOLD, WEIGHT = "[Safety] On or off", "[Safety] Threshold", "[Safety] LoRA weight"
SIDE = 64  # of an image


def plot(webui: WebUi, axes: Mapping[str, tuple[str, str]], *values: Any) -> Answer:
    """What the plot makes of axes by letter, with our script's controls at these values."""
    (info,) = [
        script
        for script in webui.get("/sdapi/v1/script-info")
        if script["name"] == "x/y/z plot" and not script["is_img2img"]
    ]
    labels = [argument["label"] for argument in info["args"]]
    given = [argument.get("value") for argument in info["args"]]
    known = info["args"][labels.index("X type")]["choices"]
    for letter in "XYZ":
        axis, text = axes.get(letter, ("Nothing", ""))
        place = labels.index(f"{letter} type")
        given[place], given[place + 2] = known.index(axis), []
        given[labels.index(f"{letter} values")] = text
    for place, label in enumerate(labels):
        if label in ("Include Sub Images", "Draw legend") or label.startswith("Use text inputs"):
            given[place] = label != "Draw legend"
    return webui.draw(*values, script_name="x/y/z plot", script_args=given)


def is_black(image: Image.Image) -> bool:
    return image.getextrema() == ((0, 0),) * 3


def tile(grid: Image.Image, column: int, row: int) -> bytes:
    box = (column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE)
    return grid.crop(box).tobytes()


def test_a_plot_of_weights_and_thresholds(webui: WebUi) -> None:
    axes = {"X": (WEIGHT, "0, 0.8"), "Y": (THRESHOLD, "strict, -30")}
    answer = plot(webui, axes, True, "normal", 0, "black", "black", "calm", 1)
    grid, *cells = answer.images
    # A row is as strict as its label says, a column has its weight; the grid itself has no cost.
    said = [
        (re.findall(r"Safety threshold: ([^,(]+)", text)[0].strip(), text.split("\n")[0])
        for text in answer.infotexts[1:]
    ]
    assert said == [
        (word, f"a cat <lora:calm:{weight}>")
        for word in ("strict", "my own number")
        for weight in ("0", "0.8")
    ]
    assert cost_in(answer.infotexts[0]) is None
    assert [cost_in(text) is not None for text in answer.infotexts[1:]] == [True] * 4
    assert [is_black(cell) for cell in cells[2:]] == [True, True], "all noise costs more than -30"
    assert grid.size == (2 * SIDE, 2 * SIDE)
    tiles = [tile(grid, column, row) for row in (0, 1) for column in (0, 1)]
    assert tiles == [cell.tobytes() for cell in cells], "the grid shows what was judged, nothing else"


def test_a_plot_of_on_and_off_is_what_either_draws_alone(webui: WebUi) -> None:
    axes = {"X": (SWITCH, "off, on"), "Y": (WEIGHT, "0.4, 0.8")}
    # The script is off in the request: the axis alone decides.
    answer = plot(webui, axes, False, "normal", 0, "nothing", "nothing", "calm", 1)
    grid, *cells = answer.images
    off, on = answer.infotexts[1::2], answer.infotexts[2::2]
    assert [text for text in off if "Safety" in text] == []
    assert [cost_in(text) is not None for text in on] == [True, True]
    without = webui.draw().images[0].tobytes()
    assert [cell.tobytes() for cell in cells[0::2]] == [without, without]
    by_hand = [webui.draw(prompt=f"a cat <lora:calm:{weight}>").images[0] for weight in (0.4, 0.8)]
    assert [cell.tobytes() for cell in cells[1::2]] == [image.tobytes() for image in by_hand]
    assert len({without, *(image.tobytes() for image in by_hand)}) == 3
    assert tile(grid, 1, 1) == cells[3].tobytes()


def test_a_plot_of_words_that_mean_nothing_draws_nothing(webui: WebUi) -> None:
    before = webui.saved()
    for axis, text in ((SWITCH, "on, maybe"), (THRESHOLD, "strict, severe")):
        with pytest.raises(urllib.error.HTTPError):
            plot(webui, {"X": (axis, text)}, True, "normal", 0, "nothing", "nothing")
    assert webui.saved(before) == set()
