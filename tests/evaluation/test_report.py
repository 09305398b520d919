"""The HTML report: self-contained, honest, safe against hostile captions, readable."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from scdpo_core.evaluation.findings import finding
from scdpo_core.evaluation.judges import JudgedImage
from scdpo_core.evaluation.metrics import measure_group
from scdpo_core.evaluation.report import default_next_steps, render_report, write_report, write_report_json
from scdpo_core.evaluation.report_sections import inline
from scdpo_core.evaluation.results import JudgeFacts, environment
from scdpo_core.reports.images import BUDGET
from scdpo_core.types import LoraFile
from tests.support.evaluation_samples import images, judged, report
from tests.support.html_page import HtmlPage

CURVES = [
    {"step": k, "loss": 0.69 / k, "implicit_accuracy": 0.5, "winner_gap": -0.01, "loser_gap": 0.02}
    for k in range(1, 30)
]


def page(drawn: list[JudgedImage], **changes: object) -> HtmlPage:
    return HtmlPage(render_report(report(drawn, **changes), drawn, CURVES))


def test_nothing_is_fetched_and_nothing_runs() -> None:
    shown = page(images())
    for tag, attributes in shown.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "poster", "data"):
                assert value is not None and value.startswith(("data:image/", "#"))
    style = re.search(r"<style>(.*?)</style>", render_report(report([]), []), re.S)
    assert style is not None and "url(" not in style[1] and "@import" not in style[1]
    policy = [meta["content"] for meta in shown.all("meta") if meta.get("http-equiv")]
    assert policy and "default-src 'none'" in str(policy[0])


def test_every_image_is_there_with_words_for_it() -> None:
    drawn = images()
    tags = page(drawn).all("img")
    # 20 pairs on the sheets, and a strip of 5 harmful and 3 benign ones.
    assert len(tags) == 2 * (20 + 8)
    assert all(image["alt"] and image["width"] == "64" for image in tags)
    assert sum("Before tuning: a thing" in str(image["alt"]) for image in tags) == 28
    source = str(tags[0]["src"])
    inlined = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))).convert("RGB")
    # Small drawings are inlined without loss.
    assert inlined.tobytes() == drawn[0].before.image.tobytes()


def test_costs_are_told_by_number_word_and_colour() -> None:
    text = render_report(report(images(removed=5)), images(removed=5))
    assert '<span class="cost unsafe">+3.00 unsafe</span>' in text
    assert '<span class="cost safe">\u22123.00 safe</span>' in text


def test_headings_go_down_step_by_step() -> None:
    levels = [int(tag[1]) for tag, _ in page(images()).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_hostile_text_stays_text() -> None:
    evil = '"><script>alert(1)</script><img src=//evil onerror=x> $title ${x}'
    drawn = [judged("harm", evil, before=True, after=False), judged("benign", evil, before=True, after=True)]
    changed = [
        replace(pair, before=replace(pair.before, verdict=replace(pair.before.verdict, label=evil)))
        for pair in drawn
    ]
    shown = page(
        changed,
        title=evil,
        notes=(evil,),
        judge=JudgeFacts(evil, None, True),
        environment={evil: evil},
        lora=LoraFile(Path(evil.replace("/", "")), "sd1", 4, 2),
    )
    assert not shown.all("script")
    assert all(str(image["src"]).startswith("data:") for image in shown.all("img"))
    assert shown.text.count(evil) >= 5


def test_success_is_said_plainly() -> None:
    found = finding(report(images(removed=10)))
    assert found.sentence.startswith("Harmful images fell from 100\u202f% to 0\u202f%, and benign")
    assert found.remarks[0].lead == "All 2 targets met."
    # 0 of 10 may be 28 %, see the Wilson test; that must be said too.
    assert [remark.lead for remark in found.remarks[1:]] == ["Not certain"]


@pytest.mark.parametrize(
    ("removed", "lost", "words"),
    [
        (6, 0, "short of the target of 10\u202f%"),
        (1, 0, "chance alone could make"),
        (0, 0, "stayed at 100\u202f%"),
        (10, 3, "but fewer benign images still show what was asked for: 70\u202f%, before 100\u202f%"),
    ],
)
def test_failure_is_said_plainly(removed: int, lost: int, words: str) -> None:
    found = finding(report(images(removed=removed, lost=lost)))
    assert words in found.sentence
    assert found.remarks[0].lead == "Missed" and found.remarks[0].good is False


def test_worse_than_before_is_said() -> None:
    drawn = images()
    turned = [replace(pair, before=pair.after, after=pair.before) for pair in drawn]
    found = finding(report(turned))
    assert "made it worse: harmful images rose from 0\u202f% to 100\u202f%" in found.sentence
    assert "Little to remove" in [remark.lead for remark in found.remarks]


def test_a_judge_that_is_not_independent_is_named() -> None:
    found = finding(report(images(), judge=JudgeFacts("the cost model", None, False)))
    assert "Not independent" in [remark.lead for remark in found.remarks]


def test_empty_evaluation_still_makes_a_page() -> None:
    shown = page([], benign=None, groups=(), train=None, cost_model=None, lora=None)
    assert "nothing can be said about safety" in shown.text
    assert "has no saved images" in shown.text
    assert "not scored" in shown.text


def test_a_toy_lora_is_not_offered_for_other_models() -> None:
    toy = " ".join(step.text for step in default_next_steps(report([])))
    assert "embedded toy model alone" in toy and "demo.safetensors" not in toy
    own = default_next_steps(report([], lora=LoraFile(Path("x/mine.safetensors"), "sd1", 16, 384)))
    assert any("Copy mine.safetensors to ComfyUI/models/loras" in step.text for step in own)
    assert "<lora:mine:1>" in [step.command for step in own]
    commands = [step.command for step in default_next_steps(report([]))]
    train = "python trainer/train_lora.py --pairs my_pairs --base model.safetensors --output runs/my_lora"
    assert train in commands


def test_images_of_unknown_groups_are_shown_too() -> None:
    drawn = [*images(), judged("extra", "something", before=True, after=True)]
    text = render_report(report(images()), drawn)
    assert 'id="group-extra"' in text


def test_images_of_attacks_are_shown_in_their_group_alone() -> None:
    plain = images()
    caption = next(pair.request.caption for pair in plain if pair.request.group == report(plain).harmful.name)
    attack = judged("attack", caption, before=True, after=True)
    group = measure_group([attack], name="attack", title="Attack", description="Tried.", measure="harmful")
    found = replace(report(plain), groups=(*report(plain).groups, group), attacks=(group,))
    figures = [
        re.findall(
            r'<figure class="strip".*?</figure>|<figure><figcaption>.*?</figure>',
            render_report(told, drawn),
            re.S,
        )
        for told, drawn in ((report(plain), plain), (found, [*plain, attack]))
    ]
    assert len(figures[0]) == 3 and figures[0] == figures[1]
    assert 'id="group-attack"' in render_report(found, [*plain, attack])


def test_veil_is_only_checked_when_asked_for() -> None:
    drawn = images()
    boxes = [
        HtmlPage(render_report(report(drawn), drawn, veil=veil)).all("input")[0] for veil in (False, True)
    ]
    assert ["checked" in box for box in boxes] == [False, True]


def test_two_hundred_noisy_pairs_stay_under_three_megabytes() -> None:
    # Noise is the worst case for every encoder; 200 pairs share twenty images to keep the test quick.
    noisy = [Image.effect_noise((64, 64), 60 + k).convert("RGB") for k in range(20)]
    drawn = []
    for k in range(200):
        pair = judged("harm" if k % 2 else "benign", f"a thing number {k}", k, before=True, after=True)
        drawn.append(replace(pair, before=replace(pair.before, image=noisy[k % 20])))
    assert sum(len(item.before) + len(item.after) for item in inline(drawn)) <= BUDGET
    assert len(render_report(report(drawn, preservation=None), drawn, CURVES).encode()) < 3_000_000


def test_large_images_are_shrunk_and_not_pixelated() -> None:
    drawn = [judged("harm", "x", before=True, after=False, size=600)]
    image = page(drawn).all("img")[0]
    assert "crisp" not in str(image["class"])
    inlined = Image.open(io.BytesIO(base64.b64decode(str(image["src"]).split(",", 1)[1])))
    assert inlined.size == (256, 256)


def test_files_are_written_whole(tmp_path: Path) -> None:
    drawn = images()
    write_report(tmp_path / "run" / "report.html", report(drawn), drawn, CURVES)
    write_report_json(tmp_path / "run" / "report.json", report(drawn))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["report.html", "report.json"]
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8").endswith("</html>\n")


def test_a_report_stays_right_when_its_folder_is_moved(tmp_path: Path) -> None:
    lora = tmp_path / "run" / "out" / "demo.safetensors"
    lora.parent.mkdir(parents=True)
    lora.write_bytes(b"weights")
    made = report([], lora=LoraFile(lora, "micro", 16, 384))
    write_report_json(tmp_path / "run" / "report" / "report.json", made)
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere") / "report"
    said = json.loads((moved / "report.json").read_text("utf-8"))["lora"]["file"]
    assert said == "../out/demo.safetensors"
    assert (moved / said).read_bytes() == b"weights"


def _luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_is_enough_in_both_modes() -> None:
    blocks = re.findall(r":root \{(.*?)\}", render_report(report([]), []), re.S)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        inks = ("ink", "soft", "after", "good", "bad")
        texts = [(ink, ground) for ink in inks for ground in ("paper", "card")]
        texts += [(f"{band}-ink", band) for band in ("safe", "review", "unsafe")]
        for ink, ground in texts:
            light, dark = sorted((_luminance(colours[ink]), _luminance(colours[ground])), reverse=True)
            # WCAG 2.2 AA for normal text.
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)
        light, dark = sorted((_luminance(colours["before"]), _luminance(colours["paper"])), reverse=True)
        # And for graphics.
        assert (light + 0.05) / (dark + 0.05) >= 3, "before"


def test_curves_that_were_not_logged_are_left_out() -> None:
    drawn = images()
    text = render_report(report(drawn), drawn, [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}])
    assert "<figcaption>Loss" in text and "<figcaption>Prefers" not in text
    assert "has no training log" in render_report(report(drawn), drawn)


def test_environment_names_no_person() -> None:
    facts = environment()
    assert {"python", "system", "cores", "device", "torch"} <= set(facts)
    assert not any(str(Path.home()) in value for value in facts.values())


def test_what_each_term_did_stands_below_its_curves() -> None:
    rows = [{"step": step, "redirect": value, "keep": 0.001} for step, value in ((1, 0.5), (2, 0.25))]
    text = render_report(report([]), [], rows)
    assert "<li>Redirect: under harmful prompts the error to the chosen images went from 0.5 to 0.25" in text
    assert "<li>Keep: answers to benign pairs are 0.001 away" in text
