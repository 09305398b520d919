"""Fixed draws: that their kept errors are exact, come up in turn, and change nothing else."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scdpo_core.config.settings import TrainSettings, to_toml
from scdpo_core.families.sd1 import SD1, SD1Model
from scdpo_core.families.timesteps import DiscreteTimesteps, TimestepLaw
from scdpo_core.lora.adapter import LoraAdapter, attach
from scdpo_core.preferences.batches import BatchStream
from scdpo_core.run_store.events import Event, Warned
from scdpo_core.training.batch_sources import FixedNoise, deal, turns
from scdpo_core.training.batches import Prefetcher, TrainBatch
from scdpo_core.training.distributed import SingleProcess
from scdpo_core.training.job import run_job
from scdpo_core.training.reference import mean_squares, reference_residuals
from scdpo_core.training.reference_cache import NoiseSeeds, ReferenceCache, extended, measured_by
from scdpo_core.training.step import Measure
from scdpo_core.types import CachedPair, LabelledPair, PreferencePair, ScdpoError
from tests.support.tiny import LATENT_CHANNELS, TOKENS, WIDTH, tiny_pairs, tiny_sd_folder, tiny_settings
from tests.trainer.test_train_lora import PROGRAM, wait_for_step

CPU = torch.device("cpu")
SHAPE = (LATENT_CHANNELS, 8, 8)
DICE = NoiseSeeds(7, TimestepLaw(), DiscreteTimesteps(1000))
KEYS = [f"key of pair {number}" for number in range(3)]


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module", name="model")
def _model(base: Path) -> SD1Model:
    return SD1().load(base, CPU, torch.float32)


@pytest.fixture(scope="module", name="network")
def _network(model: SD1Model) -> str:
    return model.denoiser_id()


@pytest.fixture(scope="module", name="adapter")
def _adapter(model: SD1Model, network: str) -> LoraAdapter:
    adapter = attach(model.denoiser, rank=2, alpha=2.0, targets="attention", seed=0)
    with torch.no_grad():
        for number, weight in enumerate(adapter.parameters()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.3)
    return adapter


def stream(batch_size: int = 2) -> BatchStream:
    generator = torch.Generator().manual_seed(11)
    cached, labelled = [], []
    for number, key in enumerate(KEYS):
        latents = torch.randn((2, *SHAPE), generator=generator)
        cached.append(CachedPair(latents, torch.randn((TOKENS, WIDTH), generator=generator), None, key))
        pair = PreferencePair(str(number), f"prompt {number}", Path("a"), Path("b"))
        labelled.append(LabelledPair(pair, -1.0, 2.0, False, 1.0, 1.0, ""))
    return BatchStream(cached, labelled, batch_size, 7, CPU, torch.float32)


def settings_of(folder: Path, **changes: Any) -> TrainSettings:
    return tiny_settings("x", folder, folder, **({"seed": 7, "max_train_steps": 9} | changes))


def dealt(
    model: SD1Model,
    adapter: LoraAdapter,
    folder: Path,
    network: str = "n",
    emit: Callable[[Event], None] = lambda event: None,
    **changes: Any,
) -> FixedNoise:
    feed = deal(
        settings_of(folder, **({"reference_draws": 3} | changes)), model, adapter, stream(), keys=KEYS,
        network=network, folder=folder / "cache", team=SingleProcess(), progress=lambda done, total: None,
        emit=emit,
    )  # fmt: skip
    assert isinstance(feed, FixedNoise)
    return feed


def test_a_draw_follows_from_seed_pair_and_number_alone() -> None:
    torch.manual_seed(1)
    timestep, noise = DICE.throw("some pair", 4, SHAPE)
    seed = int.from_bytes(hashlib.blake2b(b"7/4/some pair", digest_size=8).digest(), "big") % 2**63
    generator = torch.Generator().manual_seed(seed)
    assert torch.equal(timestep, torch.randint(1000, (1,), generator=generator))
    assert torch.equal(noise, torch.randn(SHAPE, generator=generator))
    others = [DICE.throw("some pair", 5, SHAPE), DICE.throw("another pair", 4, SHAPE)]
    others.append(replace(DICE, seed=8).throw("some pair", 4, SHAPE))
    assert not any(torch.equal(noise, other) for _, other in others)


def test_turns_are_counted_for_each_pair() -> None:
    batches = [[0, 1], [1, 2], [1, 1]]
    assert turns(batches.__getitem__, 3, 3).tolist() == [[0, 0], [1, 0], [2, 3]]


def test_draws_come_up_in_turn_and_no_more_are_measured_than_come_up(
    model: SD1Model, adapter: LoraAdapter, tmp_path: Path
) -> None:
    # Nine batches of two are six epochs of three pairs.
    feed = dealt(model, adapter, tmp_path / "three")
    assert feed.wanted == [3, 3, 3]
    seen: dict[int, list[float]] = {0: [], 1: [], 2: []}
    deck = stream()
    for index in range(9):
        portion = feed(index)
        for pair, error in zip(deck.indices(index), portion.reference.tolist(), strict=True):  # type: ignore[union-attr]
            seen[pair].append(error[0])
    for errors in seen.values():
        assert errors[:3] == errors[3:]
        assert len(set(errors)) == 3
    assert dealt(model, adapter, tmp_path / "many", reference_draws=50).wanted == [6, 6, 6]


def test_kept_errors_are_those_of_the_base_on_the_same_draws(
    model: SD1Model, adapter: LoraAdapter, tmp_path: Path
) -> None:
    feed = dealt(model, adapter, tmp_path)
    for index in range(9):
        portion = feed(index)
        fresh = mean_squares(
            reference_residuals(model, adapter, portion.batch, portion.noise_sample, "native")
        )
        assert portion.reference is not None
        torch.testing.assert_close(portion.reference, fresh, rtol=1e-5, atol=1e-7)
    # Bit for bit where the same draws share a forward pass.
    both = DICE.draws([(KEYS[1], 0), (KEYS[1], 1)], SHAPE, CPU)
    fresh = mean_squares(reference_residuals(model, adapter, stream().pairs([1, 1]), both, "native"))
    assert torch.equal(feed._errors[1, :2], fresh)


def test_a_step_is_one_forward_pass_with_gradient(
    model: SD1Model, adapter: LoraAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = dealt(model, adapter, tmp_path)
    forwards: list[tuple[int, bool]] = []
    real = model.denoiser.forward

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        forwards.append((len(sample), torch.is_grad_enabled()))
        return real(sample, *args, **kwargs)

    monkeypatch.setattr(model.denoiser, "forward", forward)
    seen = Measure(model, adapter, feed, settings_of(tmp_path).objective)(0)
    assert forwards == [(4, True)]
    assert seen.pair is not None and seen.pair.errors.policy.requires_grad
    assert not seen.pair.errors.reference.requires_grad


def test_only_what_is_missing_is_measured(
    model: SD1Model, adapter: LoraAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = dealt(model, adapter, tmp_path)._errors
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 3
    calls: list[int] = []
    real = model.denoiser.forward

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(sample))
        return real(sample, *args, **kwargs)

    monkeypatch.setattr(model.denoiser, "forward", forward)
    assert torch.equal(dealt(model, adapter, tmp_path)._errors, whole)
    assert calls == []
    # One file lost, one damaged: three draws are two groups of two draws of two images.
    files[0].unlink()
    raw = bytearray(files[1].read_bytes())
    raw[-1] ^= 1
    files[1].write_bytes(raw)
    assert torch.equal(dealt(model, adapter, tmp_path)._errors, whole)
    assert calls == [4, 4, 4, 4]
    # A fourth draw was measured along with the third; a fifth is new, and the first four stay what they were.
    calls.clear()
    assert torch.equal(dealt(model, adapter, tmp_path, reference_draws=4)._errors[:, :3], whole)
    assert calls == []
    longer = dealt(model, adapter, tmp_path, reference_draws=5)._errors
    assert torch.equal(longer[:, :3], whole)
    assert calls == [4, 4, 4]


def test_draws_that_do_not_fit_are_measured_in_smaller_groups_and_kept_as_such(
    model: SD1Model, adapter: LoraAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = dealt(model, adapter, tmp_path / "whole", batch_size=4)._errors
    room, seen, said = [4], [], list[Event]()
    real = model.denoiser.forward

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(sample) > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(len(sample))
        return real(sample, *args, **kwargs)

    monkeypatch.setattr(model.denoiser, "forward", forward)
    tight = dealt(model, adapter, tmp_path, batch_size=4, emit=said.append)._errors
    # Three draws of two images each: two at once, then the third with a fourth.
    assert seen == [4] * 6
    (warning,) = said
    assert isinstance(warning, Warned)
    assert "memory for 4 draws of a pair at once: from here on 2 go through" in warning.message
    torch.testing.assert_close(tight, whole, rtol=1e-4, atol=1e-7)
    # As groups of two they are found again, bit for bit: by a resumed run, once memory has run out, and by a
    # run of two pairs at a time.
    seen.clear()
    for size in (4, 2):
        assert torch.equal(dealt(model, adapter, tmp_path, batch_size=size)._errors, tight)
    assert seen == []
    # With more room, groups of four are something else.
    room[0] = 99
    assert torch.equal(dealt(model, adapter, tmp_path, batch_size=4)._errors, whole)
    assert seen == [8] * 3
    room[0] = 1
    with pytest.raises(ScdpoError, match="even for one pair"):
        dealt(model, adapter, tmp_path / "none", batch_size=4)


@pytest.mark.parametrize("change", [{"weighting": "exact"}, {"seed": 8}, {"batch_size": 3}, {"network": "m"}])
def test_what_changes_the_errors_changes_the_files(
    model: SD1Model, adapter: LoraAdapter, tmp_path: Path, change: dict[str, Any]
) -> None:
    dealt(model, adapter, tmp_path)
    before = {path.name for path in (tmp_path / "cache").iterdir()}
    dealt(model, adapter, tmp_path, **change)
    after = {path.name for path in (tmp_path / "cache").iterdir()}
    assert len(after) == 2 * len(before) == 6


def test_the_key_knows_the_device_and_the_dice(model: SD1Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from scdpo_core.training import reference_cache

    first = measured_by(model, "n", "native", DICE, 2, ())
    assert measured_by(model, "n", "native", replace(DICE, law=TimestepLaw(mean=1.0)), 2, ()) != first
    assert measured_by(model, "n", "native", DICE, 2, ("blocks",)) != first
    monkeypatch.setattr(reference_cache, "rng_fingerprint", lambda: "of another processor")
    assert measured_by(model, "n", "native", DICE, 2, ()) != first


def test_the_denoisers_id_changes_with_a_weight_and_with_the_schedule(base: Path, network: str) -> None:
    again = SD1().load(base, CPU, torch.float32)
    assert again.denoiser_id() == network
    with torch.no_grad():
        next(again.denoiser.parameters()).view(-1)[0] += 1e-3
    assert again.denoiser_id() != network
    from scdpo_core.families.base import LoadOptions

    assert SD1().load(base, CPU, torch.float32, LoadOptions(zero_snr="on")).denoiser_id() != network


def test_errors_that_are_no_numbers_stop_the_run_and_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ScdpoError, match="no numbers"):
        extended(torch.empty(0, 2), 1, 1, lambda numbers: torch.full((1, 2), torch.nan))
    kept = ReferenceCache(tmp_path / "file", "x")
    (tmp_path / "file").write_text("no folder", "utf-8")
    with pytest.raises(ScdpoError, match="cannot be written"):
        kept.put("pair", torch.zeros(1, 2))


def test_work_done_ahead_comes_in_order_and_ends_with_the_run(model: SD1Model) -> None:
    asked: list[int] = []

    def feed(index: int) -> TrainBatch:
        asked.append(index)
        if index == 2:
            raise ScdpoError("the second is bad")
        return TrainBatch(stream().batch(index), DICE.draws([("a", index), ("b", index)], SHAPE, CPU))

    ahead = Prefetcher(feed, 4)
    for index in (0, 1):
        assert torch.equal(ahead(index).batch.latents, stream().batch(index).latents)
    with pytest.raises(ScdpoError, match="second is bad"):
        ahead(2)
    ahead(3)
    ahead.close()
    assert asked == [0, 1, 2, 3]


def test_a_killed_run_with_a_damaged_cache_resumes_to_the_same_bytes(base: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    pairs = tiny_pairs(tmp_path / "pairs")
    changes: dict[str, Any] = {
        "max_train_steps": 30, "checkpoint_every": 3, "log_every": 1, "accumulation": 2,
        "dfm_warmup": 0.0, "reference_draws": 4,
    }  # fmt: skip
    whole = run_job(tiny_settings(base, pairs, tmp_path / "whole" / "lora", **changes))
    folder = tmp_path / "killed" / "lora"
    settings = tiny_settings(base, pairs, folder, **changes)
    (tmp_path / "job.toml").write_text(to_toml(settings), "utf-8")
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), "--config", str(tmp_path / "job.toml")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_step(folder, random.randint(4, 20), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = sorted((folder / "cache").glob("*.reference.safetensors"))
    assert len(kept) == 6
    kept[0].unlink()
    kept[1].write_bytes(kept[1].read_bytes()[:-3])
    resumed = run_job(settings, resume=True)
    assert resumed.outcome.step == 30
    assert (folder / "lora.safetensors").read_bytes() == (whole.folder / "lora.safetensors").read_bytes()
    with pytest.raises(ScdpoError, match=r"reference_draws: 4 -> 0"):
        run_job(tiny_settings(base, pairs, folder, **(changes | {"reference_draws": 0})), resume=True)
