"""The cache of encoded pairs on damaged files, full disks and odd values."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from scdpo_core.io import files
from scdpo_core.io.images import ImageError
from scdpo_core.preferences import cache as cache_module
from scdpo_core.preferences.cache import PairCache
from scdpo_core.types import CachedPair, ScdpoError
from tests.preferences.test_cache import FakeModel, _build, _equal, _pairs


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


def test_impossible_size_and_vanished_image(tmp_path: Path) -> None:
    pairs = _pairs(tmp_path, 1)
    with pytest.raises(ScdpoError, match="multiples of 8"):
        _build(pairs, FakeModel(), tmp_path / "cache", (20, 16))
    assert _build(pairs, FakeModel(), tmp_path / "cache", (24, 8))[0].latents.shape == (2, 3, 1, 3)
    pairs[0].pair.rejected.unlink()
    with pytest.raises(ImageError, match=r"0-1\.png.*cannot be read"):
        _build(pairs, FakeModel(), tmp_path / "cache")


@pytest.mark.parametrize(("spoil", "said"), [("images", r"VAE.*0-1\.png"), ("prompts", "prompt 'a hat'")])
def test_values_that_are_no_numbers_never_reach_the_cache(tmp_path: Path, spoil: str, said: str) -> None:
    pairs = _pairs(tmp_path, 2)
    with pytest.raises(ScdpoError, match=said):
        _build(pairs, FakeModel(spoil=spoil), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.safetensors"))


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
    # The first pair is whole, of the second nothing is left, and what was missing at first is known.
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".safetensors"]
    monkeypatch.undo()
    model = FakeModel()
    _build(pairs, model, tmp_path / "cache")
    assert sum(model.batches) == 6  # all three pairs, in the same company


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
