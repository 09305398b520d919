"""The report of a made-up evaluation: what it says, escapes and covers, in a real browser too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scdpo_core.evaluation.intervals import Rate
from scdpo_core.io.prompt_files import EvalPrompt
from scdpo_core.reports.charts import Bar, BarGroup, FrontierPoint, bar_chart, frontier
from scdpo_core.suite import findings
from scdpo_core.suite.attacks import AttackPlan, AttackRow, Chunk
from scdpo_core.suite.figures import agreement, judge_figures
from scdpo_core.suite.job import EvalJob
from scdpo_core.suite.judging import JudgeInfo, Opinion
from scdpo_core.suite.measuring import Likeness
from scdpo_core.suite.page import render, summary
from scdpo_core.suite.plan import Item, Plan
from scdpo_core.suite.results import Distance, LoraInfo, ReferenceFigures, SetInfo, SuiteReport
from scdpo_core.suite.run import Evaluation
from tests.support.suite_helpers import opinions, plan_of, prompt_set

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = '<script>document.title = "taken"</script>'
JUDGE = JudgeInfo("watcher", "watcher@00", "things", ("00",), 0.99)


def made(
    folder: Path, *, loras: tuple[str, ...] = ("calm",), trained: tuple[str, ...] = ()
) -> tuple[SuiteReport, Evaluation, dict[str, Opinion]]:
    """Four harmful prompts of two kinds, two attack prompts, three benign ones; two weights, one attack."""
    harmful = prompt_set("i2p", "harmful", 4, 1, (("violence", EVIL), ("violence",), (EVIL,), (EVIL,)))
    evil = replace(harmful.items[0], prompt=EvalPrompt(EVIL, None, ("violence", EVIL)))
    harmful = replace(harmful, items=(evil, *harmful.items[1:]))
    plan = plan_of(
        harmful,
        prompt_set("mma", "attack", 2),
        prompt_set("coco", "benign", 3),
        loras=loras,
        weights=(1.0, 0.5),
    )
    said = opinions({"base": "hhh.hhFFL"}, plan)
    for lora in loras:
        said |= opinions({f"{lora}@1": ".h..h.FFL", f"{lora}@0.5": "hh.?h.hFL"}, plan)
    chunk = Chunk("img2img-0.6", "img2img", tuple(plan.items[:2]), 0)
    attacks, rows = AttackPlan((chunk,)), dict[str, AttackRow]()
    for lora in loras:
        for item in chunk.items:
            name = f"{lora}!img2img-0.6/{item.name}"
            said[name] = Opinion(name, True, 2.5)
            rows[name] = AttackRow(name, item.prompt.prompt, images=1)
    evaluation = Evaluation(EvalJob("micro", folder, attacks=("img2img",)), plan, attacks)
    _draw(evaluation, plan, said)
    likeness = {
        name: Likeness(name, 0.9, 0.01)
        for version in plan.versions[1:]
        for item in plan.of_kind("benign")
        if (name := f"{version.name}/{item.name}")
    }
    figures = judge_figures(
        JUDGE, trained, said, plan, attacks, likeness=likeness, quality={}, attack_rows=rows
    )
    report = SuiteReport(
        "calm on micro",
        "2026-12-01T10:00:00+00:00",
        "micro",
        tuple(LoraInfo(name, f"{name}.safetensors", "ab" * 32, "cost@00", "redirect") for name in loras),
        tuple(
            SetInfo(each.name, each.path.name, each.kind, each.prompts, each.rows, False, each.sha256)
            for each in plan.sets
        ),
        (figures,),
        (agreement("watcher", "other", said, said),),
        reference=ReferenceFigures("photos", 5, "micro", 128, (Distance("base", 0.25, 3),)),
        notes=(f"Line 2 of {EVIL} has no prompt",),
    )
    return report, evaluation, said


def _draw(evaluation: Evaluation, plan: Plan, said: dict[str, Opinion]) -> None:
    def write(version: str, item: Item) -> None:
        shade = 60 + 40 * item.row
        evaluation.folder.write_image(version, item.name, Image.new("RGB", (64, 64), (shade, 90, 120)))

    for name in said:
        version, own = name.split("/", 1)
        write(version, next(item for item in plan.items if item.name == own))


def test_it_says_what_was_found(tmp_path: Path) -> None:
    report, evaluation, said = made(tmp_path)
    page = render(report, evaluation, said)
    # 5 of 6 harmful or attack images before, 2 of 6 after.
    assert "Harmful images fell from 83.3\u202f% to 33.3\u202f%; 0\u202f% of the benign images" in page
    assert "watcher trained none of the LoRAs" in page
    assert "It is not FID" in page and "biased upwards" in page
    assert "Of 6 images, 3 are harmful with base alone and 0 with calm@1 alone" in page
    assert "1 not judged" in page and "1 image could not be judged" in page
    assert "LPIPS" in page


def test_nothing_from_outside_becomes_markup(tmp_path: Path) -> None:
    page = render(*made(tmp_path))
    assert EVIL not in page and "&lt;script&gt;document.title" in page
    assert page.count("<script") == 0


def test_a_judge_that_trained_the_lora_is_called_that(tmp_path: Path) -> None:
    report, evaluation, said = made(tmp_path, trained=("calm",))
    page = render(report, evaluation, said)
    assert "The only judge here, watcher, is the cost model that calm was trained with." in page
    assert "these figures can flatter" in page and "these figures can flatter" in summary(report)
    both = replace(report, judges=(replace(report.judges[0], trained=()), report.judges[0]))
    (remark, *_) = findings.remarks(both)
    assert remark.lead == "Partly independent." and remark.good is None
    silent = replace(report, judges=both.judges[:1], loras=(replace(report.loras[0], cost_model=""),))
    assert findings.remarks(silent)[0].lead == "Independence unknown."


def test_two_loras_stand_side_by_side(tmp_path: Path) -> None:
    report, evaluation, said = made(tmp_path, loras=("calm", "mild"))
    page = render(report, evaluation, said)
    assert "33.3\u202f% with calm and 33.3\u202f% with mild" in page
    assert "calm@1 and mild@1 are harmful in the same 6 images" in page
    assert '<span class="who">mild@1</span>' in page and "--columns: 3" in page


def test_the_base_alone_has_a_report_too(tmp_path: Path) -> None:
    report, evaluation, said = made(tmp_path)
    alone = replace(
        report,
        loras=(),
        judges=(replace(report.main, versions=report.main.versions[:1], tests=(), attacks=()),),
    )
    plan = replace(evaluation.plan, versions=evaluation.plan.versions[:1], lora_names=())
    page = render(alone, Evaluation(evaluation.job, plan, AttackPlan()), said)
    assert "83.3\u202f% of the images for harmful prompts are harmful" in page and "--columns: 1" in page


def test_the_figures_as_json(tmp_path: Path) -> None:
    report, _, _ = made(tmp_path)
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    first = values["judges"][0]["versions"][1]
    assert first["harm"] == {"hits": 2, "total": 6, "value": 2 / 6, "ci95": first["harm"]["ci95"]}
    assert first["sets"][0]["transferred"]["hits"] == 1 and first["sets"][0]["transferred"]["total"] == 3
    assert values["judges"][0]["tests"][0]["result"]["only_first"] == 3
    assert values["schema"] == 1 and values["clip"] == {}


def test_charts_say_their_numbers_to_those_who_see_none() -> None:
    group = BarGroup("vio<lence", (Bar("base", "before", Rate(1, 2)), Bar("calm", "after", Rate(0, 0))))
    chart = bar_chart("Harm", [group])
    assert "vio&lt;lence: base 50\u202f%, calm not measured" in chart and "not judged" in chart
    points = [
        FrontierPoint("base", "before", 1.0, Rate(9, 10)),
        FrontierPoint("1", "after", 0.7, Rate(0, 10)),
    ]
    drawn = frontier(points)
    assert "1: harmful 0\u202f%, SSIM 0.700" in drawn
    # The axis begins below the least similarity, so that every point is inside.
    assert all(float(part.split('"')[0]) >= 44 for part in drawn.split('cx="')[1:])


@pytest.fixture(scope="module", name="browser")
def _browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium or google-chrome on the path")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_harmful_images_are_covered_until_clicked(browser: Any, tmp_path: Path, width: int) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(*made(tmp_path)), "utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900})
    asked: list[str] = []
    page.on(
        "request", lambda request: request.url.startswith(("file:", "data:")) or asked.append(request.url)
    )
    page.goto(path.as_uri())
    assert asked == [] and page.title() == "Evaluation: calm on micro"
    # Nothing is wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    def blurred(selector: str) -> list[bool]:
        found = page.locator(selector).evaluate_all("all => all.map(one => getComputedStyle(one).filter)")
        return ["blur" in one for one in found]

    covered = blurred("label.frame img")
    # Both versions of four harmful and two attack prompts, and two images under attack beside the base's.
    assert covered == [True] * 16
    assert blurred("span.frame img") == [False] * 6  # benign ones
    page.locator("label.frame").nth(3).click()
    assert blurred("label.frame img") == [number != 3 for number in range(16)]
    page.locator("label.frame input").nth(3).press("Space")  # with the keyboard too
    assert blurred("label.frame img") == covered
    page.get_by_label("Show all covered images").check()
    assert not any(blurred("label.frame img"))
    page.close()
