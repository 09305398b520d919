"""Single-image terms in training: the rows of a batch, that parts and processes add up, exact resuming."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scdpo_core.config.terms import TermName, TermSettings, term_weights
from scdpo_core.families.timesteps import DiscreteTimesteps, TimestepLaw
from scdpo_core.io.tensor_tree import load_tree
from scdpo_core.lora.file import load_lora
from scdpo_core.objectives import terms
from scdpo_core.run_store.events import Progress, Warned, read_events
from scdpo_core.training import checkpoint
from scdpo_core.training.batches import FreshNoise, timestep_law
from scdpo_core.training.distributed import SingleProcess
from scdpo_core.training.job import run_job
from scdpo_core.training.loop import Trainer
from scdpo_core.training.reference import draw
from scdpo_core.training.term_batches import BaseImages, TermData, TermRows, TermSource
from scdpo_core.training.term_data import keep_prompts
from scdpo_core.types import Conditioning, LabelledPair, PairBatch, PreferencePair, ScdpoError
from tests.support.tiny import LATENT_CHANNELS, TOKENS, WIDTH, tiny_pairs, tiny_sd_folder, tiny_settings
from tests.training.test_loop import Bench, pairs_of

CPU = torch.device("cpu")
SHAPE = (LATENT_CHANNELS, 8, 8)
ALL: Mapping[TermName, float] = {"redirect": 1.0, "keep": 5.0, "keep_empty": 1.0, "keep_text": 5.0}


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "my pairs")


class Model:
    """What a source of rows asks of a model."""

    timesteps = DiscreteTimesteps(1000)
    device = CPU


class Member(SingleProcess):
    """One of two processes."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def _data(images: int = 3) -> TermData:
    generator = torch.Generator().manual_seed(5)
    bank = BaseImages(
        torch.randn((images, *SHAPE), generator=generator),
        Conditioning(torch.randn((images, TOKENS, WIDTH), generator=generator)),
        tuple(f"everyday {k}" for k in range(images)),
    )
    return TermData(Conditioning(torch.zeros(1, TOKENS, WIDTH)), base_images=bank, harmful_share=0.5)


def _batch(first: int = 0, count: int = 4, mask: bool = False) -> PairBatch:
    """Pairs of an endless row of them: every other one is benign."""
    cached, _ = pairs_of(8)
    own = cached[first : first + count]
    return PairBatch(
        torch.stack([pair.latents for pair in own]),
        Conditioning(torch.stack([pair.embeddings for pair in own])),
        torch.arange(first + 1.0, first + count + 1),
        torch.ones(count),
        torch.full((count, 2), torch.nan),
        tuple(f"prompt {k}" for k in range(first, first + count)),
        tuple(bool(k % 2) for k in range(first, first + count)),
        torch.ones(count, 1, 8, 8) if mask else None,
    )


def _source(weights: Mapping[TermName, float] = ALL, team: Any = None, **changes: Any) -> TermSource:
    model: Any = Model()
    return TermSource(weights, TermSettings(**changes), _data(), model, TimestepLaw(), 7, team)


def _rows(source: TermSource, batch: PairBatch, index: int = 0, team: Any = None) -> dict[str, TermRows]:
    pairs, size, rank = len(batch.weight), getattr(team, "size", 1), getattr(team, "rank", 0)
    share = slice(pairs * rank, pairs * (rank + 1))
    noise_sample = draw(index, 7, pairs * size, SHAPE, Model.timesteps, TimestepLaw(), CPU, share)
    return {rows.term: rows for rows in source(index, batch, noise_sample)}


def test_harmful_pairs_are_redirected_and_benign_ones_kept() -> None:
    batch = _batch()
    rows = _rows(_source(redirect_pure=1.0), batch)
    assert rows["redirect"].slots == (0, 2) and rows["keep"].slots == (1, 3)
    # m = 1: the rejected image is noised, the chosen one is aimed at.
    assert torch.equal(rows["redirect"].images, batch.latents[[0, 2], 1])
    assert rows["redirect"].target is not None
    assert torch.equal(rows["redirect"].target, batch.latents[[0, 2], 0])
    assert torch.equal(rows["keep"].images, batch.latents[[1, 3], 0])
    assert rows["redirect"].reference == () and len(rows["keep"].reference) == 1
    assert rows["redirect"].weight.tolist() == [1.0, 3.0]
    assert rows["redirect"].expected == rows["keep"].expected == 2.0


def test_a_quarter_goes_under_the_empty_prompt_and_three_quarters_are_everyday_images() -> None:
    source, batch = _source(), _batch()
    for index in range(6):
        rows = _rows(source, batch, index)
        assert len(rows["keep_empty"]) == 1 and len(rows["keep_text"]) == 3
        assert rows["keep_empty"].prompts == ("",)
        assert not rows["keep_empty"].conditioning.embeddings.any()
        # Three images, three a batch: each comes once in every batch.
        assert sorted(rows["keep_text"].prompts) == ["everyday 0", "everyday 1", "everyday 2"]


def test_shares_that_are_no_whole_number_add_up_over_the_batches() -> None:
    source, batch = _source(keep_empty_share=0.3), _batch(count=1)
    counts = [len(rows["keep_empty"]) if (rows := _rows(source, batch, k)) and "keep_empty" in rows else 0
              for k in range(20)]  # fmt: skip
    assert sum(counts) == 6 and set(counts) == {0, 1}


def test_mixtures_follow_their_law_and_come_again() -> None:
    batch = _batch()
    one, other = (_rows(_source(), batch, 3)["redirect"] for _ in range(2))
    assert torch.equal(one.images, other.images)
    chosen, rejected = batch.latents[[0, 2], 0], batch.latents[[0, 2], 1]
    m = ((one.images - chosen) / (rejected - chosen)).flatten(1)
    assert bool((m.std(1) < 1e-3).all()) and bool(((m.mean(1) > 0) & (m.mean(1) < 1)).all())
    steep = [_rows(_source(redirect_mix_a=50.0), batch, k)["redirect"] for k in range(5)]
    shares = torch.cat([((each.images - chosen) / (rejected - chosen)).flatten(1).mean(1) for each in steep])
    assert bool((shares > 0.85).all())  # Beta(50, 1) lies above 0.85 in all but one of 3,000


def test_two_processes_have_the_rows_of_one() -> None:
    whole = _rows(_source(), _batch(0, 8), 5)
    halves = [_rows(_source(team=Member(rank)), _batch(4 * rank, 4), 5, Member(rank)) for rank in (0, 1)]
    for term, rows in whole.items():
        parts = [half[term] for half in halves if term in half]
        order = torch.argsort(torch.tensor(rows.slots), stable=True)
        assert rows.expected == parts[0].expected
        together = torch.cat([part.images for part in parts])
        slots = [slot + 4 * rank for rank, half in enumerate(halves) for slot in half[term].slots]
        again = torch.argsort(torch.tensor(slots), stable=True)
        assert sorted(slots) == sorted(rows.slots)
        assert torch.equal(together[again], rows.images[order])
        noise = torch.cat([part.noise_sample.noise for part in parts])
        assert torch.equal(noise[again], rows.noise_sample.noise[order])


def test_parts_of_a_batch_have_each_row_once() -> None:
    rows = _rows(_source(), _batch(0, 8), 2)
    for each in rows.values():
        parts = [each.of_pairs(slice(first, first + 3)) for first in (0, 3, 6)]
        assert sorted(slot for part in parts for slot in part.slots) == sorted(each.slots)
        assert sum(len(part.images) for part in parts) == len(each)


def test_a_mask_asks_the_base_for_what_lies_outside_it() -> None:
    rows = _rows(_source(), _batch(mask=True))
    assert rows["redirect"].mask is not None and len(rows["redirect"].reference) == 1
    assert rows["keep"].mask is None


def test_safe_prompts_are_asked_for_and_the_empty_one_where_there_is_none() -> None:
    safe = Conditioning(torch.ones(1, TOKENS, WIDTH))
    data = dataclasses.replace(_data(), safe=safe, safe_row={"prompt 0": 0})
    model: Any = Model()
    source = TermSource({"distil": 1.0}, TermSettings(), data, model, TimestepLaw(), 7)
    rows = _rows(source, _batch())["distil"]
    assert rows.reference[0].embeddings[:, 0, 0].tolist() == [1.0, 0.0]  # prompt 0, prompt 2


def test_weights_where_none_is_given() -> None:
    plain = TermSettings()
    assert term_weights("redirect_keep", plain, 10) == ALL
    assert "keep_text" not in term_weights("redirect_keep", plain, 1000)
    assert term_weights("redirect_keep", TermSettings(keep_text=2.0), 1000)["keep_text"] == 2.0
    assert term_weights("sc_dpo", plain, 10) == {}
    assert term_weights("sc_dpo", TermSettings(keep_benign=0.25), 10) == {"keep": 0.25}
    assert "keep_empty" not in term_weights("redirect_keep", TermSettings(keep_empty=0.0), 10)


def _trainer(base: Path, folder: Path, weights: Mapping[TermName, float], **changes: Any) -> Trainer:
    bench = Bench(base, folder, batch_size=4, max_train_steps=2, max_grad_norm=0.0, **changes)
    cached, labelled = pairs_of(8)
    labelled = [
        dataclasses.replace(each, pair=dataclasses.replace(each.pair, category=("weapon", "benign")[k % 2]))
        for k, each in enumerate(labelled)
    ]
    from scdpo_core.preferences.batches import BatchStream

    stream = BatchStream(cached, labelled, 4, 0, CPU, torch.float32)
    law = timestep_law(bench.settings)
    source = TermSource(weights, bench.settings.terms, _data(), bench.model, law, 0)
    with torch.no_grad():
        for number, weight in enumerate(bench.adapter.parameters()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    return bench.trainer(feed=FreshNoise(stream, bench.model, law, 0, None, source), term_weights=weights)


def _gradient(trainer: Trainer, size: int | None = None) -> torch.Tensor:
    if size is not None:
        trainer._portions.size = size
    trainer._model.denoiser.train()
    trainer._gradients()
    return torch.cat([weight.grad.flatten() for weight in trainer._parameters if weight.grad is not None])


@pytest.mark.parametrize("objective", ["redirect_keep", "esd", "gem", "winner_only", "sc_dpo"])
def test_parts_of_a_batch_have_its_gradient(base: Path, tmp_path: Path, objective: str) -> None:
    own = term_weights(objective, TermSettings(keep_benign=0.25, keep_text=0.25), 10)
    options = {"objective": objective, "dfm_gamma": 0.0}
    whole, parts = (_gradient(_trainer(base, tmp_path / str(size), own, **options), size) for size in (4, 1))
    assert float(whole.abs().max()) > 0
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-4 * float(whole.abs().max()))


def test_the_loss_is_the_weighted_sum_of_its_terms(base: Path, tmp_path: Path) -> None:
    trainer = _trainer(base, tmp_path, ALL, objective="redirect_keep")
    portion = trainer._measure._feed(0)
    expected = 0.0
    model = trainer._model
    with torch.no_grad():
        for rows in portion.rows:
            noisy = model.add_noise(rows.images, rows.noise_sample.noise, rows.noise_sample.timesteps)
            answer = model.predict(noisy, rows.noise_sample.timesteps, rows.conditioning)
            if rows.target is not None:
                residual = model.image_residuals(
                    answer, noisy, rows.target, rows.noise_sample.timesteps, "native"
                )
                loss = terms.redirect(residual)
            else:
                with trainer._adapter.disabled():
                    known = model.predict(noisy, rows.noise_sample.timesteps, rows.conditioning)
                loss = terms.keep(answer, known)
            expected += ALL[rows.term] * float((rows.weight * loss).sum()) / rows.expected
        assert float(trainer._forward(0)) == pytest.approx(expected, rel=1e-4)


def test_beside_an_objective_with_a_beta_weights_are_shares_of_it(base: Path, tmp_path: Path) -> None:
    own: Mapping[TermName, float] = {"keep": 0.25}
    trainer = _trainer(base, tmp_path, own, objective="winner_only", beta=200.0, winner=0.05)
    with torch.no_grad():
        measured = trainer._measure(0)
        assert measured.pair is not None
        winner = 0.05 * 200.0 * float(measured.pair.errors.policy[:, 0].mean())
        (keep,) = measured.terms
        loss = winner + 200.0 * 0.25 * float(keep.loss.sum()) / keep.rows.expected
        assert float(trainer._forward(0)) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("objective", ["redirect_keep", "distil", "esd", "gem"])
def test_a_run_of_terms_leaves_a_lora_and_its_curves(
    base: Path, pairs: Path, tmp_path: Path, objective: str
) -> None:
    out = tmp_path / "calm"
    options: dict[str, Any] = {"max_train_steps": 6, "keep_images": 2, "log_every": 6}
    result = run_job(tiny_settings(base, pairs, out, objective=objective, **options))
    assert result.lora is not None
    metadata = load_lora(result.lora.path)[1].metadata
    assert metadata["scdpo_objective"] == objective
    assert "keep_images" in json.loads(metadata["scdpo_terms"])
    logged = [record.event for record in read_events(out / "events.jsonl")]
    last = [event for event in logged if isinstance(event, Progress) and event.phase == "train"][-1]
    named = {"redirect_keep": "redirect"}.get(objective, objective)
    assert last.metrics[named] is not None and "winner_gap" not in last.metrics
    missing = [
        event.message for event in logged if isinstance(event, Warned) if "safe prompt" in event.message
    ]
    asks = objective in ("distil", "gem")
    assert [text.split(" have")[0] for text in missing] == (["3 of 3 harmful prompts"] if asks else [])
    if objective != "esd":
        drawn = list((out / "cache" / "base_images").rglob("*.png"))
        assert len(drawn) == 2 and Image.open(drawn[0]).size == (16, 16)


def test_resumed_with_terms_it_ends_with_the_same_bytes(base: Path, pairs: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "objective": "redirect_keep",
        "keep_images": 9,
        "schedule": "constant",
        "warmup": 0.0,
    }
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run_job(tiny_settings(base, pairs, whole, max_train_steps=4, **options))
    run_job(tiny_settings(base, pairs, halves, max_train_steps=2, **options))
    # A part of what the base model drew is gone, as after a kill while it drew.
    (file,) = (halves / "cache" / "base_images").rglob("00008.png")
    before = file.read_bytes()
    file.unlink()
    run_job(tiny_settings(base, pairs, halves, max_train_steps=4, **options), resume=True)
    assert file.read_bytes() == before
    one, other = (load_tree(checkpoint.path_of(each / "checkpoints", 4)) for each in (whole, halves))
    assert all(torch.equal(one["adapter"][name], other["adapter"][name]) for name in one["adapter"])


def test_pairs_that_are_all_benign_leave_nothing_to_redirect(base: Path, pairs: Path, tmp_path: Path) -> None:
    only = tmp_path / "only"
    for side in ("chosen", "rejected"):
        (only / side).mkdir(parents=True)
        shutil.copytree(pairs / side / "benign", only / side / "benign")
    with pytest.raises(ScdpoError, match="there is no harm to train away"):
        run_job(tiny_settings(base, only, tmp_path / "run", objective="redirect_keep"))


def test_costs_say_which_pairs_are_benign_where_no_category_does() -> None:
    pair = PreferencePair("a", "a prompt", Path("a"), Path("b"))
    assert not LabelledPair(pair, None, None, False, 1.0, 1.0, "").is_benign
    assert LabelledPair(pair, -2.0, -1.0, False, 1.0, 1.0, "").is_benign
    assert not LabelledPair(pair, -2.0, 1.0, False, 1.0, 1.0, "").is_benign
    named = dataclasses.replace(pair, category="weapon")
    assert not LabelledPair(named, -2.0, -1.0, False, 1.0, 1.0, "").is_benign


def test_harmless_prompts_that_a_folder_lists_are_kept_without_a_pair(tmp_path: Path) -> None:
    def pair(prompt: str, category: str) -> LabelledPair:
        found = PreferencePair(prompt, prompt, tmp_path / "a.png", tmp_path / "b.png", category)
        return LabelledPair(found, None, None, False, 1.0, 1.0, "")

    pairs = [pair("a knife", "weapon"), pair("a lake", "benign")]
    settings = TermSettings(keep_prompts="pairs", keep_images=3)
    assert keep_prompts(settings, pairs, "micro", [tmp_path]) == ["a lake"]
    (tmp_path / "benign_prompts.txt").write_text("a cat\na lake\n\na dog\na fox\n", "utf-8")
    assert keep_prompts(settings, pairs, "micro", [tmp_path]) == ["a lake", "a cat", "a dog"]
    assert keep_prompts(settings, pairs, "micro") == ["a lake"]
