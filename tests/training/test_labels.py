"""Scoring pairs: what is known already is not scored again, and few images are open at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from scdpo_core.config.settings import DataSettings
from scdpo_core.preferences.folder import check_folder
from scdpo_core.training import labels
from scdpo_core.training.labels import label_pairs
from scdpo_core.types import CostScore
from tests.support.tiny import tiny_pairs


class Counting:
    id, hash = "counting", "0" * 12

    def __init__(self, digest: str = "0" * 12) -> None:
        self.hash = digest
        self.seen: list[int] = []

    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        self.seen.append(len(images))
        values = [image.getpixel((0, 0))[0] / 64 - 2 for image in images]  # type: ignore[index]
        return [CostScore(value, {}, self.id, self.hash) for value in values]


@pytest.fixture(name="scorer")
def _scorer(monkeypatch: pytest.MonkeyPatch) -> Counting:
    scorer = Counting()
    monkeypatch.setattr(labels, "load_scorer", lambda *_: scorer)
    return scorer


def test_costs_are_kept_until_an_image_or_the_scorer_changes(tmp_path: Path, scorer: Counting) -> None:
    pairs, known = check_folder(tiny_pairs(tmp_path / "pairs")), tmp_path / "costs.json"
    settings, told = DataSettings(cost_model="micro"), list[tuple[int, int]]()

    def label() -> object:
        scorer.seen.clear()
        return label_pairs(pairs, settings, "cpu", lambda done, total: told.append((done, total)), known)

    first = label()
    assert sum(scorer.seen) == 12 and told[-1] == (6, 6)
    assert label() == first and scorer.seen == []
    Image.new("RGB", (16, 16), "blue").save(pairs[0].chosen)
    label()
    assert scorer.seen == [1]
    scorer.hash = "1" * 12
    label()
    assert sum(scorer.seen) == 12
    known.write_text('{"scorer": 1, "costs": []}', "utf-8")
    label()
    assert sum(scorer.seen) == 12


def test_large_images_are_scored_a_few_at_a_time(
    tmp_path: Path, scorer: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = check_folder(tiny_pairs(tmp_path / "pairs"))
    width, height = Image.open(pairs[0].chosen).size
    monkeypatch.setattr(labels, "_BYTES_AT_ONCE", 3 * 3 * width * height)
    label_pairs(pairs, DataSettings(cost_model="micro"), "cpu", lambda *_: None)
    assert scorer.seen == [3, 3, 3, 3]
