from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from scdpo_core.cost.model import CostFacts, CostFileError, CostModel, load_cost, save_cost
from scdpo_core.cost.scorers import MICRO_COST, SCORERS, TrainedScorer, load_scorer
from scdpo_core.io.files import read_tensors, sha256_of, write_tensors
from scdpo_core.types import ScdpoError
from tests.support.cost_helpers import DIM, ColourEncoder

FACTS = CostFacts(
    name="my-cost",
    encoder="colour",
    encoder_hash=ColourEncoder.hash,
    encoder_source="nowhere/colour",
    training_set="ab" * 32,
    untrained=("rare",),
    calibration={"target_fpr": 0.01, "benign": 200},
    figures={"auc": 0.99},
)


def model(categories: tuple[str, ...] = ("weapon", "drug")) -> CostModel:
    torch.manual_seed(0)
    made = CostModel(DIM, categories, bottleneck=8)
    torch.nn.init.normal_(made.up.weight)
    made.scale.copy_(torch.tensor([2.0, 1.0, 0.5][: 1 + len(categories)]))
    made.offset.copy_(torch.tensor([0.3, 0.0, -1.0][: 1 + len(categories)]))
    return made.eval()


def test_the_formula() -> None:
    made, embedding = model(), torch.randn(4, DIM)
    z = embedding / embedding.norm(dim=-1, keepdim=True)
    a = z + F.gelu(z @ made.down.weight.T) @ made.up.weight.T
    centred = a - a.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = normed @ made.heads.weight.T + made.heads.bias
    torch.testing.assert_close(made.raw(embedding), expected)
    torch.testing.assert_close(made(embedding), made.scale * (expected - made.offset))


def test_the_length_of_an_embedding_does_not_matter() -> None:
    made, embedding = model(), torch.randn(4, DIM)
    torch.testing.assert_close(made(embedding), made(7.5 * embedding))


def test_the_adapter_starts_as_the_identity() -> None:
    made = CostModel(DIM).eval()
    z = F.normalize(torch.randn(3, DIM), dim=-1)
    torch.testing.assert_close(made.raw(z), made.heads(made.norm(z)))


def test_round_trip(tmp_path: Path) -> None:
    save_cost(tmp_path / "c.safetensors", model(), FACTS)
    loaded, facts = load_cost(tmp_path / "c.safetensors")
    embedding = torch.randn(5, DIM)
    assert facts == FACTS
    assert loaded.categories == ("weapon", "drug")
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded(embedding), model()(embedding))


def test_a_file_reads_as_plain_metadata(tmp_path: Path) -> None:
    save_cost(tmp_path / "c.safetensors", model(), FACTS)
    _, metadata = read_tensors(tmp_path / "c.safetensors")
    assert metadata["format"] == "scdpo-cost"
    assert metadata["encoder_hash"] == ColourEncoder.hash
    assert json.loads(metadata["categories"]) == ["weapon", "drug"]


def damaged(path: Path, kind: str) -> None:
    save_cost(path, model(), FACTS)
    tensors, metadata = read_tensors(path)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"w": [1.0]}))
    elif kind == "text":
        path.write_text("not a model", encoding="utf-8")
    elif kind == "other":
        write_tensors(path, tensors, {"format": "pt"})
    elif kind == "newer":
        write_tensors(path, tensors, {**metadata, "version": "2"})
    elif kind == "missing tensor":
        del tensors["up.weight"]
        write_tensors(path, tensors, metadata)
    elif kind == "missing fact":
        del metadata["encoder_hash"]
        write_tensors(path, tensors, metadata)
    elif kind == "heads":
        write_tensors(path, tensors, {**metadata, "categories": '["weapon"]'})
    elif kind == "nan":
        tensors["heads.bias"][0] = float("nan")
        write_tensors(path, tensors, metadata)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("cut off", "damaged"),
        ("empty", "damaged"),
        ("pickle", "pickle"),
        ("text", "not a safetensors file"),
        ("other", "not a cost model"),
        ("newer", "format 2"),
        ("missing tensor", "missing or wrong parts"),
        ("missing fact", "missing or wrong parts"),
        ("heads", "missing or wrong parts"),
        ("nan", "NaN or infinite"),
    ],
)
def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path, kind: str, says: str) -> None:
    path = tmp_path / "c.safetensors"
    damaged(path, kind)
    with pytest.raises(CostFileError, match=says) as caught:
        load_cost(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CostFileError, match=r"no file .*c\.safetensors"):
        load_cost(tmp_path / "c.safetensors")


def test_an_unwritable_place_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(CostFileError, match="could not be written"):
        save_cost(tmp_path / "file" / "c.safetensors", model(), FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def images() -> list[Image.Image]:
    return [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]


def test_a_scorer_scores(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_cost(path, model(), FACTS)
    scorer = load_scorer(path, encoder=ColourEncoder())
    scores = scorer.score(images())
    expected = model()(ColourEncoder().encode(images()))
    assert [score.value for score in scores] == pytest.approx(expected[:, 0].tolist())
    assert scores[1].categories == pytest.approx(
        {"weapon": expected[1, 1].item(), "drug": expected[1, 2].item(), "rare": None}
    )
    assert scorer.categories == ("weapon", "drug", "rare")
    assert {score.scorer for score in scores} == {"my-cost"}
    assert {score.scorer_hash for score in scores} == {sha256_of(path)[:12]} == {scorer.hash}


def test_a_scorer_of_nothing(tmp_path: Path) -> None:
    save_cost(tmp_path / "c.safetensors", model(()), replace(FACTS, untrained=()))
    scorer = TrainedScorer(tmp_path / "c.safetensors", encoder=ColourEncoder())
    assert scorer.score([]) == []
    assert scorer.score(images())[0].categories == {}


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    save_cost(tmp_path / "c.safetensors", model(), replace(FACTS, encoder_hash="d" * 64))
    with pytest.raises(CostFileError, match=r"trained with the image encoder 'colour' \(hash dddddddddddd\)"):
        load_scorer(tmp_path / "c.safetensors", encoder=ColourEncoder())


def test_a_lost_encoder_is_named(tmp_path: Path) -> None:
    save_cost(tmp_path / "c.safetensors", model(), FACTS)
    with pytest.raises(CostFileError, match=r"needs the image encoder 'colour'.*nowhere/colour"):
        load_scorer(tmp_path / "c.safetensors")


def test_an_unknown_scorer_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ScdpoError, match=r"no scorer and no cost model file 'mikro'.*micro"):
        load_scorer("mikro")


@pytest.mark.skipif(not MICRO_COST.is_file(), reason="the embedded cost model is not built yet")
def test_the_embedded_scorer_loads() -> None:
    scorer = SCORERS["micro"].load("cpu")
    (score,) = scorer.score([Image.new("RGB", (64, 64), "white")])
    assert not score.harmful
    assert set(score.categories) == {"weapon", "drug", "death", "insult"}
