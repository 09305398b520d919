"""Latents and text embeddings of the pairs, computed once and kept under a hash of what they depend on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..files import read_tensors, sha256_of, write_tensors
from ..types import CachedPair, LabelledPair, PreferencePair, ScdpoError
from .pictures import PictureError, check_size, open_picture, to_pixels

if TYPE_CHECKING:
    from ..families.base import LoadedModel

Value = TypeVar("Value")

# Part of every key: raise it when pictures are prepared differently or the files look different.
_FORMAT = "scdpo-pair-1"
# Pixels encoded at once; 4 megapixels keep the VAE of SDXL well below 16 GB.
_PIXELS_AT_ONCE = 4 * 1024 * 1024
_MOST_AT_ONCE = 64
# Pairs whose prompts are encoded before the first of their pictures.
_TURN = 256
# As Linux and macOS, older safetensors, Windows and quotas put it.
_DISK_FULL = ("No space left", "StorageFull", "os error 112", "WinError 112", "uota exceeded")


def pair_key(pair: PreferencePair, family: str, encoder_id: str, size: tuple[int, int]) -> str:
    """Name of a pair in the cache: 40 hexadecimal digits that change whenever its tensors would.

    Args:
        pair: its files are hashed by content; neither their names nor the pair's id matter, their order does.
        family: of the model, a name in `families.FAMILIES`.
        encoder_id: of the model.
        size: (width, height) in pixels that the pictures are brought to.

    Raises:
        ScdpoError: a picture cannot be read.
    """
    digest = hashlib.sha256()
    pictures = (_hash(pair.chosen), _hash(pair.rejected))
    for part in (_FORMAT, *pictures, family, encoder_id, f"{size[0]}x{size[1]}", pair.prompt):
        raw = part.encode("utf-8")
        # The length in front keeps "ab" + "c" apart from "a" + "bc".
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:40]


class Cache(Protocol):
    """Where encoded pairs are kept."""

    def get(self, key: str) -> CachedPair | None:
        """The pair of that key on the CPU; None if it is not kept."""
        ...

    def put(self, pair: CachedPair) -> None:
        """Keep a pair under its key."""
        ...


class MemoryCache:
    """Keeps nothing beyond the list that `build_cache` returns, which is in memory anyway."""

    def get(self, key: str) -> CachedPair | None:
        """Never there."""
        return None

    def put(self, pair: CachedPair) -> None:
        """Nothing to do."""


class PairCache:
    """A folder with one safetensors file a pair. Several runs may share it.

    Attributes:
        folder: need not exist; it is made when the first pair is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> CachedPair | None:
        """The pair of that key on the CPU; None if it was never stored or its file is damaged.

        Raises:
            ScdpoError: the cache may not be read.
        """
        try:
            tensors, facts = read_tensors(self._file(key))
        except PermissionError as error:
            raise self._failed("read", error) from error
        except (OSError, ValueError):
            return None
        if not {"latents", "embeddings"} <= tensors.keys():
            return None
        found = CachedPair(tensors["latents"], tensors["embeddings"], tensors.get("pooled"), key)
        # Safetensors has no checksum: without ours a damaged disk would train on noise.
        return found if facts.get("checksum") == _checksum(found) else None

    def put(self, pair: CachedPair) -> None:
        """Store a pair under its key; afterwards its file is whole or unchanged.

        Raises:
            ScdpoError: the disk is full, or the folder cannot be written to.
        """
        named = {"latents": pair.latents, "embeddings": pair.embeddings, "pooled": pair.pooled}
        tensors = {name: tensor for name, tensor in named.items() if tensor is not None}
        try:
            write_tensors(self._file(pair.key), tensors, {"format": _FORMAT, "checksum": _checksum(pair)})
        except (OSError, SafetensorError) as error:
            raise self._failed("written to", error) from error

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _failed(self, verb: str, error: Exception) -> ScdpoError:
        # Safetensors gives the operating system's error as text only.
        if any(sign in str(error) for sign in _DISK_FULL):
            return ScdpoError(
                f"The disk is full: nothing more fits into the cache {self.folder}. "
                "Make room, or put the cache on another disk."
            )
        return ScdpoError(
            f"The cache {self.folder} cannot be {verb} ({error}). "
            "Give your user permission for this folder, or put the cache in another one."
        )


def build_cache(
    pairs: Sequence[LabelledPair],
    model: LoadedModel,
    size: tuple[int, int] | None,
    cache: Cache,
    progress: Callable[[int, int], None],
) -> list[CachedPair]:
    """Encode what the cache does not hold yet, and return all pairs in the order given, on the CPU.

    Args:
        pairs: labelled; pictures are encoded in their order, chosen first.
        model: encodes pictures and prompts.
        size: (width, height) in pixels of every picture, multiples of 8; None: the model's default size.
        cache: where tensors are kept.
        progress: is told how many of how many pairs are ready.

    Raises:
        ScdpoError: the size is impossible, a picture cannot be opened, the model gave values that are no
            numbers, or the cache cannot be written to.
    """
    size = model.default_size if size is None else size
    check_size(size)
    prompts: dict[str, tuple[Tensor, Tensor | None]] = {}
    ready: dict[str, CachedPair] = {}
    missing: dict[str, PreferencePair] = {}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        keys = list(pool.map(lambda each: pair_key(each.pair, model.family, model.encoder_id, size), pairs))
        for key, labelled in zip(keys, pairs, strict=True):
            found = None if key in missing or key in ready else cache.get(key)
            if found is not None:
                # One tensor for every pair of the same prompt, however many files hold it.
                text = prompts.setdefault(labelled.pair.prompt, (found.embeddings, found.pooled))
                ready[key] = CachedPair(found.latents, *text, key)
            elif key not in ready:
                missing[key] = labelled.pair
        progress(sum(key in ready for key in keys), len(keys))
        at_once = max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // (size[0] * size[1])) // 2)
        # Prompts of many pairs first: on a small GPU text encoders and VAE take turns.
        for window in _slices(list(missing.items()), _TURN):
            for group in _slices(window, _MOST_AT_ONCE):
                _encode_prompts([pair.prompt for _, pair in group], model, prompts)
                progress(sum(key in ready for key in keys), len(keys))
            for group in _slices(window, at_once):
                files = [file for _, pair in group for file in (pair.chosen, pair.rejected)]
                pixels = torch.stack(list(pool.map(lambda file: to_pixels(open_picture(file), size), files)))
                latents = _encode_pictures(pixels, files, model)
                for (key, pair), both in zip(group, latents.reshape(-1, 2, *latents.shape[1:]), strict=True):
                    ready[key] = CachedPair(both.clone(), *prompts[pair.prompt], key)
                    cache.put(ready[key])
                progress(sum(key in ready for key in keys), len(keys))
    return [ready[key] for key in keys]


@torch.no_grad()
def _encode_prompts(
    wanted: Iterable[str], model: LoadedModel, known: dict[str, tuple[Tensor, Tensor | None]]
) -> None:
    new = [prompt for prompt in dict.fromkeys(wanted) if prompt not in known]
    if not new:
        return
    encoded = model.encode_prompts(new)
    embeddings = encoded.embeddings.cpu()
    pooled = None if encoded.pooled is None else encoded.pooled.cpu()
    for index, prompt in enumerate(new):
        if not torch.isfinite(embeddings[index]).all():
            raise ScdpoError(
                f"The model's text encoder gave values that are no numbers for the prompt '{prompt}'. "
                "Its file may be damaged; try another copy, or the precision fp32."
            )
        known[prompt] = (embeddings[index].clone(), None if pooled is None else pooled[index].clone())


@torch.no_grad()
def _encode_pictures(pixels: Tensor, files: Sequence[Path], model: LoadedModel) -> Tensor:
    """[N, C, h, w] on the CPU of [N, 3, H, W] pixels on the CPU."""
    latents = model.encode_pictures(pixels.to(model.device)).cpu()
    for file, latent in zip(files, latents, strict=True):
        # The VAE of SDXL is known for this in half precision.
        if not torch.isfinite(latent).all():
            raise ScdpoError(
                f"The model's VAE gave values that are no numbers for {file}. "
                "Train with the precision bf16 or fp32, or with a VAE made for fp16."
            )
    return latents


def _slices(values: Sequence[Value], count: int) -> Iterator[Sequence[Value]]:
    for first in range(0, len(values), count):
        yield values[first : first + count]


def _hash(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        what = f"the picture cannot be read ({error.strerror}). Check that it is still there."
        raise PictureError(file, what) from error


def _checksum(pair: CachedPair) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (pair.latents, pair.embeddings, pair.pooled):
        if tensor is not None:
            raw = tensor.detach().cpu().contiguous()
            digest.update(f"{raw.dtype}{tuple(raw.shape)}".encode())
            # Bytes, since numpy knows no bfloat16.
            digest.update(raw.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
