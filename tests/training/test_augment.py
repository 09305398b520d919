"""Caption dropout and mirrored pairs: which, both sides alike, and the same after a resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scdpo_core.families.sd1 import SD1, SD1Model
from scdpo_core.families.timesteps import TimestepLaw
from scdpo_core.io.images import open_image, to_pixels
from scdpo_core.preferences.batches import BatchStream
from scdpo_core.preferences.buckets import BucketStream
from scdpo_core.preferences.cache import MemoryCache, build_cache, pair_key
from scdpo_core.preferences.folder import check_folder
from scdpo_core.preferences.relabel import unscored
from scdpo_core.training.batches import FreshNoise
from scdpo_core.training.caption_dropout import CaptionDropout, empty_prompt
from scdpo_core.training.dataset import encode
from scdpo_core.training.distributed import ProcessGroup, SingleProcess
from scdpo_core.training.job import run_job
from scdpo_core.training.reference import NoiseSample
from scdpo_core.training.term_batches import TermRows
from scdpo_core.types import CachedPair, Conditioning, LabelledPair, PairBatch, PreferencePair
from tests.support.tiny import tiny_pairs, tiny_sd_folder, tiny_settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "my pairs")


class Member(SingleProcess):
    """One of two processes."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def batch_of(pairs: int) -> PairBatch:
    ones = torch.ones(pairs)
    words = torch.arange(1.0, pairs + 1).view(-1, 1, 1).expand(-1, 3, 2).clone()
    sizes = torch.full((pairs, 6), 16.0)
    return PairBatch(
        torch.zeros(pairs, 2, 4, 2, 2),
        Conditioning(words, words[:, 0] * 10, sizes),
        ones,
        ones,
        torch.zeros(pairs, 2),
        tuple(f"prompt {number}" for number in range(pairs)),
    )


def dropout(share: float, seed: int = 5, team: ProcessGroup | None = None) -> CaptionDropout:
    empty = Conditioning(torch.full((1, 3, 2), -1.0), torch.full((1, 2), -10.0))
    return CaptionDropout(share, empty, seed, team)


def test_a_fifth_of_the_prompts_are_dropped_whatever_the_batch() -> None:
    # A fifth of 4 pairs is 0.8: after 1, 2 ... 5 batches 0.8, 1.6, 2.4, 3.2 and 4 prompts are due, in whole
    # ones 0, 1, 2, 3 and 4.
    own = dropout(0.2)
    assert [sum(own.dropped(index, 4)) for index in range(10)] == [0, 1, 1, 1, 1] * 2
    assert [sum(own.dropped(index, 1)) for index in range(10)] == [0, 0, 0, 0, 1] * 2
    assert [sum(dropout(0.75).dropped(index, 4)) for index in range(3)] == [3, 3, 3]
    # Which ones is decided by seed and index alone, whoever asks and in what order.
    assert own.dropped(7, 4) == dropout(0.2).dropped(7, 4)
    many = [tuple(own.dropped(index, 4)) for index in range(1, 100)]
    assert {place for each in many for place, gone in enumerate(each) if gone} == {0, 1, 2, 3}
    assert many != [tuple(dropout(0.2, seed=6).dropped(index, 4)) for index in range(1, 100)]


def test_two_processes_drop_what_one_drops() -> None:
    for index in range(20):
        halves = [dropout(0.3, team=Member(rank)).dropped(index, 4) for rank in (0, 1)]
        assert halves[0] + halves[1] == dropout(0.3).dropped(index, 8)


def test_a_dropped_prompt_becomes_the_empty_one_and_nothing_else_changes() -> None:
    own, batch = dropout(0.5), batch_of(4)
    dropped, changed = own.dropped(0, 4), own(0, batch)
    assert sum(dropped) == 2
    for place, gone in enumerate(dropped):
        value = -1.0 if gone else place + 1.0
        assert torch.equal(changed.conditioning.embeddings[place], torch.full((3, 2), value))
        assert changed.conditioning.pooled is not None
        assert torch.equal(changed.conditioning.pooled[place], torch.full((2,), value * 10))
        assert changed.prompts[place] == ("" if gone else f"prompt {place}")
    assert changed.conditioning.sizes is batch.conditioning.sizes
    assert changed.latents is batch.latents
    # None is due in the first batch.
    assert dropout(0.2)(0, batch) is batch


def test_the_empty_prompt_is_as_long_as_the_pairs_prompts(base: Path) -> None:
    model = SD1().load(base, CPU, torch.float32)
    short = model.encode_prompts(["a cat"]).prompt(0)
    assert torch.equal(empty_prompt(model, short).embeddings, model.encode_prompts([""]).embeddings)
    twice = replace(short, embeddings=torch.cat([short.embeddings, short.embeddings]))
    empty = empty_prompt(model, twice).embeddings
    assert empty.shape == (1, *twice.embeddings.shape)
    assert torch.equal(empty[0], model.encode_prompts([""]).embeddings[0].repeat(2, 1))


def test_terms_keep_the_prompts_that_pairs_lose(base: Path) -> None:
    model, batch, heard = SD1().load(base, CPU, torch.float32), batch_of(4), list[tuple[str, ...]]()

    class Batches:
        def batch(self, step: int) -> PairBatch:
            return batch

    def terms(index: int, own: PairBatch, noise_sample: NoiseSample) -> tuple[TermRows, ...]:
        heard.append(own.prompts)
        return ()

    feed = FreshNoise(Batches(), model, TimestepLaw(), 0, None, terms, dropout(0.5))  # type: ignore[arg-type]
    assert sum(prompt == "" for prompt in feed(0).batch.prompts) == 2
    assert heard == [batch.prompts]


def stream_of(
    shapes: Sequence[int], size: int, *, mirrored: bool = True, share: tuple[int, int] = (0, 1)
) -> BatchStream | BucketStream:
    """Pairs whose latents hold +number, mirrored -number, and whose masks cover the left column."""
    cached, labelled = [], []
    for number, width in enumerate(shapes, 1):
        latents = torch.full((2, 4, 2, width), float(number))
        latents[1] *= 100
        mask = torch.zeros(1, 2, width)
        mask[..., 0] = 1
        mirror = -latents if mirrored else None
        cached.append(CachedPair(latents, torch.zeros(3, 2), None, str(number), mask, mirror))
        pair = PreferencePair(str(number), "a prompt", Path("a"), Path("b"))
        labelled.append(LabelledPair(pair, None, None, False, 1.0, 1.0, ""))
    kind = BucketStream if len(set(shapes)) > 1 else BatchStream
    return kind(cached, labelled, size, 3, CPU, torch.float32, share=share)


def signs(latents: Tensor) -> list[list[float]]:
    return latents[:, :, 0, 0, 0].sign().tolist()


def test_both_images_of_a_pair_are_mirrored_alike_and_its_mask_with_them() -> None:
    stream, seen = stream_of([2] * 6, 4), list[float]()
    for step in range(50):
        batch = stream.batch(step)
        assert batch.mask is not None
        for (chosen, rejected), mask in zip(signs(batch.latents), batch.mask, strict=True):
            assert chosen == rejected
            assert mask[0, 0].tolist() == ([1, 0] if chosen > 0 else [0, 1])
            seen.append(chosen)
        assert torch.equal(stream_of([2] * 6, 4).batch(step).latents, batch.latents)
    # 200 throws of a coin lie within 70 and 130 heads but once in 50,000 times.
    assert 70 < seen.count(-1.0) < 130
    assert stream.pairs([0, 1]).latents.min() > 0, "pairs that are asked for by number are as they are"
    assert all((stream_of([2] * 6, 4, mirrored=False).batch(step).latents > 0).all() for step in range(9))


def test_two_processes_mirror_what_one_mirrors() -> None:
    whole = stream_of([2] * 6, 4)
    halves = [stream_of([2] * 6, 2, share=(rank, 2)) for rank in (0, 1)]
    for step in range(10):
        both = torch.cat([half.batch(step).latents for half in halves])
        assert torch.equal(both, whole.batch(step).latents)


def test_pairs_of_several_shapes_are_mirrored_too() -> None:
    stream = stream_of([2, 2, 3, 3], 2)
    seen = [sign for step in range(20) for sign, _ in signs(stream.batch(step).latents)]
    assert {1.0, -1.0} == set(seen)


def test_mirrored_images_are_encoded_and_not_their_latents_mirrored(base: Path, pairs: Path) -> None:
    model, labelled = SD1().load(base, CPU, torch.float32), unscored(check_folder(pairs))[:2]
    plain, mirrored = (
        build_cache(labelled, model, (16, 16), MemoryCache(), lambda done, total: None, mirror)
        for mirror in (False, True)
    )
    for each, one, other in zip(labelled, plain, mirrored, strict=True):
        files = (each.pair.chosen, each.pair.rejected)
        pixels = torch.stack([to_pixels(open_image(file), (16, 16)).flip(-1) for file in files])
        torch.testing.assert_close(other.latents, model.encode_images(pixels))
        assert not torch.allclose(other.latents, one.latents.flip(-1), atol=1e-3)
        assert one.key == pair_key(each.pair, "sd1", model.encoder_id, (16, 16)) != other.key


def test_held_out_pairs_and_known_references_are_not_mirrored(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dataset(**changes: Any) -> Any:
        settings = tiny_settings(base, pairs, tmp_path / "run", flip=True, caption_dropout=0.2, **changes)
        model = SD1().load(base, CPU, torch.float32)
        labelled = unscored(check_folder(pairs))
        return encode(
            labelled, model, settings, tmp_path / "cache", SingleProcess(), lambda done, total: None
        )

    heard = list[str]()
    encode_prompts = SD1Model.encode_prompts

    def listening(self: SD1Model, prompts: list[str]) -> Conditioning:
        heard.extend(prompts)
        return encode_prompts(self, prompts)

    monkeypatch.setattr(SD1Model, "encode_prompts", listening)
    data = dataset(validation=0.3)
    # Once each, and the empty one; not once more for the mirrored images.
    assert sorted(heard) == ["", *sorted(pair.pair.prompt for pair in data.labelled)]
    mirrored = {place for place, pair in enumerate(data.cached) if pair.mirrored is not None}
    assert data.held and mirrored == set(data.trained)
    assert data.empty is not None
    known = dataset(reference_draws=2)
    assert all(pair.mirrored is None for pair in known.cached) and known.empty is None
    assert dataset(objective="redirect_keep").empty is None


def test_resumed_with_dropout_and_mirrored_pairs_it_ends_with_the_same_bytes(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "caption_dropout": 0.3,
        "flip": True,
        "train_text": True,
        "schedule": "constant",
        "warmup": 0.0,
    }

    def run(name: str, steps: int, resume: bool = False, **changes: Any) -> bytes:
        settings = tiny_settings(base, pairs, tmp_path / name / "calm", max_train_steps=steps, **changes)
        result = run_job(settings, resume=resume)
        assert result.lora is not None and result.outcome.step == steps
        return result.lora.path.read_bytes()

    whole = run("whole", 6, **options)
    run("halves", 2, **options)
    assert run("halves", 6, resume=True, **options) == whole
    for key in ("caption_dropout", "flip"):
        other = {name: value for name, value in options.items() if name != key}
        assert run(f"without {key}", 6, **other) != whole
