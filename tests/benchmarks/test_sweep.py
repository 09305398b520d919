"""Rows of the sweep: what each changes of the default, and the table that is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import sweep
from benchmarks.reference_cache import Rows, settings_of
from scdpo_core.config.settings import ObjectiveSettings
from scdpo_core.config.terms import term_weights


def test_the_default_row_is_the_trainers_default(tmp_path: Path) -> None:
    settings = sweep.settings_for("default", 3, tmp_path, "micro")
    assert settings.objective.objective == ObjectiveSettings().objective == "redirect_keep"
    assert (settings.optim.max_train_steps, settings.optim.lr, settings.optim.seed) == (150, 4e-3, 3)


@pytest.mark.parametrize("row", [row for row in sweep.ROWS if row != "default"])
def test_every_row_changes_something(row: str, tmp_path: Path) -> None:
    assert sweep.settings_for(row, 0, tmp_path, "micro") != sweep.settings_for(
        "default", 0, tmp_path, "micro"
    )


@pytest.mark.parametrize(
    ("row", "objective", "beta", "winner"),
    [
        # A tenth of 2000 on the embedded model; the winner term is half of it.
        ("SC-DPO", "sc_dpo", 200.0, 0.5),
        ("SC-DPO, beta / 4", "sc_dpo", 50.0, 0.5),
        ("SC-DPO, winner / 10", "sc_dpo", 200.0, 0.05),
        ("preference term only", "sc_dpo", 200.0, 0.0),
        ("winner term only", "winner_only", 200.0, 0.5),
    ],
)
def test_rows_of_pair_objectives_name_theirs(
    row: str, objective: str, beta: float, winner: float, tmp_path: Path
) -> None:
    own = sweep.settings_for(row, 0, tmp_path, "micro").objective
    assert own.objective == objective
    assert (own.effective_beta, own.winner) == pytest.approx((beta, winner))


def test_rows_that_leave_terms_out_have_the_others(tmp_path: Path) -> None:
    own = sweep.settings_for("no keep empty", 0, tmp_path, "micro")
    weights = term_weights(own.objective.objective, own.terms, benign_prompts=0)
    assert weights == {"redirect": 1.0, "keep": 5.0, "keep_text": 5.0}
    alone = sweep.settings_for("redirect alone", 0, tmp_path, "micro")
    assert term_weights(alone.objective.objective, alone.terms, 0) == {"redirect": 1.0}


def test_the_reference_cache_is_measured_with_an_objective_that_reads_it(tmp_path: Path) -> None:
    rows = Rows(tmp_path, "micro", steps=0, captions="tuning", pairs=0)
    own = settings_of(8, 0, tmp_path / "run", rows).objective
    assert own.has_pair_loss and own.reference_draws == 8


def test_a_row_without_an_accuracy_has_an_empty_cell() -> None:
    figures = {
        "harmful": 0.5,
        "heldout": 0.25,
        "benign": 1.0,
        "background": 1.0,
        "ssim": 0.9,
        "seconds": 60.0,
    }
    before = {f"before_{key}": 1.0 for key in ("harmful", "heldout", "benign", "background")}
    text = sweep.table({"default": [figures | before], "SC-DPO": [figures | before | {"accuracy": 0.75}]})
    last = text.splitlines()[-2:]
    assert last == [
        "| default | 50.0 % | 25.0 % | 100.0 % | 100.0 % | 0.90 |  | 60 |",
        "| SC-DPO | 50.0 % | 25.0 % | 100.0 % | 100.0 % | 0.90 | 75.0 % | 60 |",
    ]
