"""The cache: what is encoded when, what a key depends on, and how damage and full disks end."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from scdpo_core import files
from scdpo_core.preferences import cache as cache_module
from scdpo_core.preferences.cache import PairCache, build_cache, pair_key
from scdpo_core.preferences.pictures import PictureError, open_picture, to_pixels
from scdpo_core.preferences.relabel import unscored
from scdpo_core.types import CachedPair, Conditioning, LabelledPair, PreferencePair, ScdpoError


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

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        self.batches.append(len(pictures))
        latents = torch.nn.functional.avg_pool2d(pictures, 8)
        if self.spoil == "pictures":
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
        for index, picture in enumerate((label.pair.chosen, label.pair.rejected)):
            pixels = to_pixels(open_picture(picture), (16, 16))
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


def test_large_pictures_are_encoded_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = _pairs(tmp_path, 3)
    whole = _build(pairs, FakeModel(), tmp_path / "whole")
    # 16 x 16 pixels, four pictures' worth: two pairs at once.
    monkeypatch.setattr(cache_module, "_PIXELS_AT_ONCE", 4 * 256)
    model = FakeModel()
    split = _build(pairs, model, tmp_path / "split")
    assert model.batches == [4, 2]
    assert all(_equal(*both) for both in zip(whole, split, strict=True))
    # Not even one picture fits, but a pair is never torn.
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


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "flipped":
        # The last byte lies in the body, which safetensors itself does not check.
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 64]))
    else:
        cut = {
            "empty": b"",
            "cut": content[: len(content) // 2],
            "text": b"hello" * 20,
            "pickle": b"\x80\x04.",
        }
        path.write_bytes(cut[how])


@pytest.mark.parametrize("how", ["empty", "cut", "text", "pickle", "flipped"])
def test_damaged_files_are_computed_again(tmp_path: Path, how: str) -> None:
    pairs = _pairs(tmp_path, 2)
    first = _build(pairs, FakeModel(), tmp_path / "cache")
    path = tmp_path / "cache" / f"{first[0].key}.safetensors"
    _damage(path, how)
    assert PairCache(tmp_path / "cache").get(first[0].key) is None
    model = FakeModel()
    again = _build(pairs, model, tmp_path / "cache")
    assert model.batches == [2]
    assert all(_equal(*both) for both in zip(first, again, strict=True))
    assert PairCache(tmp_path / "cache").get(first[0].key) is not None


def test_files_of_others_are_not_believed(tmp_path: Path) -> None:
    store = PairCache(tmp_path)
    files.write_tensors(tmp_path / "abc.safetensors", {"weight": torch.zeros(2)}, {})
    assert store.get("abc") is None
    assert store.get("never-stored") is None


def test_half_precision_survives(tmp_path: Path) -> None:
    latents = torch.randn(2, 4, 2, 2).bfloat16()
    stored = CachedPair(latents, torch.randn(3, 2).half(), torch.randn(2).bfloat16(), "key")
    PairCache(tmp_path).put(stored)
    found = PairCache(tmp_path).get("key")
    assert found is not None
    assert found.latents.dtype == torch.bfloat16
    assert _equal(found, stored)


def test_impossible_size_and_vanished_picture(tmp_path: Path) -> None:
    pairs = _pairs(tmp_path, 1)
    with pytest.raises(ScdpoError, match="multiples of 8"):
        _build(pairs, FakeModel(), tmp_path / "cache", (20, 16))
    assert _build(pairs, FakeModel(), tmp_path / "cache", (24, 8))[0].latents.shape == (2, 3, 1, 3)
    pairs[0].pair.rejected.unlink()
    with pytest.raises(PictureError, match=r"0-1\.png.*cannot be read"):
        _build(pairs, FakeModel(), tmp_path / "cache")


@pytest.mark.parametrize(("spoil", "said"), [("pictures", r"VAE.*0-1\.png"), ("prompts", "prompt 'a hat'")])
def test_values_that_are_no_numbers_never_reach_the_cache(tmp_path: Path, spoil: str, said: str) -> None:
    pairs = _pairs(tmp_path, 2)
    with pytest.raises(ScdpoError, match=said):
        _build(pairs, FakeModel(spoil=spoil), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ],
)
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    pairs = _pairs(tmp_path, 3)
    real = safetensors.torch.save_file
    written: list[str] = []

    def full(tensors: dict[str, Tensor], path: str, **options: Any) -> None:
        if written:
            Path(path).write_bytes(b"half")
            raise error
        written.append(path)
        real(tensors, path, **options)

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(ScdpoError, match="disk is full") as caught:
        _build(pairs, FakeModel(), tmp_path / "cache")
    assert str(tmp_path / "cache") in str(caught.value)
    # The first pair is whole, of the second nothing is left.
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]
    monkeypatch.undo()
    model = FakeModel()
    _build(pairs, model, tmp_path / "cache")
    assert sum(model.batches) == 4


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = _pairs(tmp_path, 1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ScdpoError, match="cannot be written to"):
        _build(pairs, FakeModel(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"

    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", forbidden)
    with pytest.raises(ScdpoError, match="Give your user permission"):
        _build(pairs, FakeModel(), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    key = _build(pairs, FakeModel(), tmp_path / "cache")[0].key
    monkeypatch.setattr(cache_module, "read_tensors", forbidden)
    with pytest.raises(ScdpoError, match="cannot be read"):
        PairCache(tmp_path / "cache").get(key)
