"""Memory: an estimate that is the measurement, and batches that shrink when it runs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers import CLIPTextModel

from scdpo_core.config.settings import TrainSettings
from scdpo_core.devices import is_out_of_memory
from scdpo_core.families import FAMILIES, LoadOptions
from scdpo_core.families.base import LoadedModel
from scdpo_core.families.timesteps import TimestepLaw
from scdpo_core.lora.adapter import LoraAdapter
from scdpo_core.run_store.events import Estimated, Validated, Warned
from scdpo_core.training import checkpoint
from scdpo_core.training.adapters import attach_lora, encode_prompts_with_grad
from scdpo_core.training.batches import FreshNoise, TrainBatch, slice_batch, timestep_law
from scdpo_core.training.job import run_job
from scdpo_core.training.loop import Trainer
from scdpo_core.training.memory import Alive, Memory, memory_of, peak_of_step
from scdpo_core.training.microbatch import advice
from scdpo_core.training.reference import draw
from scdpo_core.training.validation import HeldOut
from scdpo_core.types import Conditioning, PairBatch, ScdpoError
from tests.support.tiny import WIDTH, tiny_pairs, tiny_sd_folder, tiny_settings
from tests.support.tiny_families import tiny_folder
from tests.support.tiny_parts import T5_TOKENS
from tests.training.test_loop import Bench, pairs_of, stream

CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


def _batch(model: LoadedModel, pairs: int) -> PairBatch:
    words = model.encode_prompts(["a thing"] * pairs)
    one = torch.ones(pairs)
    latents = torch.randn((pairs, 2, *model.latent_shape()), generator=torch.Generator().manual_seed(0))
    return PairBatch(latents, words, one, one, torch.ones(pairs, 2), ("a thing",) * pairs)


class Same:
    """The same batch again and again, put on the device anew."""

    def __init__(self, batch: PairBatch) -> None:
        self._batch = batch

    def batch(self, step: int) -> PairBatch:
        own = self._batch
        return replace(own, latents=own.latents.clone(), conditioning=own.conditioning.map(torch.clone))


def _really(
    model: LoadedModel, adapter: LoraAdapter, settings: TrainSettings, batch: PairBatch, folder: Path
) -> int:
    """The most that the trainer's own step has alive at once, gradients apart."""
    trainer = Trainer(
        model, adapter, FreshNoise(Same(batch), model, timestep_law(settings), 0), settings, folder,
        emit=lambda event: None, encode_live=encode_prompts_with_grad(model, settings.lora),
    )  # fmt: skip
    model.denoiser.train()
    with Alive() as alive:
        trainer._gradients()
    assert all(not isinstance(weight.grad, FakeTensor) for weight in adapter.parameters())
    return int(alive.peak) - sum(weight.numel() * 4 for weight in adapter.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_checkpointing": True},
        {"objective": "duo"},
        {"train_text": True, "targets": "attention+ff"},
        {"train_text": True, "objective": "duo"},
    ],
    ids=["plain", "checkpointing", "duo", "text", "duo and text"],
)
def test_the_estimate_is_what_a_real_step_needs(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_folder(family, tmp_path / "base")
    options = LoadOptions(t5_tokens=T5_TOKENS, quantize="int8" if family == "flux" else "off")
    model = FAMILIES[family].load(base, CPU, torch.float32, options)
    settings = tiny_settings(base, tmp_path, tmp_path, **{"rank": 4, **changes})
    batch = _batch(model, 2)
    adapter = attach_lora(model, settings.lora, 0)
    if settings.model.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    guessed = peak_of_step(model, adapter, settings, batch)
    assert not any(weight.grad is not None for weight in adapter.parameters())
    assert guessed == pytest.approx(_really(model, adapter, settings, batch, tmp_path), rel=0.01)


def test_duo_and_text_encoders_need_more_than_a_step_without(base: Path, tmp_path: Path) -> None:
    def found(**changes: Any) -> Memory:
        model = FAMILIES["sd1"].load(base, CPU, torch.float32)
        settings = tiny_settings(base, tmp_path, tmp_path, **changes)
        batch = _batch(model, 2)
        return memory_of(model, attach_lora(model, settings.lora, 0), settings, batch)

    plain, duo, text = found(), found(objective="duo"), found(train_text=True)
    # Four images, and two more of pure noise, whose activations wait for the way back as well.
    assert duo.step / plain.step == pytest.approx(1.5, abs=0.1)
    assert (duo.weights, duo.lora) == (plain.weights, plain.lora)
    assert text.step > plain.step
    tower = CLIPTextModel.from_pretrained(base / "text_encoder")
    assert text.weights - plain.weights == pytest.approx(4 * tower.num_parameters(), rel=0.01)
    # Four square matrices of WIDTH in the one layer, rank 2; master, gradient and AdamW's two states.
    assert text.lora - plain.lora == 4 * 2 * (2 * WIDTH) * (4 + 4 + 8)


def test_t5_is_gone_while_the_other_text_encoders_train(tmp_path: Path) -> None:
    model = FAMILIES["flux"].load(
        tiny_folder("flux", tmp_path / "base"), CPU, torch.float32, LoadOptions(t5_tokens=T5_TOKENS)
    )
    assert model.live_texts() == []
    settings = tiny_settings(tmp_path, tmp_path, tmp_path, train_text=True)
    batch = _batch(model, 1)
    adapter = attach_lora(model, settings.lora, 0)
    (clip,) = model.live_texts()
    assert type(clip).__name__ == "CLIPTextModel"
    own = {id(weight) for weight in adapter.parameters()}
    parts = [part for n in (model.denoiser, clip) for part in (*n.parameters(), *n.buffers())]
    frozen = sum(part.numel() * part.element_size() for part in parts if id(part) not in own)
    assert memory_of(model, adapter, settings, batch).weights == frozen


def test_what_is_alive_as_worked_by_hand() -> None:
    with Alive() as alive:
        first = torch.ones(256)
        view = first.view(16, 16)[3:]
        second = first + 1
        del first
        assert alive.now == 2 * 1024
        del view
        assert alive.now == 1024
        second.add_(1)
        third = second.double()
        assert (alive.now, alive.peak) == (1024 + 2048, 1024 + 2048)
        del second, third
    assert (alive.now, alive.peak) == (0, 3072)


def test_the_lora_counts_with_everything_that_is_kept_for_it(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path)
    weights = sum(weight.numel() for weight in bench.adapter.parameters())
    own = {id(weight) for weight in bench.adapter.parameters()}
    frozen = [weight for weight in bench.model.denoiser.parameters() if id(weight) not in own]
    batch = _batch(bench.model, 1)
    for changes, each in (
        ({}, 4 + 4 + 8),
        ({"optimizer": "adafactor", "ema": 0.9}, 4 + 4 + 4),
        ({"optimizer": "prodigy", "lr": 1.0}, 4 + 4 + 16),
    ):
        found = memory_of(bench.model, bench.adapter, tiny_settings(base, base, base, **changes), batch)
        assert found.lora == weights * each
        assert found.weights == sum(weight.numel() * 4 for weight in frozen)
        assert found.total == found.weights + found.lora + found.step


def test_the_estimate_is_said_before_the_first_step_and_changes_nothing(base: Path, tmp_path: Path) -> None:
    pairs = tiny_pairs(tmp_path / "pairs", 4)
    heard: list[Any] = []
    told = run_job(
        tiny_settings(base, pairs, tmp_path / "told", estimate="on", max_train_steps=2), listen=heard.append
    )
    plain = run_job(tiny_settings(base, pairs, tmp_path / "plain", max_train_steps=2))
    (found,) = (event for event in heard if isinstance(event, Estimated))
    assert found.memory > 0
    assert found.available is None
    assert found.seconds is not None and found.seconds > 0
    states = [checkpoint.path_of(each.folder / "checkpoints", 2).read_bytes() for each in (told, plain)]
    assert states[0] == states[1]


class Small:
    """A GPU that holds so many images at once, and says so in the middle of a step."""

    def __init__(self, bench: Bench, images: int, *, learning: bool = True) -> None:
        """Hold so many; without `learning`, passes that need no gradient are too much as well."""
        self._real = bench.model.predict
        self._images, self._learning = images, learning
        self.seen: list[int] = []
        bench.model.predict = self  # type: ignore[method-assign,assignment]

    def __call__(self, latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(latents) > self._images and torch.is_grad_enabled() >= self._learning:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.seen.append(len(latents))
        return self._real(latents, *rest)


def _gradients(bench: Bench, trainer: Trainer) -> list[torch.Tensor]:
    """Of the first step, which is not taken."""
    trainer._gradients()
    found = [weight.grad.clone() for weight in bench.adapter.parameters() if weight.grad is not None]
    trainer._optimizer.zero_grad(set_to_none=True)
    return found


def test_a_batch_that_does_not_fit_is_halved_and_learns_the_same(base: Path, tmp_path: Path) -> None:
    # Nothing here is compared within a batch, so that its gradient is the mean of its portions'.
    options: dict[str, Any] = {"dfm_gamma": 0.0, "batch_size": 4, "max_train_steps": 2, "log_every": 1}
    whole, tight = (Bench(base, tmp_path / name, **options) for name in ("whole", "tight"))
    small = Small(tight, images=2)
    trainers = [each.trainer() for each in (whole, tight)]
    expected, got = (_gradients(*each) for each in zip((whole, tight), trainers, strict=True))
    said = [event.message for event in tight.said if isinstance(event, Warned)]
    assert [line.split(":")[0] for line in said] == [
        "There is not enough memory for 4 pairs at once",
        "There is not enough memory for 2 pairs at once",
    ]
    assert "from here on 1 go through" in said[-1]
    # One pair is two images: four times the reference and four times the policy.
    assert small.seen[-8:] == [2] * 8
    for one, two in zip(got, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4 * float(two.abs().max()))
    for each in trainers:
        each.run()
    for one, two in zip(tight.progress(), whole.progress(), strict=True):
        assert one.metrics["loss"] == pytest.approx(two.metrics["loss"], rel=1e-2)
        assert one.metrics["grad_norm"] == pytest.approx(two.metrics["grad_norm"], rel=1e-2)


def test_what_a_failed_attempt_left_is_undone_and_a_resumed_run_stays_small(
    base: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"batch_size": 4, "max_train_steps": 4, "dfm_warmup": 0.0}
    whole = Bench(base, tmp_path / "whole", **options)
    Small(whole, images=4)
    whole.trainer().run()
    first = Bench(base, tmp_path / "parts", **options)
    Small(first, images=4)
    first.trainer(stop_at=2).run()
    second = Bench(base, tmp_path / "parts", **options)
    state, _ = checkpoint.latest(second.folder)
    assert state is not None
    assert state.extra["portion"] == 2
    trainer = second.trainer()
    trainer.resume(state)
    trainer.run()
    # The second never ran out of memory, and still computed as the first had come to.
    assert not any(isinstance(event, Warned) for event in second.said)
    paths = [checkpoint.path_of(bench.folder, 4) for bench in (whole, second)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_held_out_pairs_that_do_not_fit_are_halved_and_say_the_same(base: Path, tmp_path: Path) -> None:
    found = []
    for name, images in (("whole", 99), ("tight", 2)):
        bench = Bench(base, tmp_path / name, batch_size=4, validation_draws=2)
        with torch.no_grad():
            for number, weight in enumerate(bench.adapter.parameters()):
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
        small = Small(bench, images, learning=False)
        told: list[int] = []

        def encode(prompts: Sequence[str], known: Conditioning, told: list[int] = told) -> Conditioning:
            told.append(len(prompts))
            return known

        held = HeldOut(*pairs_of(6), 4, CPU)
        trainer = bench.trainer(held_out=held, encode_live=encode)
        for step in (1, 2):
            trainer.validation.look(step)
        said = [event.message for event in bench.said if isinstance(event, Warned)]
        looks = [event.metrics for event in bench.said if isinstance(event, Validated)]
        assert looks[0] == looks[1]
        # Four and two pairs, twice; each with two draws, for reference and policy.
        assert told == ([4, 2] * 2 if name == "whole" else [4, 2, *[1] * 6, *[1] * 6])
        assert small.seen == (([8] * 4 + [4] * 4) * 2 if name == "whole" else [2] * 48)
        assert len(said) == (0 if name == "whole" else 2)
        assert all("held-out pairs at once" in line and "what is said of them stays" in line for line in said)
        # What a step can hold is another matter.
        assert trainer._portions.size == 4
        found.append(looks[0])
    assert found[0]["winner_gap"] != 0
    for figure, value in found[0].items():
        assert found[1][figure] == pytest.approx(value, rel=1e-3, abs=1e-7)


def test_no_room_for_one_held_out_pair_says_what_would_help(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path)
    Small(bench, images=1, learning=False)
    trainer = bench.trainer(held_out=HeldOut(*pairs_of(2), 2, CPU))
    with pytest.raises(ScdpoError, match="even for one pair"):
        trainer.validation.look(1)


def test_no_room_for_one_pair_says_what_would_help(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path)
    Small(bench, images=1)
    with pytest.raises(ScdpoError, match=r"even for one pair.*--gradient-checkpointing.*--quantize int8"):
        bench.trainer().run()


def test_advice_names_only_what_is_not_done_yet(base: Path) -> None:
    told = advice(
        tiny_settings(
            base, base, base, gradient_checkpointing=True, quantize="nf4", batch_size=1,
            optimizer="adafactor", buckets=True,
        )
    )  # fmt: skip
    assert told == "smaller buckets (--width)"
    assert "--train-text" in advice(tiny_settings(base, base, base, train_text=True))


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    for error in (
        torch.OutOfMemoryError("x"),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
    ):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_part_of_a_portion_is_the_same_pairs(base: Path, tmp_path: Path) -> None:
    settings = tiny_settings(base, tmp_path, tmp_path, batch_size=3)
    batch = stream(settings).batch(0)
    noise_sample = draw(0, 0, 3, tuple(batch.latents.shape[2:]), FAMILIES["sd1"].load(
        base, CPU, torch.float32).timesteps, TimestepLaw(), CPU)  # fmt: skip
    part = slice_batch(TrainBatch(batch, noise_sample, torch.arange(6.0).view(3, 2)), slice(1, 3))
    assert torch.equal(part.batch.latents, batch.latents[1:])
    assert torch.equal(part.batch.conditioning.embeddings, batch.conditioning.embeddings[1:])
    assert part.batch.prompts == batch.prompts[1:]
    assert torch.equal(part.noise_sample.noise, noise_sample.noise[1:])
    assert part.reference is not None
    assert part.reference.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert isinstance(part.batch.conditioning, Conditioning)
