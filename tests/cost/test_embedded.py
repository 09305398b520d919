"""The embedded scorer: how two networks are joined, and what it says of images known to be harmless."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scdpo_core.cost import embedded, nsfwjs, open_nsfw
from scdpo_core.cost.attribution import explain
from scdpo_core.cost.embedded import DRAWN, MARGIN, OPEN_NSFW, PHOTOGRAPHED, EmbeddedScorer, join
from scdpo_core.cost.protocol import HARM_CATEGORIES, SideBySide, provenance
from scdpo_core.cost.scorers import load_scorer
from scdpo_core.scoring.table import Row
from scdpo_core.types import REVIEW_FROM, UNSAFE_FROM, CostScore, objection

BENIGN = Path(__file__).resolve().parents[1] / "data" / "benign"


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def joined(open_chance: float, chances: list[float], rule: embedded.Rule = "joint") -> float:
    # A softmax gives no zeros; these here stand for chances too small to matter.
    costs, _ = join(np.array([logit(open_chance)]), np.log(np.maximum([chances], 1e-12)), rule)
    return float(costs[0])


def test_a_photograph_is_judged_by_both() -> None:
    # No drawing at all. nsfwjs: .4 sexual, logit -0.405; open_nsfw: .8, logit 1.386. Their mean is 0.490.
    assert joined(0.8, [0, 0, 0.6, 0.4, 0]) == pytest.approx((logit(0.8) + logit(0.4)) / 2)


def test_a_drawing_is_judged_by_the_network_that_knows_drawings() -> None:
    # .3 a sexual drawing; the .1 of a photograph is harmless to both: mean of -4.595 and -4.595, p .01.
    assert joined(0.01, [0.6, 0.3, 0.099, 0.001, 0]) == pytest.approx(logit(0.3 + 0.1 * 0.01))
    # open_nsfw, which knows no drawings, cannot talk it away: still .9, not the -1.2 of a mean.
    assert joined(0.01, [0.1, 0.9, 0, 0, 0]) == pytest.approx(logit(0.9), abs=1e-6)


@pytest.mark.parametrize(
    ("open_chance", "chances", "expected"),
    [
        (0.99, [0.03, 0.01, 0.82, 0.04, 0.10], 4.595 - 3.5),  # open_nsfw alone, of a photograph
        (0.99, [0.93, 0.03, 0.01, 0.02, 0.01], 4.595 - 3.5),  # and of what nsfwjs takes for a drawing
        (0.05, [0.004, 0.005, 0.006, 0.985, 0.0], 4.595 - 3.5),  # nsfwjs alone, of a photograph
        # and of a drawing; a photograph's share is .01: mean of -2.944 and 0, p .187; logit(.98 + .01 * .187)
        (0.05, [0.01, 0.98, 0.005, 0.005, 0.0], 3.992),
    ],
)
def test_no_network_overrules_one_that_is_sure(
    open_chance: float, chances: list[float], expected: float
) -> None:
    cost = joined(open_chance, chances)
    assert cost == pytest.approx(expected, abs=0.02) and cost > 0


@given(
    st.floats(-16, 16),
    st.lists(st.floats(1e-6, 1), min_size=5, max_size=5),
)
def test_strict_is_the_maximum_and_joint_is_never_far_below(open_cost: float, parts: list[float]) -> None:
    chances = np.array(parts) / sum(parts)
    own = logit(min(1 - 1e-7, max(1e-7, float(chances[1] + chances[3]))))
    strongest = max(open_cost, own)
    (strict,), _ = join(np.array([open_cost]), np.log([chances]), "strict")
    (joint,), _ = join(np.array([open_cost]), np.log([chances]))
    assert strict == pytest.approx(strongest, abs=1e-4)
    assert joint >= strongest - MARGIN - 1e-4


def test_an_objection_of_nine_in_ten_is_never_safe() -> None:
    harmless = [0.98, 0.005, 0.005, 0.005, 0.005]
    assert (
        joined(0.9, harmless) == pytest.approx(2.197 - 3.5, abs=0.01) and joined(0.9, harmless) >= REVIEW_FROM
    )
    assert joined(0.98, harmless) > 0


def test_costs_stay_finite_at_the_ends() -> None:
    chances = np.log(np.maximum([[0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0]], 1e-300))
    costs, details = join(np.array([16.1, -16.1, -16.1]), chances)
    assert costs == pytest.approx([16.118, -16.118, -16.118], abs=1e-3)
    assert all(np.isfinite(values).all() for values in details.values())


def test_the_details_tell_drawings_from_photographs() -> None:
    _, details = join(
        np.array([-3.0, 2.0]), np.log([[0.2, 0.7, 0.05, 0.04, 0.01], [0.1, 0.1, 0.2, 0.5, 0.1]])
    )
    assert set(details) == {OPEN_NSFW, PHOTOGRAPHED, DRAWN}
    assert details[DRAWN] == pytest.approx([logit(0.7), logit(0.1)])
    assert details[PHOTOGRAPHED] == pytest.approx([logit(0.04), logit(0.5)])
    assert details[OPEN_NSFW] == pytest.approx([-3.0, 2.0])
    drawn, photographed = ({name: float(v[k]) for name, v in details.items()} for k in (0, 1))
    assert objection(drawn) == "drawn sexual (nsfwjs)" and objection(photographed) == "sexual (open_nsfw)"
    assert objection({DRAWN: -1.4, OPEN_NSFW: -2.0}) == "" == objection({})


def test_both_networks_see_one_image_and_one_category_is_known() -> None:
    scorer = load_scorer("embedded")
    with Image.open(BENIGN / "skin-01.webp") as image:
        (score,) = scorer.score([image])
    assert score.categories == {**dict.fromkeys(HARM_CATEGORIES), "sexual": score.value}
    with Image.open(BENIGN / "skin-01.webp") as image:
        chances, _ = open_nsfw.network()(open_nsfw.prepare(image)[None])
        logits, _ = nsfwjs.network()(nsfwjs.prepare(image)[None])
    costs, _ = join(np.array(open_nsfw.cost_of(chances)), nsfwjs.log_chances(logits))
    assert score.value == pytest.approx(costs[0], abs=1e-4)


def test_it_is_a_scorer_of_its_own_and_the_old_one_stays() -> None:
    new, strict, old = (load_scorer(name) for name in ("embedded", "strict", "open-nsfw"))
    assert provenance(new) == "open-nsfw-1.0.0+nsfwjs-mid-4.4.0@8dc7d067bff2"
    assert strict.id == "strict(open-nsfw-1.0.0+nsfwjs-mid-4.4.0)" and strict.hash != new.hash
    assert provenance(old) == "open-nsfw-1.0.0@fb29e60f4b22"


def test_batches_threads_and_prepared_images_give_the_same_costs() -> None:
    scorer = EmbeddedScorer()
    files = sorted(BENIGN.glob("*.webp"))[::14][:17]  # more than one batch
    images = [Image.open(file) for file in files]
    together = scorer.score(images)
    assert isinstance(scorer, SideBySide)
    alone = scorer.one_thread()
    assert alone is not None and provenance(alone) == provenance(scorer)
    for other in (
        scorer.score_prepared([scorer.prepare(image) for image in images]),
        alone.score(images),
        [scorer.score([image])[0] for image in images],
    ):
        assert [s.value for s in other] == pytest.approx([s.value for s in together], abs=1e-3)
    assert scorer.score([]) == []


def test_a_graphics_card_gets_whole_batches_from_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (open_nsfw, nsfwjs):
        monkeypatch.setattr(module, "network", lambda device, threads=0: None)
    assert EmbeddedScorer("cuda:1").one_thread() is None


def test_a_heatmap_says_which_network_objects() -> None:
    class Objecting:
        id, hash, categories = "two", "0" * 12, ("sexual",)

        def score(self, images: list[Image.Image]) -> list[CostScore]:
            details = {OPEN_NSFW: -4.0, DRAWN: 2.0}
            return [CostScore(2.0, {"sexual": 2.0}, self.id, self.hash, details) for _ in images]

    assert explain(Objecting(), Image.new("RGB", (40, 40))).objection == DRAWN  # type: ignore[arg-type]


def test_rows_keep_the_details_and_old_rows_are_read() -> None:
    row = Row("/a", None, 1.0, "review", {"sexual": 1.0}, "s@h", None, details={DRAWN: 1.23456})
    assert json.loads(row.to_json())["details"] == {DRAWN: 1.2346}
    old = {name: value for name, value in json.loads(row.to_json()).items() if name != "details"}
    read = Row.from_json(json.dumps(old))
    assert read is not None and read.cost == 1.0 and read.details == {}


def sources() -> list[dict[str, str]]:
    with (BENIGN / "sources.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_image_has_its_source_and_its_licence() -> None:
    rows = sources()
    assert sorted(row["file"] for row in rows) == sorted(file.name for file in BENIGN.glob("*.webp"))
    assert len(rows) >= 200 and sum(file.stat().st_size for file in BENIGN.iterdir()) < 6_000_000
    notice = (BENIGN.parents[2] / "NOTICE").read_text("utf-8")
    for row in rows:
        assert hashlib.sha256((BENIGN / row["file"]).read_bytes()).hexdigest() == row["sha256"], row["file"]
        assert row["path"] and row["package"].split()[0] in notice
        assert row["licence"].startswith(("MIT", "public domain", "CC0-1.0", "no known copyright"))


def test_harmless_images_are_not_called_unsafe() -> None:
    scorer = EmbeddedScorer(threads=1)
    costs = []
    for row in sources():
        with Image.open(BENIGN / row["file"]) as image:
            costs.append(scorer.score([image])[0].value)
    unsafe = sum(cost >= UNSAFE_FROM for cost in costs) / len(costs)
    review = sum(cost >= REVIEW_FROM for cost in costs) / len(costs)
    assert unsafe <= 0.01 and review <= 0.03
