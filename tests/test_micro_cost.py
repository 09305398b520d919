"""The cost model of the embedded world, trained on the shipped pictures and measured on others.

On held-out pictures it is where it is meant to be, and in a style that its own training did not see. In one
that the image tower did not see either it is not: there the thresholds hold what it reaches, so that nothing
makes it worse; docs/embedded-model.md says more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from scdpo_core.cost.calibration import figures
from scdpo_core.cost.encoders import load_encoder
from scdpo_core.cost.examples import check, list_folders
from scdpo_core.cost.features import VIEWS, FeatureSet, compute_features
from scdpo_core.cost.scorers import SCORERS
from scdpo_core.cost.training import CostTrainingResult, train_cost
from scdpo_core.micro.world import BACKGROUNDS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def features(folder: Path, views: int) -> FeatureSet:
    listed = check(list_folders(folder / "unsafe", folder / "safe"))
    assert not listed.problems
    return compute_features(listed.examples, load_encoder("micro"), views=views)


@dataclass(frozen=True)
class Trained:
    data: FeatureSet
    result: CostTrainingResult
    unseen: FeatureSet

    def costs(self, data: FeatureSet) -> torch.Tensor:
        with torch.no_grad():
            return self.result.model(data.embeddings[:, 0])[:, 0]


@pytest.fixture(scope="module")
def trained() -> Trained:
    data = features(EXAMPLES / "cost_pictures", VIEWS)
    return Trained(data, train_cost(data), features(EXAMPLES / "unseen_style", 1))


def test_held_out_pictures_are_told_apart(trained: Trained) -> None:
    found = trained.result.figures
    assert found.unsafe >= 200
    assert found.safe >= 500
    assert found.auc >= 0.99
    assert found.fpr_at_zero <= 0.02
    assert found.recall_at_zero >= 0.95


def test_most_pictures_in_a_style_that_the_tower_did_not_see_either_are_too(trained: Trained) -> None:
    costs, unsafe = trained.costs(trained.unseen), trained.unseen.unsafe
    found = figures(costs[unsafe], costs[~unsafe])
    assert found.auc >= 0.94
    assert found.fpr_at_zero <= 0.03
    assert found.recall_at_zero >= 0.84


@pytest.mark.slow
@pytest.mark.parametrize("style", ["fluent-3d", "emojione"])
def test_a_style_that_this_training_did_not_see_is_judged_as_well(style: str) -> None:
    folder = EXAMPLES / "cost_pictures"
    left_out = {folder / file for file in json.loads((folder / "styles.json").read_text("utf-8"))[style]}
    listed = check(list_folders(folder / "unsafe", folder / "safe")).examples
    known, new = ([e for e in listed if (e.path in left_out) is out] for out in (False, True))
    assert len(new) == len(left_out) >= 190
    encoder = load_encoder("micro")
    model = train_cost(compute_features(known, encoder)).model
    data = compute_features(new, encoder, views=1)
    with torch.no_grad():
        costs = model(data.embeddings[:, 0])[:, 0]
    found = figures(costs[data.unsafe], costs[~data.unsafe])
    assert found.auc >= 0.99
    assert found.fpr_at_zero <= 0.02
    assert found.recall_at_zero >= 0.95


def test_every_category_has_a_cost_of_its_own(trained: Trained) -> None:
    measured = trained.result.categories
    assert set(measured) == {"weapon", "drug", "death", "insult"}
    for name, found in measured.items():
        assert found is not None, name
        assert found.auc >= 0.97, name


@pytest.mark.parametrize("background", sorted(BACKGROUNDS))
def test_an_empty_background_is_safe(background: str) -> None:
    (score,) = SCORERS["micro"].load("cpu").score([Image.new("RGB", (64, 64), BACKGROUNDS[background])])
    assert score.value < -2
