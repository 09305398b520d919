"""Files of ours that somebody changed: what is deep, of another kind or not finite is damaged, never a crash.

Thousands more of them: tests/campaign/test_own_files.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from scdpo_core.config.settings import load_toml
from scdpo_core.cost.feature_cache import FeatureCache
from scdpo_core.io.files import write_tensors
from scdpo_core.io.tensor_tree import load_tree, save_tree
from scdpo_core.scoring.table import Row, RowFile
from scdpo_core.training import checkpoint
from scdpo_core.training.labels import KnownCosts
from scdpo_core.training.saving import export
from scdpo_core.types import ScdpoError
from tests.support.scoring_helpers import Redness

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "changed",
    [
        {"cost": "high"},
        {"cost": True},
        {"bytes": "8"},
        {"band": "odd"},
        {"categories": {"a": []}},
        {"cost": None},
    ],
)
def test_a_row_of_other_values_is_scored_anew(changed: dict[str, object]) -> None:
    row = Row("/a.png", "0", 1.5, "unsafe", {"weapon": 1.5, "drug": None}, "x@0", None)
    sound = json.loads(row.to_json())
    assert Row.from_json(json.dumps(sound)) == row
    assert Row.from_json(json.dumps({**sound, **changed})) is None
    assert Row.from_json(DEEP) is None


def test_a_file_of_scores_that_holds_nothing_of_the_kind_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{DEEP}\n{DEEP}\n", "utf-8")
    with pytest.raises(ScdpoError, match="contains other things than scores"):
        RowFile.open(tmp_path / "a.jsonl")


@pytest.mark.parametrize("cost", ["NaN", "Infinity", '"1.5"', "[]", "true", DEEP])
def test_a_kept_cost_that_is_none_is_not_believed(tmp_path: Path, cost: str) -> None:
    scorer, image = Redness(), tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(image)
    known = KnownCosts(tmp_path / "costs.json", scorer)
    known.put(image, scorer.score([Image.new("RGB", (8, 8))])[0])
    known.write()
    text = (tmp_path / "costs.json").read_text("utf-8")
    assert KnownCosts(tmp_path / "costs.json", scorer).get(image) is not None
    (tmp_path / "costs.json").write_text(text.replace(" 0.0", f" {cost}"), "utf-8")
    assert KnownCosts(tmp_path / "costs.json", scorer).get(image) is None


@pytest.mark.parametrize(
    "tree",
    [DEEP, "[" * 900 + "]" * 900, "null", '{"tensor": "t9"}', '{"dict": [[[], 1]]}', '{"list": 3}', "{"],
)
def test_a_damaged_tree_says_so(tmp_path: Path, tree: str) -> None:
    path = checkpoint.path_of(tmp_path, 3)
    write_tensors(path, {"t0": torch.ones(2)}, {"scdpo_tree": tree})
    with pytest.raises(ValueError, match=r"step-000003.*is damaged"):
        load_tree(path)
    assert checkpoint.latest(tmp_path) == (None, [path])


@pytest.mark.parametrize(
    "changed",
    [
        {"step": "3"},
        {"adapter": {"a": 1}},
        {"adapter": {1: torch.ones(2)}},
        {"optimizer": []},
        {"dataset_hash": None},
        {"extra": {"averaged": {"a": "b"}}},
        {"extra": {"patience": {"best": {"step": 1, "adapter": {"a": None}}}}},
    ],
)
def test_a_checkpoint_of_another_shape_is_damaged(tmp_path: Path, changed: dict[str, object]) -> None:
    sound = {"format": 1, **vars(checkpoint.Checkpoint(3, {"a": torch.ones(2)}, {}))}
    save_tree(checkpoint.path_of(tmp_path, 3), sound)
    assert checkpoint.latest(tmp_path)[0] is not None
    save_tree(checkpoint.path_of(tmp_path, 3), {**sound, **changed})
    assert checkpoint.latest(tmp_path) == (None, [checkpoint.path_of(tmp_path, 3)])


@pytest.mark.parametrize(
    "changed", [{"rank": float("inf")}, {"family": "../../etc"}, {"dtype": "int8"}, {"facts": 3}]
)
def test_what_a_lora_is_for_is_damaged(tmp_path: Path, changed: dict[str, object]) -> None:
    checkpoint.save(tmp_path / "checkpoints", checkpoint.Checkpoint(3, {}, {}), keep=1)
    facts = {"family": "sd1", "rank": 4, "alpha": 4.0, "dtype": "fp16", "dialect": "kohya", "description": ""}
    changed_facts = {**facts, "facts": {}, **changed}
    (tmp_path / "checkpoints" / "lora.json").write_text(json.dumps(changed_facts), "utf-8")
    with pytest.raises(ScdpoError, match="missing or damaged"):
        export(tmp_path)


@pytest.mark.parametrize("digests", [DEEP, "[1, 2]", "{}", "[[], []]"])
def test_damaged_embeddings_are_computed_again(tmp_path: Path, digests: str) -> None:
    write_tensors(
        tmp_path / "k" / "a.safetensors", {"embeddings": torch.zeros(2, 1, 4)}, {"digests": digests}
    )
    assert FeatureCache(tmp_path).load("k") == {}


def test_a_number_of_thousands_of_digits_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(f"[optim]\nmax_train_steps = {'9' * 5000}\n", "utf-8")
    with pytest.raises(ScdpoError, match=r"job.toml cannot be read"):
        load_toml(tmp_path / "job.toml")
