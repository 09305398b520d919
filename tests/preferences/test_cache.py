"""The cache: what is encoded when, what a key depends on, and how damage and full disks end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scdpo_core.io.images import open_image, to_pixels
from scdpo_core.preferences import cache as cache_module
from scdpo_core.preferences.cache import PairCache, build_cache, pair_key
from scdpo_core.preferences.relabel import unscored
from scdpo_core.types import CachedPair, Conditioning, LabelledPair, PreferencePair


class FakeModel:
    """Latents are pixels averaged over 8 x 8 cells, embeddings count letters; both are easy to work out."""

    name = "fake"
    family = "fake"
    encoder_id = "fake-1"
    dtype = torch.float32
    device = torch.device("cpu")
    vae_scale = 8
    default_size = (16, 16)

    def __init__(self, pooled: bool = False, spoil: str = "") -> None:
        self.pooled = pooled
        self.spoil = spoil
        self.prompts: list[str] = []
        self.batches: list[int] = []

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        self.prompts += prompts
        counts = torch.tensor([[float(len(prompt)), float(prompt.count("a"))] for prompt in prompts])
        if self.spoil == "prompts":
            counts[-1, 0] = torch.nan
        return Conditioning(counts[:, None].repeat(1, 3, 1), counts if self.pooled else None)

    def prompt_chunks(self, prompt: str) -> int:
        return 1

    def encode_images(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        latents = torch.nn.functional.avg_pool2d(images, 8)
        if self.spoil == "images":
            latents[1] = torch.inf
        return latents


def _pairs(root: Path, count: int, prompts: Sequence[str] = ("a cat", "a hat")) -> list[LabelledPair]:
    made = []
    for number in range(count):
        both = []
        for half in (0, 1):
            values = np.random.default_rng([number, half]).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            both.append(root / f"{number}-{half}.png")
            Image.fromarray(values).save(both[-1])
        made.append(PreferencePair(str(number), prompts[number % len(prompts)], both[0], both[1]))
    return unscored(made)


def _build(
    pairs: list[LabelledPair], model: FakeModel, folder: Path, size: tuple[int, int] | None = None
) -> list[CachedPair]:
    return build_cache(pairs, model, size, PairCache(folder), lambda done, total: None)  # type: ignore[arg-type]


def _equal(one: CachedPair, other: CachedPair) -> bool:
    same = torch.equal(one.latents, other.latents) and torch.equal(one.embeddings, other.embeddings)
    if one.pooled is None or other.pooled is None:
        return same and one.pooled is other.pooled and one.key == other.key
    return same and torch.equal(one.pooled, other.pooled) and one.key == other.key


@pytest.mark.parametrize("pooled", [False, True])
def test_pairs_are_encoded_once_and_come_back_the_same(tmp_path: Path, pooled: bool) -> None:
    pairs, model, told = _pairs(tmp_path, 5), FakeModel(pooled), []
    folder = tmp_path / "deep" / "cache"
    first = build_cache(
        pairs,
        model,  # type: ignore[arg-type]
        None,
        PairCache(folder),
        lambda done, total: told.append((done, total)),
    )
    assert told[0] == (0, 5)
    assert told[-1] == (5, 5)
    assert model.prompts == ["a cat", "a hat"]
    assert sum(model.batches) == 10
    for label, cached in zip(pairs, first, strict=True):
        for index, image in enumerate((label.pair.chosen, label.pair.rejected)):
            pixels = to_pixels(open_image(image), (16, 16))
            expected = torch.nn.functional.avg_pool2d(pixels[None], 8)[0]
            torch.testing.assert_close(cached.latents[index], expected)
        count = 1.0 + (label.pair.prompt.count("a") - 1)
        assert torch.equal(cached.embeddings, torch.tensor([5.0, count]).repeat(3, 1))
        assert (cached.pooled is not None) == pooled
        assert cached.key == pair_key(label.pair, "fake", "fake-1", (16, 16))
    assert len(list(folder.iterdir())) == 5

    second = FakeModel(pooled)
    again = _build(pairs, second, folder)
    assert (second.prompts, second.batches) == ([], [])
    assert all(_equal(*both) for both in zip(first, again, strict=True))
    assert again[0].embeddings is again[2].embeddings


def test_only_what_is_missing_is_encoded(tmp_path: Path) -> None:
    pairs = _pairs(tmp_path, 4)
    whole = _build(pairs, FakeModel(), tmp_path / "whole")
    _build([pairs[1], pairs[3]], FakeModel(), tmp_path / "cache")
    model, told = FakeModel(), []
    mixed = build_cache(
        pairs,
        model,  # type: ignore[arg-type]
        None,
        PairCache(tmp_path / "cache"),
        lambda done, total: told.append((done, total)),
    )
    assert sum(model.batches) == 4
    assert model.prompts == ["a cat"]
    assert told[0] == (2, 4)
    assert all(_equal(*both) for both in zip(whole, mixed, strict=True))


class SociableModel(FakeModel):
    """What it computes depends on what it computes beside it, as the last digits of real networks do."""

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        found = super().encode_prompts(prompts)
        return Conditioning(found.embeddings + found.embeddings.mean() / 1000, found.pooled)

    def encode_images(self, images: Tensor) -> Tensor:
        latents = super().encode_images(images)
        return latents + latents.mean() / 1000


class KilledError(Exception):
    pass


@pytest.mark.parametrize("there", [0, 5])
@pytest.mark.parametrize("kills", [[3], [7], [1, 9], [2, 1, 4]])
def test_a_kill_while_encoding_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, kills: list[int]
) -> None:
    # Four pairs at once, three prompts at once, two turns.
    monkeypatch.setattr(cache_module, "_PIXELS_AT_ONCE", 8 * 256)
    monkeypatch.setattr(cache_module, "_MOST_AT_ONCE", 8)
    monkeypatch.setattr(cache_module, "_TURN", 12)
    pairs = _pairs(tmp_path, 18, [f"a cat {'a' * number}" for number in range(7)])
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        if there:
            _build(pairs[1 : 3 * there : 3], SociableModel(True), folder)
    whole = _build(pairs, SociableModel(True), folders[0])
    for kill in kills:
        left = [kill]
        put = PairCache.put

        def dying(self: PairCache, pair: CachedPair, left: list[int] = left, put: Any = put) -> None:
            if not left[0]:
                raise KilledError
            left[0] -= 1
            put(self, pair)

        with monkeypatch.context() as patch:
            patch.setattr(PairCache, "put", dying)
            with pytest.raises(KilledError):
                _build(pairs, SociableModel(True), folders[1])
    again = _build(pairs, SociableModel(True), folders[1])
    assert all(_equal(*both) for both in zip(whole, again, strict=True))
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1] == sorted(f"{pair.key}.safetensors" for pair in whole)
    for pair in whole:
        kept = [PairCache(folder).get(pair.key) for folder in folders]
        assert kept[0] is not None and kept[1] is not None and _equal(kept[0], kept[1])


@pytest.mark.parametrize("damage", ["{", "[1]", '["gone"]', "[" * 10_000])
def test_a_damaged_plan_costs_nothing_but_the_company(tmp_path: Path, damage: str) -> None:
    pairs, cache = _pairs(tmp_path, 4), PairCache(tmp_path / "cache")
    keys = [pair_key(each.pair, "fake", "fake-1", (16, 16)) for each in pairs]
    cache._plan(keys).parent.mkdir()
    cache._plan(keys).write_text(damage, "utf-8")
    assert len(_build(pairs, FakeModel(), tmp_path / "cache")) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_large_images_are_encoded_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = _pairs(tmp_path, 3)
    whole = _build(pairs, FakeModel(), tmp_path / "whole")
    # 16 x 16 pixels, four images' worth: two pairs at once.
    monkeypatch.setattr(cache_module, "_PIXELS_AT_ONCE", 4 * 256)
    model = FakeModel()
    split = _build(pairs, model, tmp_path / "split")
    assert model.batches == [4, 2]
    assert all(_equal(*both) for both in zip(whole, split, strict=True))
    # Not even one image fits, but a pair is never torn.
    monkeypatch.setattr(cache_module, "_PIXELS_AT_ONCE", 1)
    model = FakeModel()
    _build(pairs, model, tmp_path / "single")
    assert model.batches == [2, 2, 2]


def test_equal_pairs_are_encoded_once(tmp_path: Path) -> None:
    pair = _pairs(tmp_path, 1)[0]
    twin = replace(pair, pair=replace(pair.pair, id="twin"))
    model = FakeModel()
    first, second = _build([pair, twin], model, tmp_path / "cache")
    assert model.batches == [2]
    assert _equal(first, second)


def test_a_key_changes_with_all_that_matters_and_nothing_else(tmp_path: Path) -> None:
    one, two = (label.pair for label in _pairs(tmp_path, 2, ["a cat"]))
    key = pair_key(one, "sd1", "clip", (64, 64))
    assert len(key) == 40
    assert key == pair_key(one, "sd1", "clip", (64, 64))
    others = [
        pair_key(replace(one, prompt="a cat."), "sd1", "clip", (64, 64)),
        pair_key(replace(one, chosen=two.chosen), "sd1", "clip", (64, 64)),
        pair_key(replace(one, rejected=two.rejected), "sd1", "clip", (64, 64)),
        pair_key(replace(one, chosen=one.rejected, rejected=one.chosen), "sd1", "clip", (64, 64)),
        pair_key(one, "sdxl", "clip", (64, 64)),
        pair_key(one, "sd1", "other", (64, 64)),
        # The same letters at another seam.
        pair_key(one, "sd1c", "lip", (64, 64)),
        pair_key(one, "sd1", "clip", (64, 72)),
        pair_key(one, "sd1", "clip", (72, 64)),
    ]
    assert len({key, *others}) == 10
    moved = one.chosen.rename(tmp_path / "renamed.png")
    renamed = replace(one, id="other", category="weapon", chosen=moved)
    assert pair_key(renamed, "sd1", "clip", (64, 64)) == key
