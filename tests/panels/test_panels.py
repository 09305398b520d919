from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from PIL import Image

from scdpo_core.panels import compare, gallery, notice, pair, run, style
from scdpo_core.preferences.labelling_session import Candidate, SessionView
from scdpo_core.run_store.events import Sample
from scdpo_core.runs.comparison import Cell, Comparison
from scdpo_core.runs.follow import RunView
from scdpo_core.scoring.table import Row
from scdpo_core.types import CostScore, PreferencePair, Problem
from tests.support.html_page import HtmlPage

NASTY = "<script>alert('x')</script> & \"q\""


def pil_image(path: Path, size: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (200, 30, 30)).save(path)
    return path


def row(path: Path, cost: float | None, error: str | None = None) -> Row:
    band = None if cost is None else "unsafe" if cost > 2 else "safe"
    return Row(str(path), path.name, cost, band, {"a": cost, "b": None}, "s@0", error)  # type: ignore[arg-type]


def test_the_gallery_is_sorted_and_blurred_and_names_what_failed(tmp_path: Path) -> None:
    files = [pil_image(tmp_path / f"{name}.png") for name in ("low", "high")]
    rows = [row(files[0], -3.0), row(files[1], 5.0), row(tmp_path / NASTY, None, "it is damaged.")]
    read = HtmlPage(gallery.gallery(rows, {str(files[1]): files[1]}))
    assert [image["alt"] for image in read.all("img") if "red" not in (image["alt"] or "")] == [
        "high.png",
        "low.png",
    ]
    assert [box["aria-label"] for box in read.all("input")] == [
        "Show the image: high.png",
        "Show the image: low.png",
    ]
    assert "1 of 2 images cost more than zero" in read.text and "it is damaged." in read.text
    assert not read.all("script") and len(read.all("details")) == 1


def test_a_image_that_is_gone_says_so(tmp_path: Path) -> None:
    assert "no longer there" in HtmlPage(gallery.gallery([row(tmp_path / "gone.png", 1.0)])).text


def test_two_images_are_asked_about_with_their_prompt(tmp_path: Path) -> None:
    sides = pil_image(tmp_path / "l.png"), pil_image(tmp_path / "r.png")
    view = SessionView(Candidate("id", NASTY, *sides), 3, 10, 2, True)
    read = HtmlPage(pair.pair(view))
    assert NASTY in read.text and "3 of 10 compared, 2 pairs kept" in read.text and not read.all("script")
    assert [image["alt"] for image in read.all("img")] == ["Left image, l.png", "Right image, r.png"]
    assert "All pairs are compared" in HtmlPage(pair.pair(SessionView(None, 10, 10, 9, True))).text
    assert "no two images" in HtmlPage(pair.pair(SessionView(None, 0, 0, 0, False))).text


def test_a_folder_tells_what_is_wrong(tmp_path: Path) -> None:
    good = [PreferencePair(str(n), "p", tmp_path, tmp_path, "benign" if n else "") for n in range(3)]
    problems = [Problem(tmp_path / "chosen" / "a.png", "it has no prompt."), Problem(tmp_path, "odd.", False)]
    read = HtmlPage(pair.folder(tmp_path, good, problems))
    assert "3 good pairs (2 benign, 1 no category)" in read.text.replace("\n", " ")
    assert "1 problem to fix before training" in read.text and "chosen/a.png: it has no prompt." in read.text
    assert "has no problems" in HtmlPage(pair.folder(tmp_path, good, [])).text
    many = [Problem(tmp_path / "chosen" / f"{number}.png", "it has no prompt.") for number in range(60)]
    shown = HtmlPage(pair.folder(tmp_path, good, many)).text
    assert all(f"chosen/{number}.png" in shown for number in range(60))
    assert "60 files: it has no prompt." in shown


def test_a_run_shows_bar_curves_and_samples(tmp_path: Path) -> None:
    shots = [pil_image(tmp_path / f"{step}.png") for step in (0, 20)]
    view = RunView(
        "calm",
        "running",
        phase="train",
        step=20,
        total=80,
        trained=20,
        steps=80,
        curves={"loss": ((10, 0.7), (20, 0.35)), "implicit_accuracy": ((10, float("nan")),)},
        samples=tuple(Sample(step, str(path), "a cat", 0) for step, path in zip((0, 20), shots, strict=True)),
        warnings=(NASTY,),
        steps_per_second=2.0,
        ends=1030.0,
    )
    bar = HtmlPage(run.status(view, now=1000.0))
    (progress,) = [attributes for _, attributes in bar.tags if attributes.get("role") == "progressbar"]
    assert progress["aria-valuenow"] == "25"
    assert progress["aria-valuetext"] == "Training: 20 of 80, 2 steps a second, 30 s left"
    assert NASTY in bar.text and not bar.all("script")
    told = replace(view, memory=3 << 30, available=8 << 30)
    assert "Needs about 3.0 GB of memory; 8.0 GB are available." in run.status(told)
    assert "GB" not in run.status(replace(told, state="finished")) and "GB" not in run.status(view)
    drawn = HtmlPage(run.curves(view))
    # One chart, of the loss, which falls: y grows downwards.
    (line,) = [attributes["d"] for attributes in drawn.all("path") if attributes["class"] == "after strong"]
    start, end = (tuple(map(float, point.split())) for point in (line or "").lstrip("M").split("L"))
    assert start[0] < end[0] and start[1] < end[1] and "0.35" in drawn.text
    costs = {str(shots[0]): CostScore(3.0, {}, "s", "0"), str(shots[1]): CostScore(-3.0, {}, "s", "0")}
    table = HtmlPage(run.samples(view, costs))
    assert "after 20 steps" in table.text and "before" in table.text
    # The harmful one is covered, the safe one is not.
    assert [box["aria-label"] for box in table.all("input")] == ["Show the image: a cat, step 0"]
    assert len(HtmlPage(run.samples(view, {})).all("input")) == 2


def test_a_run_that_failed_says_why() -> None:
    read = HtmlPage(run.status(RunView("calm", "failed", message="The disk is full.")))
    assert "failed" in read.text and "The disk is full." in read.text
    assert any(attributes.get("role") == "alert" for _, attributes in read.tags)
    assert run.curves(RunView("calm", "queued")) == run.samples(RunView("calm", "queued"), {}) == ""


def test_a_comparison_has_figures_and_stands_alone(tmp_path: Path) -> None:
    cells = []
    for prompt, costs in ((NASTY, (4.0, -2.0)), ("a cat", (-3.0, -3.0))):
        for weight, cost in zip((0.0, 1.0), costs, strict=True):
            path = f"{len(cells)}.png"
            pil_image(tmp_path / path)
            cells.append(
                Cell(prompt, 0, weight, path, cost, "unsafe" if cost > 0 else "safe", 1 - weight / 2)
            )
    result = Comparison("calm", "micro", "s@0", tuple(cells))
    read = HtmlPage(compare.comparison(result, tmp_path))
    assert "without the LoRA" in read.text and "weight 1" in read.text
    # Mean costs: (4 - 3) / 2 and (-2 - 3) / 2.
    for figure in ("1 of 2", "0 of 2", "+0.50", "\N{MINUS SIGN}2.50", "1.00", "0.50"):
        assert figure in read.text
    assert len(read.all("img")) == 4 and len(read.all("input")) == 1
    page = compare.page(result, tmp_path)
    assert "<script" not in page and "http" not in page.split("</style>")[1]


def test_the_style_touches_nothing_outside_of_panels() -> None:
    rules = re.sub(r"/\*.*?\*/", "", style(), flags=re.S)
    selectors = re.findall(r"([^{}]+)\{", rules)
    assert all(".scdpo" in one or "#scdpo" in one or one.strip().startswith("@") for one in selectors)
    assert HtmlPage(notice(NASTY, "bad")).text.strip() == NASTY
