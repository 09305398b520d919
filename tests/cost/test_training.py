from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scdpo_core.cost import losses
from scdpo_core.cost.calibration import figures
from scdpo_core.cost.fit import CostSettings, Learner
from scdpo_core.cost.model import CostModel
from scdpo_core.cost.training import assign_folds, train_cost
from scdpo_core.types import ScdpoError
from tests.support.cost_helpers import DIM, made_up

QUICK = CostSettings(steps=100, batch=64, check_every=20, bottleneck=16, lr=3e-3)


def test_separable_images_are_separated_on_held_out_ones() -> None:
    result = train_cost(made_up(150, 250, gap=8.0), QUICK)
    new = made_up(200, 200, gap=8.0, seed=1)
    costs = result.model(new.embeddings[:, 0])[:, 0]
    found = figures(costs[new.unsafe], costs[~new.unsafe])
    assert result.figures.auc > 0.99
    assert found.auc > 0.99 and found.fpr_at_zero <= 0.03 and found.recall_at_zero > 0.8
    assert result.warnings == ()


@pytest.mark.parametrize("start", [-10.0, 10.0])
def test_anchoring_is_what_gives_zero_its_meaning(start: float) -> None:
    # The contrastive loss does not change when a constant is added to every cost, so zero stays wherever it
    # starts, and nothing or everything counts as harmful, however well the images are put in order.
    data = made_up(gap=8.0)
    found, bias = {}, {}
    for eta in (0.0, 1.0):
        torch.manual_seed(0)
        model = CostModel(DIM, bottleneck=16, dropout=0.0)
        torch.nn.init.constant_(model.heads.bias, start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(200):
            raw = model.raw(data.embeddings[:, 0])[:, 0]
            loss = losses.total(raw[data.unsafe], raw[~data.unsafe], eta=eta, regularisation=0.0)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        raw = model.raw(data.embeddings[:, 0])[:, 0].detach()
        found[eta] = figures(raw[data.unsafe], raw[~data.unsafe])
        bias[eta] = model.heads.bias.item()
    assert bias[0.0] == pytest.approx(start, abs=1e-3)
    assert found[0.0].auc > 0.99 and found[1.0].auc > 0.99
    assert (found[0.0].recall_at_zero < 0.2) if start < 0 else (found[0.0].fpr_at_zero > 0.8)
    assert found[1.0].fpr_at_zero < 0.05 and found[1.0].recall_at_zero > 0.95


@pytest.mark.parametrize(("contrast", "eta"), [(0.0, 1.0), (1.0, 0.0)])
def test_each_half_of_the_loss_alone_learns_and_is_calibrated(contrast: float, eta: float) -> None:
    # The heads' biases start the same, so contrasting alone would leave zero where LayerNorm put it.
    result = train_cost(made_up(120, 120, gap=8.0), replace(QUICK, contrast=contrast, eta=eta))
    assert result.figures.auc > 0.99
    assert result.figures.fpr_at_zero <= 0.03 and result.figures.recall_at_zero > 0.9
    assert result.steps > QUICK.check_every


@pytest.mark.parametrize(("contrast", "eta"), [(0.0, 0.0), (-1.0, 1.0)])
def test_a_loss_of_nothing_is_refused(contrast: float, eta: float) -> None:
    with pytest.raises(ScdpoError, match="at least one must be above 0"):
        train_cost(made_up(), replace(QUICK, contrast=contrast, eta=eta))


def test_without_anchoring_the_held_out_loss_knows_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    # A constant on every cost must change neither the number of steps nor the calibrated costs.
    settings, made = replace(QUICK, eta=0.0, regularisation=0.0), made_up()
    raw = CostModel.raw
    monkeypatch.setattr(CostModel, "raw", lambda self, z: raw(self, z) + 50.0)
    moved = train_cost(made, settings)
    monkeypatch.undo()
    plain = train_cost(made, settings)
    assert moved.steps == plain.steps
    assert torch.allclose(moved.held_out, plain.held_out, atol=0.1)


def test_the_same_seed_gives_the_same_model_and_leaves_the_hosts_randomness() -> None:
    data = made_up()
    torch.manual_seed(5)
    untouched = torch.rand(1)
    torch.manual_seed(5)
    first = train_cost(data, QUICK)
    assert torch.equal(torch.rand(1), untouched)
    second = train_cost(data, QUICK)
    other = train_cost(data, replace(QUICK, seed=1))
    embedding = data.embeddings[:, 0]
    assert torch.equal(first.model(embedding), second.model(embedding))
    assert not torch.equal(first.model(embedding), other.model(embedding))


def test_a_few_unsafe_among_many_safe_images_are_found() -> None:
    data = made_up(30, 600, gap=8.0)
    result = train_cost(data, QUICK)
    assert result.figures.recall_at_zero > 0.8
    assert result.figures.fpr_at_zero < 0.03


def test_categories_have_heads_of_their_own() -> None:
    data = made_up(120, 200, gap=8.0, categories={"drug": 60, "weapon": 55, "rare": 5})
    result = train_cost(data, QUICK)
    assert result.model.categories == ("drug", "weapon")
    assert result.categories["rare"] is None
    assert any("'rare' has only 5" in warning for warning in result.warnings)
    drug = result.categories["drug"]
    assert drug is not None and drug.auc > 0.95
    # 60 shown; without it: the other 60 unsafe ones and 200 safe ones
    assert (drug.unsafe, drug.safe) == (60, 260)
    costs = result.model(data.embeddings[:, 0])
    assert (costs[:60, 1] > costs[:60, 2]).float().mean() > 0.9


def test_images_of_unknown_category_teach_no_category() -> None:
    data = made_up(60, 60, gap=8.0, categories={"drug": 30})
    labels = data.labels.clone()
    labels[30:60] = float("nan")
    result = train_cost(replace(data, labels=labels), QUICK)
    drug = result.categories["drug"]
    assert drug is not None and (drug.unsafe, drug.safe) == (30, 60)


def test_progress_is_told() -> None:
    seen: list[tuple[int, int, float]] = []
    result = train_cost(made_up(), QUICK, lambda step, steps, loss: seen.append((step, steps, loss)))
    assert [step for step, _, _ in seen] == [20, 40, 60, 80, 100][: len(seen)]
    assert min(seen, key=lambda row: row[2])[0] == result.steps


def test_training_stops_when_held_out_images_gain_nothing() -> None:
    # Labels that are pure chance: the held-out loss rises from early on.
    data = made_up(gap=0.0)
    result = train_cost(data, replace(QUICK, steps=2000, check_every=10, patience=3, lr=1e-2))
    assert result.steps < 300
    assert any("hardly separates" in warning for warning in result.warnings)


def test_few_safe_images_are_said_so() -> None:
    result = train_cost(made_up(30, 30, gap=8.0), QUICK)
    assert result.calibration[""].rule == "extrapolated"
    assert any("on 30 safe images" in warning and "99 or more" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("unsafe", "safe", "kind"),
    [(19, 50, "19 different unsafe.*be measured"), (50, 0, "0 different safe")],
)
def test_too_few_images_are_refused(unsafe: int, safe: int, kind: str) -> None:
    with pytest.raises(ScdpoError, match=kind):
        train_cost(made_up(unsafe, safe), QUICK)


def test_a_loss_that_is_no_number_is_a_sentence() -> None:
    data = made_up()
    broken = data.embeddings.clone()
    broken[3] = float("nan")
    with pytest.raises(ScdpoError, match="became NaN"):
        train_cost(replace(data, embeddings=broken), QUICK)


def test_folds_keep_groups_whole_and_kinds_even() -> None:
    data = made_up(40, 60, categories={"drug": 20})
    # Each unsafe image is the twin of the safe one 40 further on; 20 safe ones are alone.
    groups = [str(n % 40) if n < 80 else f"alone{n}" for n in range(100)]
    fold = assign_folds(replace(data, groups=groups), 5, seed=0)
    assert torch.equal(fold[:40], fold[40:80])
    for k in range(5):
        here = fold == k
        # 20 drug pairs, 20 other pairs, 20 alone: four of each
        assert (here[:20].sum(), here[20:40].sum(), here[80:].sum()) == (4, 4, 4)


def test_folds_do_not_depend_on_the_order() -> None:
    data = made_up(20, 20)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = replace(
        data,
        unsafe=data.unsafe[order],
        labels=data.labels[order],
        groups=[data.groups[n] for n in order.tolist()],
    )
    assert torch.equal(assign_folds(moved, 5, 0), assign_folds(data, 5, 0)[order])


def test_twins_are_compared_with_each_other() -> None:
    # The unsafe images of world A and the safe ones of world B look alike; only an image's own twin tells.
    data = made_up(40, 40, gap=8.0)
    paired = replace(data, twins=torch.cat([torch.arange(40, 80), torch.full((40,), -1)]))
    learner = Learner(paired, data.unsafe[:, None].float(), (), torch.ones_like(data.unsafe), QUICK)
    for _ in range(100):
        learner.step()
    raw = learner.score(torch.ones_like(data.unsafe))[:, 0]
    assert (raw[:40] > raw[40:]).all()
