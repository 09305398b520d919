"""The loop: what it trains, what it leaves alone, when it stops, and that resuming changes nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from scdpo_core.config.settings import DEFAULT_BETAS, OptimSettings, TrainSettings
from scdpo_core.families.sd1 import SD1, SD1Model
from scdpo_core.lora.adapter import LoraAdapter, attach
from scdpo_core.preferences.batches import BatchStream
from scdpo_core.run_store.events import Event, Progress, Saved
from scdpo_core.run_store.folder import checkpoint_steps
from scdpo_core.training import checkpoint
from scdpo_core.training.batches import BatchSource, FreshNoise, timestep_law
from scdpo_core.training.loop import Trainer, learning_rate
from scdpo_core.training.running_metrics import GapWatch
from scdpo_core.types import CachedPair, LabelledPair, PairBatch, PreferencePair, ScdpoError
from tests.support.tiny import LATENT_CHANNELS, TOKENS, WIDTH, tiny_sd_folder, tiny_settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


class Bench:
    """A trainer on a fresh tiny model, with everything that it says."""

    def __init__(
        self, base: Path, folder: Path, dtype: torch.dtype = torch.float32, rank: int = 2, **changes: Any
    ) -> None:
        self.settings: TrainSettings = tiny_settings(base, folder, folder, **changes)
        self.model: SD1Model = SD1().load(base, CPU, dtype)
        self.adapter: LoraAdapter = attach(
            self.model.denoiser, rank=rank, alpha=float(rank), targets="attention", seed=0,
            dropout=self.settings.lora.dropout,
        )  # fmt: skip
        self.said: list[Event] = []
        self.folder = folder / "checkpoints"

    def move(self, device: torch.device) -> None:
        """Let the model compute elsewhere."""
        self.model.denoiser.to(device)
        self.model.alphas_cumprod = self.model.alphas_cumprod.to(device)
        self.model.device = device

    def trainer(
        self, batches: Any = None, stop_at: int | None = None, feed: BatchSource | None = None, **more: Any
    ) -> Trainer:
        trainer: Trainer

        def should_stop() -> bool:
            return stop_at is not None and trainer.step >= stop_at

        trainer = Trainer(
            self.model, self.adapter, feed or self.feed(batches or stream(self.settings)), self.settings,
            self.folder, emit=self.said.append, should_stop=should_stop, **more,
        )  # fmt: skip
        return trainer

    def feed(self, batches: Any) -> BatchSource:
        return FreshNoise(batches, self.model, timestep_law(self.settings), self.settings.optim.seed)

    def weights(self) -> dict[str, bytes]:
        return {name: tensor.numpy().tobytes() for name, tensor in self.adapter.state().items()}

    def progress(self) -> list[Progress]:
        return [event for event in self.said if isinstance(event, Progress)]


def stream(settings: TrainSettings, pairs: int = 5, device: torch.device = CPU, **more: Any) -> BatchStream:
    optim = settings.optim
    return BatchStream(*pairs_of(pairs), optim.batch_size, optim.seed, device, torch.float32, **more)


def pairs_of(count: int) -> tuple[list[CachedPair], list[LabelledPair]]:
    generator = torch.Generator().manual_seed(11)
    cached, labelled = [], []
    for number in range(count):
        latents = torch.randn((2, LATENT_CHANNELS, 8, 8), generator=generator)
        cached.append(
            CachedPair(latents, torch.randn((TOKENS, WIDTH), generator=generator), None, str(number))
        )
        pair = PreferencePair(str(number), f"prompt {number}", Path("a"), Path("b"))
        chosen, rejected = (-1.0, 2.0) if number % 2 else (None, None)
        labelled.append(LabelledPair(pair, chosen, rejected, False, 1.0, 1.0, ""))
    return cached, labelled


class Spoiled:
    """Batches whose images are no numbers from some index on."""

    def __init__(self, batches: BatchStream, since: int) -> None:
        self._batches, self._since = batches, since

    def batch(self, step: int) -> PairBatch:
        batch = self._batches.batch(step)
        if step >= self._since:
            batch.latents.fill_(math.nan)
        return batch


def test_five_losses_are_what_they_were(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path, max_train_steps=5, log_every=1, beta=2000.0, winner=0.05, warmup=0.0)
    bench.trainer().run()
    losses = [event.metrics["preference_loss"] for event in bench.progress()]
    # An untrained LoRA changes nothing: u = 0, so the first preference loss is log 2.
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses == pytest.approx(TRACE, rel=5e-3)


TRACE = [0.69315, 0.73478, 0.68960, 0.67176, 0.58774]


def test_only_the_lora_learns(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path)
    own = {id(weight) for weight in bench.adapter.parameters()}
    others = {
        name: value.clone() for name, value in bench.model.denoiser.named_parameters() if id(value) not in own
    }
    before = bench.weights()
    bench.trainer().run()
    for name, value in bench.model.denoiser.named_parameters():
        if id(value) not in own:
            assert value.grad is None
            assert torch.equal(value, others[name]), name
    after = bench.weights()
    assert all(after[name] != before[name] for name in before if not name.endswith(".alpha"))
    assert all(weight.dtype == torch.float32 for weight in bench.adapter.parameters())


def test_the_report_holds_every_figure(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path, max_train_steps=5, log_every=2)
    bench.trainer().run()
    assert [event.step for event in bench.progress()] == [2, 4, 5]
    for event in bench.progress():
        assert {
            "loss", "preference_loss", "u", "implicit_accuracy", "winner_gap", "loser_gap", "margin",
            "dfm_spread", "chosen_cost", "rejected_cost", "grad_norm", "lr", "reference_error",
        } == set(event.metrics)  # fmt: skip
        assert event.total == 5
        # The scored pairs all cost -1 and 2; the others must not count.
        if event.metrics["chosen_cost"] is not None:
            assert event.metrics["chosen_cost"] == pytest.approx(-1)
            assert event.metrics["rejected_cost"] == pytest.approx(2)
    assert bench.progress()[-1].seconds_left == 0


def test_the_learning_rate_rises_and_falls_as_worked_by_hand() -> None:
    own = OptimSettings(max_train_steps=10, warmup=0.2, lr=3.0, schedule="cosine")
    # Two steps of warm-up: 1/3 and 2/3 of the way; then eight steps along half a cosine.
    assert learning_rate(0, own) == pytest.approx(1.0)
    assert learning_rate(1, own) == pytest.approx(2.0)
    assert learning_rate(2, own) == pytest.approx(3.0)
    assert learning_rate(6, own) == pytest.approx(1.5)
    assert learning_rate(9, own) == pytest.approx(1.5 * (1 + math.cos(math.pi * 7 / 8)))
    straight = OptimSettings(max_train_steps=10, warmup=0.0, lr=3.0, schedule="linear")
    assert [learning_rate(step, straight) for step in (0, 5, 9)] == pytest.approx([3.0, 1.5, 0.3])
    level = OptimSettings(max_train_steps=10, warmup=0.0, lr=3.0, schedule="constant")
    assert {learning_rate(step, level) for step in range(10)} == {3.0}


def test_accumulation_takes_each_batch_once_and_averages(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path, max_train_steps=2, accumulation=3)
    batches, asked = stream(bench.settings), []

    class Recorded:
        def batch(self, step: int) -> PairBatch:
            asked.append(step)
            return batches.batch(step)

    trainer = bench.trainer(Recorded())
    trainer.run()
    assert asked == [0, 1, 2, 3, 4, 5]

    # The gradient of a step is the mean of those of its batches.
    bench = Bench(base, tmp_path, accumulation=2, max_grad_norm=0.0)
    trainer, weights = bench.trainer(), bench.adapter.parameters()
    expected = []
    for index in range(2):
        expected.append(torch.autograd.grad(trainer._forward(index), weights))
    seen: list[torch.Tensor] = []
    trainer._optimizer.step = lambda *_: seen.extend(  # type: ignore[method-assign]
        weight.grad.clone() for weight in weights if weight.grad is not None
    )
    trainer._one_step()
    # The objective remembers difficulties, but at step 0 the focus is still off.
    for got, first, second in zip(seen, *expected, strict=True):
        torch.testing.assert_close(got, (first + second) / 2)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_run_ends_with_the_same_bytes(base: Path, tmp_path: Path, dropout: float) -> None:
    options: dict[str, Any] = {"max_train_steps": 6, "dropout": dropout, "dfm_warmup": 0.0}
    whole = Bench(base, tmp_path / "whole", **options)
    assert whole.trainer(dataset_hash="d").run().reason == "finished"

    first = Bench(base, tmp_path / "parts", **options)
    outcome = first.trainer(stop_at=3, dataset_hash="d").run()
    assert (outcome.reason, outcome.step) == ("stopped", 3)
    torch.manual_seed(99)
    second = Bench(base, tmp_path / "parts", **options)
    state, _ = checkpoint.latest(second.folder)
    assert state is not None
    trainer = second.trainer(dataset_hash="d")
    trainer.resume(state)
    assert trainer.step == 3
    assert trainer.run().step == 6

    assert second.weights() == whole.weights()
    paths = [checkpoint.path_of(bench.folder, 6) for bench in (whole, second)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert first.weights() != whole.weights()


def test_resuming_with_other_settings_or_pairs_is_refused(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path, max_train_steps=2)
    bench.trainer(dataset_hash="d").run()
    state, _ = checkpoint.latest(bench.folder)
    assert state is not None
    with pytest.raises(ScdpoError, match=r"optim\.lr: 0\.001 -> 0\.5"):
        Bench(base, tmp_path, lr=0.5).trainer(dataset_hash="d").resume(state)
    with pytest.raises(ScdpoError, match="pairs have changed"):
        Bench(base, tmp_path).trainer(dataset_hash="e").resume(state)
    # More steps are no other run.
    longer = Bench(base, tmp_path, max_train_steps=3).trainer(dataset_hash="d")
    longer.resume(state)
    assert longer.run().step == 3


def test_a_checkpoint_of_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path, max_train_steps=2)
    bench.trainer().run()
    state, _ = checkpoint.latest(bench.folder)
    assert state is not None
    broken = checkpoint.Checkpoint(**{**vars(state), "extra": {}})
    with pytest.raises(ScdpoError, match="does not fit"):
        Bench(base, tmp_path).trainer().resume(broken)


def test_a_stop_saves_the_step_that_was_finished(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path, max_train_steps=50, checkpoint_every=20, log_every=20)
    outcome = bench.trainer(stop_at=3).run()
    assert (outcome.reason, outcome.step) == ("stopped", 3)
    assert checkpoint_steps(bench.folder) == [3]
    assert [event.step for event in bench.progress()] == [3]
    assert Saved(3, "checkpoints/step-000003.state.safetensors", "checkpoint") in bench.said
    nothing = Bench(base, tmp_path / "other")
    assert nothing.trainer(stop_at=0).run().step == 0
    assert checkpoint_steps(nothing.folder) == []


@pytest.mark.parametrize(("log_every", "checkpoint_every"), [(1, 2), (100, 1), (100, 2)])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    base: Path, tmp_path: Path, log_every: int, checkpoint_every: int
) -> None:
    bench = Bench(
        base, tmp_path, max_train_steps=8, log_every=log_every, checkpoint_every=checkpoint_every, keep=9
    )
    trainer = bench.trainer(Spoiled(stream(bench.settings), since=4))
    with pytest.raises(ScdpoError, match=r"no longer a number at step [56]"):
        trainer.run()
    assert checkpoint_steps(bench.folder)[-1] == 4
    state, damaged = checkpoint.latest(bench.folder)
    assert state is not None
    assert damaged == []
    assert all(bool(tensor.isfinite().all()) for tensor in state.adapter.values())


@pytest.mark.parametrize("objective", sorted(DEFAULT_BETAS))
def test_every_objective_trains(base: Path, tmp_path: Path, objective: str) -> None:
    bench = Bench(base, tmp_path, objective=objective, max_train_steps=2, log_every=1)
    before = bench.weights()
    bench.trainer().run()
    assert bench.weights() != before
    assert all(event.metrics["loss"] is not None for event in bench.progress())


@pytest.mark.parametrize("change", [{"loser_mu": 0.9}, {"weighting": "exact"}, {"schedule": "linear"}])
def test_options_train(base: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    bench, plain = (Bench(base, tmp_path / name, max_train_steps=3, **more) for name, more in
                    (("a", change), ("b", {})))  # fmt: skip
    for each in (bench, plain):
        each.trainer().run()
    assert bench.weights() != plain.weights()


def test_half_precision_bases_train_a_full_precision_lora(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path, torch.bfloat16, max_train_steps=2, log_every=1)
    bench.trainer().run()
    first = bench.progress()[0].metrics["preference_loss"]
    assert first == pytest.approx(math.log(2), abs=1e-6)
    assert all(weight.dtype == torch.float32 for weight in bench.adapter.parameters())


def test_gradient_checkpointing_changes_memory_and_not_the_result(base: Path, tmp_path: Path) -> None:
    plain, saving = Bench(base, tmp_path / "a"), Bench(base, tmp_path / "b")
    saving.model.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    plain.trainer().run()
    saving.trainer().run()
    for name, tensor in plain.adapter.state().items():
        torch.testing.assert_close(saving.adapter.state()[name], tensor, rtol=1e-4, atol=1e-6)


def test_samples_are_drawn_between_steps_in_evaluation_mode(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path, max_train_steps=6, sample_every=2)
    drawn: list[tuple[int, bool]] = []
    bench.trainer(on_sample=lambda step: drawn.append((step, bench.model.denoiser.training))).run()
    # Not at step 6: what comes after the last step is drawn by whoever called.
    assert drawn == [(2, False), (4, False)]


def test_the_artist_is_warned_once_when_the_chosen_images_get_worse() -> None:
    watch = GapWatch()
    better: dict[str, float | None] = {"winner_gap": 0.01, "reference_error": 1.0}
    worse: dict[str, float | None] = {"winner_gap": 0.2, "reference_error": 1.0}
    assert not any(watch.see(metrics, 7) for metrics in [worse] * 4 + [better] + [worse] * 4)
    assert watch.see({}, 7) == ""
    assert watch.see(worse, 8).startswith("At step 8 the model draws the chosen images clearly worse")
    assert not any(watch.see(worse, 9) for _ in range(9))
