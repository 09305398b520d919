"""Gates and switches on a real ComfyUI."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from scdpo_core.types import UNSAFE_FROM
from tests.hosts.comfyui import samples
from tests.hosts.comfyui.graphs import (
    browser,
    cost_model,
    drawing,
    gate,
    images,
    node,
    notes,
    saved,
    score,
    shown,
)
from tests.hosts.comfyui.server import Host

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("action", ["blur", "pixelate", "replace"])
def test_a_gate_hides_what_is_held_and_nothing_else(host: Host, action: str) -> None:
    graph = samples.batch(0, 2, 1, 3) | {"judge": cost_model(), "gate": gate(["batch", 0], action)}
    graph |= {"save": saved(["gate", 0]), "held": saved(["gate", 1]), "any": shown(["gate", 2])}
    graph |= {"mask": node("MaskToImage", mask=["gate", 3]), "masks": saved(["mask", 0])}
    run = host.run(graph)
    out = images(host, run, "save")
    assert [np.array_equal(out[place], drawing(host, k)) for place, k in enumerate((0, 2, 1, 3))] == [
        True,
        False,
        True,
        False,
    ]
    held = images(host, run, "held")
    assert [np.array_equal(p, drawing(host, k)) for p, k in zip(held, (2, 3), strict=True)] == [True, True]
    assert [int(mask.min()) for mask in images(host, run, "masks")] == [0, 255, 0, 255]
    assert run.outputs["any"]["text"] == ["True"]
    assert f"Held ({action}): 1, 3." in run.texts["gate"]
    # Neither does the preview show it: what is left is far from the drawing.
    preview = images(host, run, "gate")[1][:-40]
    original = np.asarray(Image.fromarray(drawing(host, 2)).resize(preview.shape[1::-1]))[: len(preview)]
    assert np.abs(preview[:200].astype(int) - original[:200].astype(int)).mean() > 5


def test_a_gate_drops_held_images_and_each_file_has_its_own_score(host: Host) -> None:
    graph = samples.batch(2, 0, 3) | {"judge": cost_model(), "score": score(["batch", 0])}
    graph |= {"gate": gate(["score", 0], "drop", ["score", 1]), "save": saved(["gate", 0])}
    graph |= {"passed": shown(["gate", 4]), "held": saved(["gate", 1])}
    run = host.run(graph, {})
    assert [np.array_equal(p, drawing(host, 0)) for p in images(host, run, "save")] == [True]
    assert run.outputs["passed"]["text"] == ["1"]
    assert bands(notes(host, run)) == ["safe"]
    assert bands(notes(host, run, "held")) == ["unsafe", "unsafe"]


def bands(found: list[dict[str, Any] | None]) -> list[str | None]:
    return [None if one is None else one["band"] for one in found]


def test_lists_branches_covers_and_redrawn_images_keep_their_own_score_or_none(host: Host) -> None:
    graph = samples.batch(0, 2) | {"judge": cost_model(), "gate": gate(["batch", 0], "blur")}
    graph |= {"split": node("ImageFromBatch", image=["batch", 0], batch_index=0, length=1)}
    graph |= {"list": node("RebatchImages", images=["batch", 0], batch_size=1)}
    graph |= {"score": score(["list", 0]), "save": saved(["score", 0]), "cover": saved(["gate", 0])}
    # A branch that nothing has scored, and one with another image than the first.
    graph |= {
        "mirror": node("ImageScaleBy", image=["split", 0], upscale_method="nearest-exact", scale_by=2.0)
    }
    graph |= {"unscored": saved(["mirror", 0]), "other": score(["load3", 0]), "third": saved(["other", 0])}
    graph["load3"] = node("LoadImage", image="drawing-3.png")
    run = host.run(browser(graph), {})
    assert bands(notes(host, run)) == ["safe", "unsafe"]
    safe, cover = notes(host, run, "cover")
    assert safe is not None and cover is not None
    assert (safe["band"], safe.get("action")) == ("safe", None)
    assert (cover["band"], cover["action"]) == ("unsafe", "blur")
    assert notes(host, run, "unscored") == [None]
    assert bands(notes(host, run, "third")) == ["unsafe"]
    # The same once more from a browser, into other files: nothing is computed, and every score is there.
    for name in ("save", "cover", "unscored", "third"):
        graph[name]["inputs"]["filename_prefix"] = "again"
    again = host.run(browser(graph), {})
    assert not {"score", "gate", "other"} & set(again.executed)
    for name in ("save", "cover", "unscored", "third"):
        assert notes(host, again, name) == notes(host, run, name)


def test_a_gate_that_drops_all_runs_nothing_behind_it(host: Host) -> None:
    graph = samples.batch(2, 3) | {"judge": cost_model(), "gate": gate(["batch", 0], "drop")}
    run = host.run(graph | {"save": saved(["gate", 0]), "held": saved(["gate", 1])})
    assert run.error == ""
    assert "save" not in run.outputs
    assert len(run.outputs["held"]["images"]) == 2


def test_a_gate_stops_the_run_and_says_why(host: Host) -> None:
    graph = samples.batch(0, 2) | {"judge": cost_model(), "gate": gate(["batch", 0], "stop")}
    run = host.run(graph | {"save": saved(["gate", 0])})
    assert "The Safety Gate stopped the run. Held (stop): 1." in run.error
    assert "save" not in run.outputs


def test_a_lenient_threshold_and_a_band_let_more_pass(host: Host) -> None:
    assert UNSAFE_FROM < 3
    for changes, held in (
        ({"threshold": 20.0}, "Nothing"),
        ({"hold": "unsafe", "threshold": 20.0}, "Held (pass): 1."),
    ):
        graph = samples.batch(0, 2) | {"judge": cost_model(), "gate": gate(["batch", 0], "pass", **changes)}
        run = host.run(graph | {"save": saved(["gate", 0])})
        assert held in run.texts["gate"]
        assert np.array_equal(images(host, run, "save")[1], drawing(host, 2))


def test_scores_of_another_batch_are_refused(host: Host) -> None:
    graph = samples.batch(0, 2) | {"judge": cost_model(), "score": score(["load0", 0])}
    run = host.run(graph | {"gate": gate(["batch", 0], "blur", ["score", 1]), "save": saved(["gate", 0])})
    assert "1 scores for 2 images" in run.error


def test_a_gate_beside_save_image_says_so_also_when_only_save_image_is_run(host: Host) -> None:
    beside = samples.batch(0, 2) | {"judge": cost_model(), "gate": gate(["batch", 0], "blur")}
    beside |= {"small": node("ImageScaleBy", image=["batch", 0], upscale_method="area", scale_by=0.5)}
    beside |= {"save": saved(["small", 0])}
    run = host.run(beside, only=["save"])
    # This is why: the gate was not asked.
    assert "gate" not in run.executed and len(images(host, run, "save")) == 2
    assert run.wiring == {
        "gate": "Not gated: SaveImage (save) gets these images from before this gate. "
        "Connect the gate's images output to it."
    }
    assert "Safety Gate (gate): Not gated: SaveImage (save)" in host.said()
    behind = beside | {"small": node("ImageScaleBy", image=["gate", 0], upscale_method="area", scale_by=0.5)}
    run = host.run(behind, only=["save"])
    assert "gate" in run.executed and run.wiring == {"gate": ""}


@pytest.mark.parametrize(("number", "taken"), [(0, "safe"), (2, "held")])
def test_a_switch_computes_only_the_branch_that_is_needed(host: Host, number: int, taken: str) -> None:
    graph = samples.batch(number) | {"judge": cost_model(), "gate": gate([f"load{number}", 0], "pass")}
    graph["safe"] = node("ImageInvert", image=[f"load{number}", 0])
    graph["held"] = node("ImageBlur", image=[f"load{number}", 0], blur_radius=3, sigma=1.0 + number)
    graph["switch"] = node(
        "SCDPO_SafetySwitch", any_held=["gate", 2], if_safe=["safe", 0], if_held=["held", 0]
    )
    run = host.run(graph | {"save": saved(["switch", 0])})
    assert len(images(host, run, "save")) == 1
    assert {"safe", "held"} & set(run.executed) == {taken}


@pytest.mark.parametrize(("held", "taken"), [((2, 3), "redrawn"), ((0, 1), "first"), ((0, 2), "redrawn")])
def test_what_was_held_is_drawn_again_also_when_all_of_it_was_dropped(
    host: Host, held: tuple[int, ...], taken: str
) -> None:
    graph = samples.batch(*held) | {"judge": cost_model(), "gate": gate(["batch", 0], "drop")}
    graph["redrawn"] = node("ImageInvert", image=["batch", 0])
    graph["switch"] = node(
        "SCDPO_SafetySwitch", any_held=["gate", 2], if_safe=["gate", 0], if_held=["redrawn", 0]
    )
    run = host.run(graph | {"save": saved(["switch", 0])})
    far = np.abs(images(host, run, "save")[0].astype(int) - (255 - drawing(host, held[0]).astype(int)))
    # Inverting rounds down once more.
    assert (far.max() <= 1) == (taken == "redrawn")
    assert ("redrawn" in run.executed) == (taken == "redrawn")


def test_a_switch_ends_where_nothing_is_connected(host: Host) -> None:
    graph = samples.batch(2)
    graph["switch"] = node("SCDPO_SafetySwitch", any_held=True, if_safe=["load2", 0])
    run = host.run(graph | {"save": saved(["switch", 0])})
    assert run.error == ""
    assert "save" not in run.outputs
