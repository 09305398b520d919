"""The objectives that doors offer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from scdpo_core.config import toml
from scdpo_core.config.settings import ObjectiveName, ObjectiveSettings
from scdpo_core.runs.jobs import LoraJob, problems, text_of
from scdpo_core.runs.objectives import DEFAULT_LABEL, LABELS, OFFERED, OfferedObjective, objective_choice
from scdpo_core.types import ScdpoError

ROOT = Path(__file__).resolve().parents[2]


def job(tmp_path: Path, label: str, overrides: str = "") -> LoraJob:
    return LoraJob(
        ROOT / "examples" / "preferences", "micro", tmp_path, "calm", choices=objective_choice(label),
        overrides=overrides,
    )  # fmt: skip


def test_the_first_is_the_trainers_default_and_all_are_known_to_it() -> None:
    assert OFFERED[0].name == ObjectiveSettings().objective
    assert {one.name for one in OFFERED} <= set(get_args(ObjectiveName))
    assert len(set(LABELS)) == len(LABELS) and all(one.worth.endswith(".") for one in OFFERED)


@pytest.mark.parametrize("one", OFFERED[1:], ids=LABELS[1:])
def test_a_chosen_objective_is_in_the_job_and_cannot_be_said_twice(
    one: OfferedObjective, tmp_path: Path
) -> None:
    label, name = one.label, one.name
    assert toml.loads(text_of(job(tmp_path, label)))["objective"] == {"objective": name}
    assert problems(job(tmp_path, label)) == []
    twice = problems(job(tmp_path, label, '[objective]\nobjective = "esd"'))
    assert twice == ["Advanced settings: 'objective.objective' is chosen above; leave it out."]


def test_the_default_leaves_the_objective_to_further_settings(tmp_path: Path) -> None:
    assert "objective" not in toml.loads(text_of(job(tmp_path, DEFAULT_LABEL)))
    peer = job(tmp_path, DEFAULT_LABEL, '[objective]\nobjective = "esd"')
    assert problems(peer) == [] and toml.loads(text_of(peer))["objective"] == {"objective": "esd"}


def test_an_unknown_label_is_a_sentence() -> None:
    with pytest.raises(ScdpoError, match=r"There is no objective 'x'. Choose one of: redirect and keep, "):
        objective_choice("x")


@pytest.mark.parametrize("language", ["en", "ja", "zh"])
def test_the_nodes_tooltip_and_help_page_say_what_each_is_worth(language: str) -> None:
    words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    tooltip = words["SCDPO_TrainSafetyLora"]["inputs"]["objective"]["tooltip"]
    docs = ROOT / "comfy_nodes" / "web" / "docs"
    page = (
        docs / ("SCDPO_TrainSafetyLora.md" if language == "en" else f"SCDPO_TrainSafetyLora/{language}.md")
    ).read_text("utf-8")
    for label in LABELS:
        assert label in tooltip and f"`{label}`" in page
