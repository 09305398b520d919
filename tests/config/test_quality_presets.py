"""What the qualities of a door hand to the trainer for every base model: objective, beta, winner term."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from scdpo_core.config.resolve import on_top_of_preset
from scdpo_core.config.settings import ObjectiveSettings, TrainSettings
from scdpo_core.config.terms import TERM_OBJECTIVES, term_weights
from scdpo_core.families import FAMILIES
from scdpo_core.family_info import MICRO
from scdpo_core.runs.jobs import QUALITIES, LoraJob, Quality, write
from scdpo_core.runs.objectives import DEFAULT_LABEL, OFFERED, OfferedObjective, objective_choice
from tests.support.tiny import tiny_pairs
from tests.support.tiny_families import FLOWS, tiny_folder

CONFIGS = Path(__file__).resolve().parents[2] / "trainer" / "configs"
BASES = (MICRO, *FAMILIES)
# SC-DPO's beta is 2000 for Stable Diffusion 1, 2 and XL. A flow's errors count half of it, those of the
# embedded model a tenth. The winner term is half of beta everywhere: that ratio decides what is learnt.
BETAS = {MICRO: 200.0, **{name: 1000.0 if name in FLOWS else 2000.0 for name in FAMILIES}}
WINNER = 0.5
STEPS = {"fast": (75, 200), "normal": (150, 700), "best": (400, 1500)}


@pytest.fixture(scope="module", name="bases")
def _bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bases")
    found = {family: str(tiny_folder(family, folder / family)) for family in FAMILIES}
    return {MICRO: MICRO, **found}


def handed_over(base: str, quality: Quality, label: str, tmp_path: Path) -> TrainSettings:
    """The settings that the trainer makes of a door's job.toml."""
    pairs = tiny_pairs(tmp_path / "pairs", 2)
    job = LoraJob(pairs, base, tmp_path / "runs", "calm", quality, choices=objective_choice(label))
    return on_top_of_preset(CONFIGS, write(job) / "job.toml", None, None)


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("base", BASES)
def test_every_quality_hands_over_the_default_objective(
    base: str, quality: Quality, bases: dict[str, str], tmp_path: Path
) -> None:
    settings = handed_over(bases[base], quality, DEFAULT_LABEL, tmp_path)
    assert settings.objective.objective == ObjectiveSettings().objective == "redirect_keep"
    # Its terms count as they are, whatever a preset says of beta: 1, 5, 1 and 5.
    assert settings.objective.term_unit == 1.0
    assert term_weights(settings.objective.objective, settings.terms, benign_prompts=0) == {
        "redirect": 1.0, "keep": 5.0, "keep_empty": 1.0, "keep_text": 5.0,
    }  # fmt: skip
    assert settings.optim.max_train_steps == STEPS[quality][base != MICRO]


@pytest.mark.parametrize("one", OFFERED, ids=[one.name for one in OFFERED])
@pytest.mark.parametrize("base", BASES)
def test_beta_and_the_winners_share_of_it_are_of_one_piece(
    base: str, one: OfferedObjective, bases: dict[str, str], tmp_path: Path
) -> None:
    name, label = one.name, one.label
    own = handed_over(bases[base], "normal", label, tmp_path).objective
    assert own.objective == name
    assert (own.winner, own.beta) == (WINNER, None)
    assert own.effective_beta == (1.0 if name in TERM_OBJECTIVES else BETAS[base])


def test_no_preset_of_a_base_model_names_an_objective_a_beta_or_a_winner_term() -> None:
    for base in BASES:
        own = on_top_of_preset(CONFIGS, None, None if base == MICRO else base, base).objective
        changed = {
            field.name
            for field in dataclasses.fields(own)
            if getattr(own, field.name) != getattr(ObjectiveSettings(), field.name)
        }
        assert changed <= {"beta_scale", "timesteps", "timestep_mean"}, base
