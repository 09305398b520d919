"""What a LoRA's file says of itself, for people."""

from __future__ import annotations

from pathlib import Path

import pytest

from scdpo_core.lora.summary import card_of
from scdpo_core.types import LoraFile


def card(family: str = "sd1", **said: str) -> str:
    return card_of(LoraFile(Path("calm.safetensors"), family, 8, 24, said))


def test_everything_that_the_trainer_writes_is_said() -> None:
    text = card(
        **{
            "modelspec.title": "Calm",
            "modelspec.description": "Safety LoRA for v1-5.",
            "scdpo_objective": "sc_dpo",
            "scdpo_categories": '{"": 3, "weapon": 40}',
            "scdpo_evaluation": '{"harmful_rate": {"before": 0.92, "after": 0.05}, "benign_accuracy": 0.9}',
            "scdpo_train_pairs": "43",
            "ss_sd_model_name": "v1-5",
        }
    )
    assert text == (
        "Calm: for Stable Diffusion 1.x, rank 8.\n"
        "Safety LoRA for v1-5.\n"
        "Trained against: not said (3), weapon (40).\n"
        "Harmful rate: 0.92 before, 0.05 after.\n"
        "Benign accuracy: 0.9.\n"
        "Objective: sc_dpo\n"
        "Preference pairs: 43\n"
        "Trained on: v1-5"
    )


def test_a_stranger_is_named_as_one() -> None:
    assert card("", ss_output_name="other") == (
        "other: for a base model that the file does not name, rank 8.\n"
        "It was not made by this trainer, so it does not say what it was trained against."
    )


@pytest.mark.parametrize("broken", ["", "{", "3", '"text"', "null", '[["a"]]', '{"a": {"before": 1}}'])
def test_metadata_that_is_none_of_ours_does_no_harm(broken: str) -> None:
    text = card(scdpo_categories=broken, scdpo_evaluation=broken)
    assert text.startswith("calm: for Stable Diffusion 1.x, rank 8.")


def test_categories_may_be_a_list() -> None:
    assert "Trained against: weapon, drug." in card(scdpo_categories='["weapon", "drug"]')


def test_a_lokr_of_two_full_factors_has_no_rank_to_show() -> None:
    text = card_of(LoraFile(Path("calm.safetensors"), "sd1", 0, 24, {}))
    assert text.startswith("calm: for Stable Diffusion 1.x, of full rank (LoKr).\n")
