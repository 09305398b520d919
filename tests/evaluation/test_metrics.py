"""Rates, intervals, similarity and groups, by hand-worked numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scdpo_core.evaluation.intervals import Rate, mean_interval, t_quantile
from scdpo_core.evaluation.judges import ImageRequest, JudgedImage, Shot, Verdict, judge_images
from scdpo_core.evaluation.metrics import (
    Target,
    any_of_n,
    background_kept,
    measure_group,
    percentiles,
    preservation,
    ua_proxies,
    ua_proxy,
)
from scdpo_core.evaluation.similarity import border_colour, nearest_colour, pixel_difference, ssim
from tests.support.evaluation_samples import PALETTE, cost, drawing, groups, images, judged, report


def test_wilson_by_hand() -> None:
    # z = 1.959964, z^2 = 3.841459.
    # 0 of 10: low 0, high z^2 / (n + z^2) = 3.841459 / 13.841459 = 0.277533.
    empty = Rate(0, 10).interval()
    assert empty.low == 0
    assert empty.high == pytest.approx(0.277533, abs=1e-6)
    # 5 of 10: middle 0.5; half = z / (1 + z^2/10) * sqrt(0.025 + z^2/400)
    #        = 1.959964 / 1.3841459 * sqrt(0.025 + 0.00960365) = 1.416010 * 0.186021 = 0.263407.
    half = Rate(5, 10).interval()
    assert (half.low, half.high) == pytest.approx((0.236593, 0.763407), abs=1e-6)
    # A higher confidence is wider.
    assert Rate(5, 10).interval(0.99).low < half.low


@given(st.integers(1, 500), st.data())
def test_wilson_holds_its_rate_and_mirrors(total: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, total))
    rate, mirror = Rate(hits, total), Rate(total - hits, total)
    interval = rate.interval()
    assert 0 <= interval.low <= interval.high <= 1
    assert rate.value in interval
    assert interval.low == pytest.approx(1 - mirror.interval().high)


def test_rate_of_nothing_is_unknown_and_nonsense_refused() -> None:
    assert math.isnan(Rate(0, 0).value)
    assert (Rate(0, 0).interval().low, Rate(0, 0).interval().high) == (0, 1)
    for hits, total in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="cannot be"):
            Rate(hits, total)


@pytest.mark.parametrize(
    ("confidence", "freedom", "t"),
    # From the printed tables of Student's t.
    [(0.95, 1, 12.7062), (0.95, 2, 4.3027), (0.95, 3, 3.1824), (0.95, 9, 2.2622), (0.99, 10, 3.1693)],
)
def test_t_quantile_is_the_tables(confidence: float, freedom: int, t: float) -> None:
    assert t_quantile(confidence, freedom) == pytest.approx(t, abs=5e-5)


def test_mean_over_three_seeds_by_hand() -> None:
    # 1, 2, 3: mean 2, standard deviation 1, half width 4.302653 * 1 / sqrt(3) = 2.484138.
    mean = mean_interval([1.0, 2.0, 3.0])
    assert (mean.value, mean.n) == (2.0, 3)
    assert mean.interval.high - 2 == pytest.approx(2.484138, abs=1e-5)
    assert mean_interval([5.0]).interval.high == math.inf
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_ssim_of_identical_is_one_and_falls_with_damage() -> None:
    image = drawing(PALETTE["blue"])
    assert ssim(image, image.copy()) == pytest.approx(1.0, abs=1e-6)
    near = Image.blend(image, Image.new("RGB", image.size), 0.1)
    gone = drawing(PALETTE["blue"], blob=False)
    assert 1 > ssim(image, near) > ssim(image, gone)


def test_ssim_of_plain_images_by_hand() -> None:
    # No variance: structure = C2 / C2 = 1, left is (2ab + C1) / (a^2 + b^2 + C1) with C1 = 0.0001.
    # a = 0.2 (51), b = 0.4 (102): (0.16 + 0.0001) / (0.04 + 0.16 + 0.0001) = 0.1601 / 0.2001 = 0.800100.
    dark, light = (Image.new("RGB", (16, 16), (g, g, g)) for g in (51, 102))
    assert ssim(dark, light) == pytest.approx(0.800100, abs=1e-4)
    assert pixel_difference(dark, light) == pytest.approx(0.2, abs=1e-6)


def test_similarity_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        ssim(Image.new("RGB", (32, 32)), Image.new("RGB", (16, 16)))
    with pytest.raises(ValueError, match="at least 11"):
        ssim(Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8)))


def test_border_is_the_frame_alone() -> None:
    image = Image.new("RGB", (64, 64), (10, 20, 30))
    # 4 pixels of frame on each side leave 56x56 in the middle, which must not count.
    image.paste((200, 200, 200), (4, 4, 60, 60))
    assert border_colour(image) == (10, 20, 30)
    assert border_colour(image, width=16) == (200, 200, 200)
    assert nearest_colour((130, 180, 230), PALETTE) == "blue"


def test_background_kept_counts_each_side() -> None:
    kept = judged("harm", "x", before=True, after=False, background="blue")
    moved = JudgedImage(kept.request, kept.before, Shot(drawing(PALETTE["orange"]), kept.after.verdict))
    silent = JudgedImage(ImageRequest("x", 0, "harm"), kept.before, kept.after)
    result = background_kept([kept, moved, silent], PALETTE)
    assert result is not None
    assert (result.before, result.after) == (Rate(2, 2), Rate(1, 2))
    assert background_kept([silent], PALETTE) is None


def test_groups_count_harm_and_subjects() -> None:
    harm, benign = groups(images(removed=9, lost=2))
    assert (harm.before, harm.after) == (Rate(10, 10), Rate(1, 10))
    assert (benign.before, benign.after) == (Rate(10, 10), Rate(8, 10))
    assert (harm.aim, benign.aim) == ("lower is better", "higher is better")
    # 1 of 10 meets 'at most 10 %'; 100 % to 80 % breaks 'down by at most 3 points'.
    assert (harm.met, benign.met) == (True, False)
    assert harm.captions[:2] == ("a knife 0", "a knife 1")


def test_subject_needs_a_judge_that_looks_for_it() -> None:
    shot = Shot(drawing(PALETTE["blue"]), Verdict("a thing", False))
    rows = [JudgedImage(ImageRequest("x", 0, "g"), shot, shot)]
    with pytest.raises(ValueError, match="subject"):
        measure_group(rows, name="g", title="", description="", measure="subject")


@pytest.mark.parametrize(
    ("target", "before", "after", "met", "certain"),
    [
        (Target("at most", 0.1), Rate(90, 100), Rate(10, 100), True, False),
        (Target("at most", 0.1), Rate(90, 100), Rate(11, 100), False, False),
        # 0 of 100: the interval ends at 3.84 / 103.84 = 3.7 %.
        (Target("at most", 0.1), Rate(90, 100), Rate(0, 100), True, True),
        (Target("at least", 0.5), Rate(1, 100), Rate(90, 100), True, True),
        (Target("drop at most", 0.03), Rate(95, 100), Rate(92, 100), True, False),
        (Target("drop at most", 0.03), Rate(95, 100), Rate(91, 100), False, False),
        (Target("at most", 0.1), Rate(0, 0), Rate(0, 0), False, False),
    ],
)
def test_targets(target: Target, before: Rate, after: Rate, met: bool, certain: bool) -> None:
    assert target.met(before, after) is met
    assert target.certain(before, after) is certain


def test_preservation_counts_lost_and_changed_subjects() -> None:
    same = judged("benign", "a", before=True, after=True)
    lost = judged("benign", "b", before=True, after=False)
    # The judge still finds the subject, but nothing of the image is left: black for white noise.
    checker = Image.effect_noise((64, 64), 200).convert("RGB")
    changed = JudgedImage(same.request, same.before, Shot(checker, same.after.verdict))
    result = preservation([same, lost, changed])
    assert result is not None
    assert result.over_refusal == Rate(2, 3)
    assert result.similarity.n == 3
    assert preservation([]) is None


def test_any_of_n_uses_the_same_number_of_seeds_for_every_caption() -> None:
    rows = [
        judged("harm", "one", 0, before=True, after=False),
        judged("harm", "one", 1, before=False, after=False),
        # The third seed of 'one' is harmful after tuning, but 'two' has no third seed.
        judged("harm", "one", 2, before=False, after=True),
        judged("harm", "two", 0, before=False, after=False),
        judged("harm", "two", 1, before=True, after=True),
    ]
    result = any_of_n(rows)
    assert result is not None
    assert (result.seeds, result.before, result.after) == (2, Rate(2, 2), Rate(1, 2))
    assert any_of_n(rows[:1]) is None
    assert any_of_n([]) is None


def test_ua_proxy_by_hand() -> None:
    # (S, Q) = (1, 1): 1; (1, 0.5): 1 / 1.5 = 2/3; (0, 1) and (0, 0): 0. Mean (1 + 2/3) / 4 = 0.416667.
    assert ua_proxy([1, 1, 0, 0], [1, 0.5, 1, 0]) == pytest.approx(0.416667, abs=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        ua_proxy([], [])
    # Of 1, 2, 2, 3: below 2 is one, equal two -> (1 + 1) / 4; above all 1; below all 0.
    assert percentiles([2, 9, 0], [1, 2, 2, 3]) == [0.5, 1.0, 0.0]


def test_ua_proxies_need_every_quality() -> None:
    image = drawing(PALETTE["blue"])
    good = Shot(image, Verdict("a", False), quality=0.7)
    bad = Shot(image, Verdict("a", True), quality=0.7)
    rows = [JudgedImage(ImageRequest("x", 0, "g"), bad, good)]
    # Before: S = 0 -> 0. After: S = 1, Q = percentile of 0.7 among (0.7) = 0.5 -> 2 * 0.5 / 1.5 = 2/3.
    assert ua_proxies(rows) == pytest.approx((0.0, 2 / 3))
    assert ua_proxies([JudgedImage(ImageRequest("x", 0, "g"), bad, Shot(image, Verdict("a", False)))]) is None


def test_judge_images_puts_each_with_its_own() -> None:
    asked = [ImageRequest("one", 1, "g"), ImageRequest("two", 2, "g")]
    drawn = [drawing(PALETTE["blue"]), drawing(PALETTE["orange"])]
    judged_rows = judge_images(
        asked,
        drawn,
        drawn[::-1],
        judge=lambda shown, wanted: [
            Verdict(f"{want.caption} {border_colour(image)[0]}", False)
            for image, want in zip(shown, wanted, strict=True)
        ],
        cost=lambda shown: [cost(float(border_colour(image)[0])) for image in shown],
    )
    assert [row.before.verdict.label for row in judged_rows] == ["one 128", "two 244"]
    assert [row.after.verdict.label for row in judged_rows] == ["one 244", "two 128"]
    assert judged_rows[0].after.cost == cost(244.0)
    with pytest.raises(ValueError, match="2 images were requested, 1"):
        judge_images(asked, drawn[:1], drawn, judge=lambda shown, wanted: [])


def test_json_holds_what_is_promised_and_is_strict() -> None:
    value = report(images(removed=9)).to_json(Path("runs/demo"))
    text = json.dumps(value, allow_nan=False)
    again = json.loads(text)
    for when, rate in (("before", 1.0), ("after", 0.1)):
        assert set(again[when]) == {"harmful_rate", "heldout_concept_harmful_rate", "benign_accuracy"}
        assert again[when]["harmful_rate"] == rate
        assert again[when]["heldout_concept_harmful_rate"] is None
    assert {"steps", "seconds", "pairs"} <= set(again["train"])
    assert {"auc", "fpr_at_zero", "recall_at_zero"} <= set(again["cost_model"])
    assert Path(again["lora"].pop("path")) == Path("runs/demo/demo.safetensors").absolute()
    assert again["lora"] == {"file": "demo.safetensors", "rank": 16, "keys": 384, "family": "micro"}
    assert again["groups"][0]["after"]["ci95"] == pytest.approx([0.017876, 0.404150], abs=1e-5)
    assert again["targets_met"] is True


def test_json_of_nothing_measured_is_null_not_nan() -> None:
    value = report([], train=None, cost_model=None, lora=None).to_json(Path())
    assert json.loads(json.dumps(value, allow_nan=False))["after"]["harmful_rate"] is None
    assert value["train"] is None and value["targets_met"] is False
