"""What surrounds the training: cached embeddings, hard negatives, misfiled images, the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from scdpo_core.cost.calibration import reliability
from scdpo_core.cost.feature_cache import FeatureCache
from scdpo_core.cost.features import compute_features
from scdpo_core.cost.fit import CostSettings
from scdpo_core.cost.label_errors import suspects
from scdpo_core.cost.mining import train_with_mining
from scdpo_core.cost.report import write_cost_report
from scdpo_core.cost.training import train_cost
from scdpo_core.cost.training_images import CostExample, check, list_benign, list_folders
from scdpo_core.reports import charts
from tests.support.cost_helpers import ColourEncoder, colour_folder, made_up

QUICK = CostSettings(steps=60, batch=64, check_every=20, bottleneck=16, lr=3e-3)
RED, ORANGE, GREEN = (200, 40, 40), (200, 110, 40), (40, 200, 40)


class Counting(ColourEncoder):
    """Counts the images that it had to look at."""

    def __init__(self) -> None:
        self.seen = 0

    def encode_prepared(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        return super().encode_prepared(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    colour_folder(tmp_path / "unsafe", RED, 24, 0)
    colour_folder(tmp_path / "safe", GREEN, 30, 1)
    return tmp_path


def examples(folder: Path) -> Sequence[CostExample]:
    return check(list_folders(folder / "unsafe", folder / "safe")).examples


def test_a_image_is_encoded_once(folder: Path) -> None:
    cache, encoder = FeatureCache(folder / "cache"), Counting()
    fresh = compute_features(examples(folder), encoder, views=2, cache=cache)
    assert encoder.seen == 54 * 2
    colour_folder(folder / "safe" / "more", GREEN, 3, 7)
    again = compute_features(examples(folder), encoder, views=2, cache=cache)
    assert encoder.seen == 54 * 2 + 3 * 2
    place = [again.digests.index(digest) for digest in fresh.digests]
    assert torch.equal(again.embeddings[place], fresh.embeddings)
    plain = compute_features(examples(folder), encoder, views=2)
    assert torch.equal(plain.embeddings, again.embeddings)
    # Other views and seeds are other embeddings.
    compute_features(examples(folder), encoder, views=1, cache=cache)
    assert encoder.seen == 54 * 2 + 3 * 2 + 57 * 2 + 57


def test_a_damaged_cache_costs_time_only(folder: Path) -> None:
    cache, encoder = FeatureCache(folder / "cache"), Counting()
    first = compute_features(examples(folder), encoder, views=1, cache=cache)
    (file,) = (folder / "cache").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    second = compute_features(examples(folder), encoder, views=1, cache=cache)
    assert encoder.seen == 2 * 54 and torch.equal(first.embeddings, second.embeddings)


def test_progress_ends_at_the_number_of_images(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    compute_features(examples(folder), ColourEncoder(), views=4, progress=lambda *now: told.append(now))
    assert told[0] == (0, 54) and told[-1] == (54, 54) and told == sorted(told)


def test_hard_negatives_are_found_and_learned_from(folder: Path) -> None:
    # Orange is harmless, and lies nearest to red. Plain green is no hard case.
    colour_folder(folder / "benign" / "orange", ORANGE, 12, 3)
    colour_folder(folder / "benign" / "green", GREEN, 40, 4)
    pool = check(list_benign(folder / "benign")).examples
    mined = train_with_mining(examples(folder), pool, ColourEncoder(), QUICK, count=12, views=2)
    assert {example.path.parent.name for example in mined.chosen} == {"orange"}
    assert mined.data.mined is not None and int(mined.data.mined.sum()) == len(mined.chosen) > 3
    # They teach, but are not counted: the figures are of the 30 safe images.
    assert mined.result.figures.safe == 30 and mined.result.calibration[""].benign == 30
    oranges = ColourEncoder().encode([Image.new("RGB", (8, 8), (200, 105 + k, 40)) for k in range(10)])
    reds = ColourEncoder().encode([Image.new("RGB", (8, 8), (200, 40 + k, 40)) for k in range(10)])

    def gap(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(model(reds)[:, 0].mean() - model(oranges)[:, 0].mean())

    assert gap(mined.result.model) > gap(mined.first.model) + 0.5


def test_a_pool_without_hard_cases_changes_nothing(folder: Path) -> None:
    pool = examples(folder)[:5]
    mined = train_with_mining(examples(folder), pool, ColourEncoder(), QUICK, count=9, views=1)
    assert mined.chosen == [] and mined.result is mined.first


def test_misfiled_images_are_suspects() -> None:
    data = made_up(60, 60, gap=10.0)
    labels = data.unsafe.clone()
    labels[[3, 17, 70]] = ~labels[[3, 17, 70]]
    wrong = replace(data, unsafe=labels, digests=[f"d{k}" for k in range(120)])
    result = train_cost(wrong, QUICK)
    found = suspects(result.held_out, wrong.unsafe, list(wrong.digests))
    assert {"d3", "d17", "d70"} <= {one.digest for one in found[:6]} and len(found) <= 12
    assert next(one for one in found if one.digest == "d70").unsafe


def test_suspects_by_hand() -> None:
    # Of five unsafe ones the second lowest costs 4, of five safe ones the second highest -2.
    costs = torch.tensor([4.0, 5.0, 6.0, 4.5, -3.0, -4.0, -2.0, -3.0, -5.0, 6.0])
    unsafe = torch.arange(10) < 5
    found = suspects(costs, unsafe, list("abcdefghij"))
    # j lies 6 - 4 = 2 beyond its bound, e lies -2 - -3 = 1; a and g lie on theirs but on their own side.
    assert [(one.digest, one.unsafe, one.cost) for one in found] == [("j", False, 6.0), ("e", True, -3.0)]
    assert [one.digest for one in suspects(costs, unsafe, list("abcdefghij"), most=1)] == ["j"]
    assert suspects(-costs, unsafe, list("abcdefghij")) == []


def test_reliability_by_hand() -> None:
    # Chances 0.9, 0.9 of two unsafe images; 0.9, 0.2, 0.2, 0.2 of four safe ones. In the bin from 0.5 up
    # weigh 2 * 1/2 against 1 * 1/4: observed 1 / 1.25 = 0.8; below lies no unsafe one.
    def cost(chance: float) -> float:
        return math.log(chance / (1 - chance))

    unsafe = torch.tensor([cost(0.9)] * 2)
    safe = torch.tensor([cost(0.9)] + [cost(0.2)] * 3)
    low, high = reliability(unsafe, safe, bins=2)
    assert (high.unsafe, high.safe, low.unsafe, low.safe) == (2, 1, 0, 3)
    assert high.observed == pytest.approx(0.8) and high.predicted == pytest.approx(0.9)
    assert low.observed == 0.0 and low.predicted == pytest.approx(0.2)
    assert math.isnan(reliability(unsafe, safe)[5].observed)


def test_held_out_costs_are_those_of_the_figures() -> None:
    data = made_up(40, 60, gap=6.0)
    result = train_cost(data, QUICK)
    above = (result.held_out > 0).double()
    assert result.figures.recall_at_zero == float(above[data.unsafe].mean())
    assert result.figures.fpr_at_zero == float(above[~data.unsafe].mean())
    counted = [(one.unsafe, one.safe) for one in result.reliability]
    assert (sum(u for u, _ in counted), sum(s for _, s in counted)) == (40, 60)


def test_the_page(folder: Path) -> None:
    listed = examples(folder)
    data = compute_features(listed, ColourEncoder(), views=1)
    result = train_cost(data, QUICK)
    files = {example.digest: example.path for example in listed}
    named = suspects(result.held_out, data.unsafe, list(data.digests))
    page = folder / "page.html"
    write_cost_report(page, "my <cost>", result, named, files)
    text = page.read_text(encoding="utf-8")
    assert "my &lt;cost&gt;" in text and text.count('<circle class="after dot"') >= 2
    assert text.count("data:image/") == len(named)
    assert "of 24" in text and "of 30" in text
    write_cost_report(page, "c", result, [], files)
    assert "None: no image" in page.read_text(encoding="utf-8")
    assert charts.reliability([]).count("circle") == 0


def test_the_door_says_all_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import runpy

    script = Path(__file__).resolve().parents[2] / "trainer" / "train_cost.py"
    main: Callable[[list[str]], int] = runpy.run_path(str(script))["main"]
    colour_folder(folder / "benign", ORANGE, 10, 3)
    # One harmful image among the harmless ones.
    Image.new("RGB", (24, 16), (203, 41, 38)).save(folder / "safe" / "oops.png")
    call = ["--unsafe", str(folder / "unsafe"), "--safe", str(folder / "safe"), "--encoder", "embedded"]
    call += ["--benign", str(folder / "benign"), "--views", "1", "--steps", "50", "--device", "cpu"]
    output, page = folder / "out" / "c.safetensors", folder / "out" / "page.html"
    assert main([*call, "--output", str(output), "--report", str(page)]) == 0
    told = capsys.readouterr().out
    assert "hard negatives found among 10 harmless images" in told
    assert "Looks misfiled (safe" in told and "oops.png" in told
    assert "oops.png" in page.read_text(encoding="utf-8")
    assert list((folder / "out" / ".features").rglob("*.safetensors"))
    from scdpo_core.cost.scorers import load_scorer

    red, green = load_scorer(output).score([Image.new("RGB", (9, 9), colour) for colour in (RED, GREEN)])
    assert red.value > green.value
