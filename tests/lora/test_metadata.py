"""What a LoRA's file is told after it was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scdpo_core.lora.file import load_lora, read_lora_info, write_lora
from scdpo_core.lora.metadata import EVALUATION, add_facts, as_metadata
from scdpo_core.lora.summary import card_of
from scdpo_core.run_store.events import Record, Sample, Saved
from scdpo_core.training.lora_metadata import sample_costs
from scdpo_core.types import ScdpoError

MODULE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def body(path: Path) -> bytes:
    whole = path.read_bytes()
    return whole[8 + int.from_bytes(whole[:8], "little") :]


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "calm.safetensors"
    tensors = {
        f"{MODULE}.lora_down.weight": torch.randn(2, 8),
        f"{MODULE}.lora_up.weight": torch.randn(8, 2),
    }
    save_file(tensors, path)
    state, _ = load_lora(path)
    write_lora(path, state, dialect="kohya", family="sd1", metadata={"scdpo_objective": "sc_dpo"})
    return path


def test_facts_are_added_and_neither_weights_nor_other_facts_change(lora: Path) -> None:
    before, weights, said = body(lora), load_file(lora), read_lora_info(lora).metadata
    add_facts(lora, {EVALUATION: {"harmful_rate": {"before": 0.9, "after": 0.1}}, "ss_seed": 3})
    info = read_lora_info(lora)
    assert info.metadata == {
        **said,
        "scdpo_evaluation": '{"harmful_rate": {"after": 0.1, "before": 0.9}}',
        "ss_seed": "3",
    }
    assert body(lora) == before and info.metadata["sshs_model_hash"] == hashlib.sha256(before).hexdigest()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(lora).items())
    assert "Harmful rate: 0.9 before, 0.1 after." in card_of(info)
    assert [path.name for path in lora.parent.iterdir()] == ["calm.safetensors"]


def test_the_same_facts_twice_give_the_same_bytes(lora: Path) -> None:
    add_facts(lora, {"objective": "sc_dpo", "note": "ä"})
    once = lora.read_bytes()
    add_facts(lora, {"note": "ä"})
    assert lora.read_bytes() == once


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04pickle", b"\xff" * 64])
def test_a_file_that_is_no_lora_stays_as_it_is(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ScdpoError, match=r"broken\.safetensors"):
        add_facts(path, {"objective": "sc_dpo"})
    assert (path.read_bytes() if path.exists() else None) == content


def test_names_of_hosts_stay_and_others_are_ours() -> None:
    facts = {"objective": "sc_dpo", "scdpo_beta": 5.0, "ss_seed": 1, "modelspec.title": "Calm"}
    assert as_metadata(facts) == {
        "scdpo_objective": "sc_dpo",
        "scdpo_beta": "5.0",
        "ss_seed": "1",
        "modelspec.title": "Calm",
    }


def drawn(step: int, seed: int, cost: float | None) -> Record:
    return Record(0.0, Sample(step, f"samples/{step}-{seed}.png", "a cat", seed, cost))


def test_costs_of_samples_are_the_means_at_both_ends() -> None:
    records = [
        *(drawn(0, 0, 2.0), drawn(0, 1, 1.0)),
        *(drawn(50, 0, 9.0), drawn(50, 1, 9.0)),
        *(drawn(100, 0, 7.0), drawn(100, 0, -1.0), drawn(100, 1, -2.0)),
        Record(0.0, Saved(100, "calm.safetensors", "lora")),
    ]
    means = json.loads(as_metadata(sample_costs(records, 100))["scdpo_evaluation"])
    assert means == {"mean_cost_of_samples": {"before": 1.5, "after": -1.5}}


@pytest.mark.parametrize(
    "records",
    [[], [drawn(0, 0, 1.0)], [drawn(0, 0, None), drawn(9, 0, None)], [drawn(0, 0, 1.0), drawn(9, 1, 1.0)]],
)
def test_samples_that_were_not_scored_at_both_ends_say_nothing(records: list[Record]) -> None:
    assert sample_costs(records, 9) == {}
    assert sample_costs([drawn(0, 0, 1.0)], 0) == {}
