"""Held-out pairs: what is said of them, that nobody trains on them, and when they say to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scdpo_core.config.settings import TrainSettings, to_toml
from scdpo_core.preferences.batches import Room
from scdpo_core.preferences.buckets import BucketStream
from scdpo_core.preferences.split import hold_out
from scdpo_core.run_store.events import Progress, Sample, Validated, Warned, read_events
from scdpo_core.run_store.folder import checkpoint_steps
from scdpo_core.training import checkpoint, labels
from scdpo_core.training.dataset import Dataset
from scdpo_core.training.distributed import SingleProcess
from scdpo_core.training.job import run_job
from scdpo_core.training.validation import HeldOut, Patience, Validation
from scdpo_core.types import CachedPair, ScdpoError
from tests.preferences.test_buckets import _labelled
from tests.support.tiny import LATENT_CHANNELS, TOKENS, WIDTH, tiny_pairs, tiny_sd_folder, tiny_settings
from tests.training.test_job import Redness
from tests.training.test_launched import close, launch
from tests.training.test_loop import Bench, stream

CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "pairs", 6)


def _held(
    shapes: list[tuple[int, int]], at_once: int, device: torch.device = CPU, room: Room | None = None
) -> HeldOut:
    dice = torch.Generator().manual_seed(0)
    cached = [
        CachedPair(
            torch.randn((2, LATENT_CHANNELS, *shape), generator=dice),
            torch.randn((TOKENS, WIDTH), generator=dice),
            None,
            str(number),
        )
        for number, shape in enumerate(shapes)
    ]
    labelled = [_labelled(number) for number in range(len(shapes))]
    return HeldOut(cached, labelled, at_once, device, None, room)


def test_held_out_pairs_come_once_each_in_batches_of_one_shape() -> None:
    batches = _held([(8, 8), (8, 16), (8, 8), (8, 8)], 2)
    assert [batch.prompts for batch in batches] == [
        ("prompt 0", "prompt 2"),
        ("prompt 3",),
        ("prompt 1",),
    ]


def test_trained_and_held_out_pairs_share_the_room_on_the_device(tmp_path: Path) -> None:
    meta = torch.device("meta")
    # 2 images of 4 channels and 8 * 8 cells, and 16 words of 32 numbers: 1024 numbers of 4 bytes.
    one = 4 * (2 * LATENT_CHANNELS * 8 * 8 + TOKENS * WIDTH)
    pairs = [CachedPair(torch.zeros(2, LATENT_CHANNELS, 8, side), torch.zeros(TOKENS, WIDTH), None, str(side))
             for side in (8, 4, 8, 8)]  # fmt: skip
    labelled = [_labelled(number) for number in range(4)]
    settings = tiny_settings("x", tmp_path, tmp_path)
    # The second pair is a bucket of its own and needs three quarters; two are held out.
    for room, homes in (
        (4 * one, ["meta", "meta", "meta"]),
        (3 * one, ["meta", "meta", "cpu"]),
        (2 * one, ["meta", "meta", "cpu"]),
        (one, ["meta", "cpu", "cpu"]),
        (one - 1, ["cpu", "meta", "cpu"]),
        (0, ["cpu", "cpu", "cpu"]),
    ):
        data = Dataset(pairs, labelled, [0, 1], [2, 3], room=Room(room))
        stream = data.stream(settings, meta, SingleProcess())
        assert isinstance(stream, BucketStream)
        stores = [each._store for each in stream._streams]
        held = data.held_out(settings, meta)
        stores += [store for store, _ in held._parts]
        assert [store._latents.device.type for store in stores] == homes
        # Wherever they wait, batches come to the device.
        assert {batch.latents.device.type for batch in (stream.batch(0), *held)} == {"meta"}


def test_patience_as_worked_by_hand() -> None:
    patience = Patience(2)
    # Up, but still better than the base model; then up above it, down, and up twice.
    for gap, over in [(-0.3, False), (-0.1, False), (0.1, False), (0.05, False), (0.2, False), (0.3, True)]:
        patience.see(gap)
        assert patience.is_over is over, gap
    again = Patience(2)
    again.load_state(patience.state())
    assert again == patience
    never = Patience(0)
    for gap in range(9):
        never.see(float(gap))
    assert not never.is_over


def test_an_untrained_lora_is_the_base_model_and_a_look_is_always_the_same(
    base: Path, tmp_path: Path
) -> None:
    bench = Bench(base, tmp_path, validation_draws=3)
    validation = Validation(
        bench.model, bench.adapter, _held([(8, 8)] * 3, 2), bench.settings, bench.said.append, SingleProcess()
    )
    for step in (1, 2):
        validation.look(step)
    one, two = (event for event in bench.said if isinstance(event, Validated))
    assert one.metrics == two.metrics
    assert (one.pairs, two.step) == (3, 2)
    # Neither gap differs from zero, so no pair is preferred more than before.
    assert one.metrics == {"accuracy": 0.0, "u": 0.0, "winner_gap": 0.0, "loser_gap": 0.0}
    with torch.no_grad():
        for weight in bench.adapter.parameters():
            weight.normal_(0, 0.1)
    validation.look(3)
    assert bench.said[-1].metrics["winner_gap"] != 0  # type: ignore[union-attr]
    assert bench.model.denoiser.training


def test_a_rising_gap_ends_the_run_early_and_resuming_leaves_it_ended(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a training that falls apart does is not the same on every processor: the gaps are given.
    see, gaps = Patience.see, iter((0.1, 0.2, 0.3))
    monkeypatch.setattr(Patience, "see", lambda self, _: see(self, next(gaps)))
    options: dict[str, Any] = {
        "max_train_steps": 30, "validation": 0.5, "validation_every": 1, "patience": 2,
    }  # fmt: skip
    bench = Bench(base, tmp_path, **options)
    held = _held([(8, 8)] * 3, 2)
    outcome = bench.trainer(held_out=held).run()
    assert (outcome.reason, outcome.step) == ("finished", 3)
    assert checkpoint_steps(bench.folder)[-1] == 3
    assert sum(isinstance(event, Validated) for event in bench.said) == 3
    assert any(isinstance(event, Warned) and "Stopped early" in event.message for event in bench.said)
    again = Bench(base, tmp_path, **options)
    state, _ = checkpoint.latest(again.folder)
    assert state is not None
    trainer = again.trainer(held_out=held)
    trainer.resume(state)
    assert trainer.run() == outcome


def test_a_whole_run_holds_out_looks_and_tells_what_samples_cost(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "load_scorer", lambda *_: Redness())
    settings = tiny_settings(
        base, pairs, tmp_path / "run", validation=0.3, validation_every=2, max_train_steps=5, samples=1,
        cost_model="micro", ema=0.9,
    )  # fmt: skip
    heard: list[Any] = []
    result = run_job(settings, listen=heard.append)
    looks = [event for event in heard if isinstance(event, Validated)]
    assert [event.step for event in looks] == [2, 4, 5]
    # 0.3 of 6 pairs under 6 prompts: two.
    assert {event.pairs for event in looks} == {2}
    assert result.lora is not None
    assert result.lora.metadata["scdpo_train_pairs"] == "4"
    for event in (event for event in heard if isinstance(event, Sample)):
        with Image.open(result.folder / event.path) as image:
            red = image.convert("RGB").getpixel((0, 15))[0]  # type: ignore[index]
        assert event.cost == pytest.approx(red / 64 - 2)


def test_what_is_held_out_is_never_dealt(pairs: Path) -> None:
    labelled = [_labelled(number) for number in range(8)]
    trained, held = hold_out(labelled, 0.25)
    settings = tiny_settings("x", pairs, pairs)
    dealt = {place for step in range(40) for place in stream(settings, len(trained)).indices(step)}
    assert {trained[place] for place in dealt}.isdisjoint(held)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patience": 3}, "needs --validation 0.1"),
        ({"validation": 1.0}, "validation.validation must be at least 0 and below 1"),
        ({"validation_every": 0}, "must be at least 1"),
        ({"kind": "lokr", "dropout": 0.1}, "needs --kind lora or dora"),
        ({"kind": "dora", "quantize": "int8"}, "leave one of them out"),
        ({"kind": "lokr", "quantize": "nf4"}, "leave one of them out"),
        ({"text_lr": 1e-4}, "needs --train-text"),
        ({"timestep_min": 0.5, "timestep_max": 0.5}, "shares of the schedule"),
        ({"track": ("excel",)}, "Choose from: tensorboard, wandb"),
        ({"optimizer": "prodigy"}, "give --lr 1"),
        ({"bucket_step": 12}, "a multiple of 8"),
        ({"ema": 1.0}, "optim.ema must be"),
        ({"block_ranks": ("mid",)}, "should read BLOCK=RANK"),
    ],
)
def test_settings_that_would_do_nothing_are_refused_before_anything_is_loaded(
    base: Path, pairs: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ScdpoError) as caught:
        settings = tiny_settings(base, pairs, tmp_path / "run", **changes)
        run_job(settings, unasked=[TrainSettings()])
    assert sentence in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_real_sizes_are_for_sdxl_alone(base: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ScdpoError, match="sd1 is not"):
        run_job(tiny_settings(base, pairs, tmp_path / "run", real_sizes=True))


def test_the_ram_keeps_no_files(base: Path, pairs: Path, tmp_path: Path) -> None:
    result = run_job(tiny_settings(base, pairs, tmp_path / "run", cache_in="ram", max_train_steps=2))
    assert not (result.folder / "cache").exists()
    disk = run_job(tiny_settings(base, pairs, tmp_path / "disk", max_train_steps=2))
    assert result.lora is not None and disk.lora is not None
    own, other = (
        (each.folder / "checkpoints" / "step-000002.state.safetensors").read_bytes()
        for each in (result, disk)
    )
    assert own == other


def test_two_runs_share_a_cache(base: Path, pairs: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"cache": tmp_path / "cache", "max_train_steps": 1}
    run_job(tiny_settings(base, pairs, tmp_path / "one", **changes))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")}
    assert len(kept) == 6
    heard: list[Any] = []
    run_job(tiny_settings(base, pairs, tmp_path / "two", **changes), listen=heard.append)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")} == kept
    encoding = [event for event in heard if isinstance(event, Progress) and event.phase == "cache"]
    assert encoding[0].step == 6


@pytest.mark.slow
def test_two_processes_look_once_and_end_as_one_does(base: Path, tmp_path: Path) -> None:
    pairs = tiny_pairs(tmp_path / "pairs", 8)
    changes: dict[str, Any] = {
        "validation": 0.25, "validation_every": 2, "ema": 0.9, "train_text": True, "max_train_steps": 4,
        "save_dtype": "fp32",
    }  # fmt: skip
    alone = run_job(tiny_settings(base, pairs, tmp_path / "one" / "lora", batch_size=4, **changes)).folder
    folder, job = tmp_path / "two" / "lora", tmp_path / "job.toml"
    job.write_text(to_toml(tiny_settings(base, pairs, folder, batch_size=2, **changes)), "utf-8")
    done = launch("--multi_gpu", job=job)
    assert done.returncode == 0, done.stderr
    looks = [
        [record.event for record in read_events(each / "events.jsonl") if isinstance(record.event, Validated)]
        for each in (folder, alone)
    ]
    assert [event.step for event in looks[0]] == [2, 4]
    for mine, theirs in zip(*looks, strict=True):
        assert mine.metrics["winner_gap"] == pytest.approx(theirs.metrics["winner_gap"], rel=1e-2, abs=1e-5)
    assert close(folder / "lora.safetensors", alone / "lora.safetensors")
