"""Latents and text embeddings of the pairs, computed once and kept under a hash of what they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..io.files import read_tensors, sha256_of, write_json, write_tensors
from ..io.images import ImageError, check_size, read_image, to_pixels
from ..types import CachedPair, EncodedPrompt, LabelledPair, PreferencePair, ScdpoError

if TYPE_CHECKING:
    from ..families.base import LoadedModel

Value = TypeVar("Value")
Texts = dict[str, EncodedPrompt]
"""What is encoded already, by prompt."""

# Part of every key: raise it when images are prepared differently or the files look different.
_FORMAT = "scdpo-pair-1"
# Pixels encoded at once; 4 megapixels keep the VAE of SDXL well below 16 GB.
_PIXELS_AT_ONCE = 4 * 1024 * 1024
_MOST_AT_ONCE = 64
# Pairs whose prompts are encoded before the first of their images.
_TURN = 256
# As Linux and macOS, older safetensors, Windows and quotas put it.
_DISK_FULL = ("No space left", "StorageFull", "os error 112", "WinError 112", "uota exceeded")


def pair_key(
    pair: PreferencePair,
    family: str,
    encoder_id: str,
    size: tuple[int, int],
    chunks: int = 1,
    mirrored: bool = False,
) -> str:
    """Name of a pair in the cache: 40 hexadecimal digits that change whenever its tensors would.

    Args:
        pair: its files are hashed by content; neither their names nor the pair's id matter, their order does.
        family: of the model, a name in `families.FAMILIES`.
        encoder_id: of the model.
        size: (width, height) in pixels that the images are brought to.
        chunks: that are read of the prompt, see `LoadedModel.prompt_chunks`.
        mirrored: whether its images are mirrored, left to right.

    Raises:
        ScdpoError: an image cannot be read.
    """
    digest = hashlib.sha256()
    images = (_hash(pair.chosen), _hash(pair.rejected))
    # Short prompts and images as they are keep the key that they had before there was anything else.
    more = [f"{chunks} chunks"] if chunks > 1 else []
    more += ["mirrored"] if mirrored else []
    for part in (_FORMAT, *images, family, encoder_id, f"{size[0]}x{size[1]}", pair.prompt, *more):
        raw = part.encode("utf-8")
        # The length in front keeps "ab" + "c" apart from "a" + "bc".
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:40]


class Cache(Protocol):
    """Where encoded pairs are kept."""

    def get(self, key: str) -> CachedPair | None:
        """Return the pair of that key on the CPU; None if it is not kept."""
        ...

    def put(self, pair: CachedPair) -> None:
        """Keep a pair under its key."""
        ...

    def plan(self, keys: Sequence[str], missing: Sequence[str]) -> list[str]:
        """Return what was missing when these pairs were first asked for and not finished; else `missing`."""
        ...

    def finished(self, keys: Sequence[str]) -> None:
        """Note that all of these pairs are cached."""
        ...


class MemoryCache:
    """Keeps nothing beyond the list that `build_cache` returns, which is in memory anyway."""

    def get(self, key: str) -> CachedPair | None:
        """Never there."""
        return None

    def put(self, pair: CachedPair) -> None:
        """Do nothing: pairs stay in memory."""

    def plan(self, keys: Sequence[str], missing: Sequence[str]) -> list[str]:
        """Keep nothing: this cache lives in memory."""
        return list(missing)

    def finished(self, keys: Sequence[str]) -> None:
        """Do nothing."""


class PairCache:
    """A folder with one safetensors file a pair. Several runs may share it.

    Attributes:
        folder: need not exist; it is made when the first pair is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> CachedPair | None:
        """Return the pair of that key on the CPU; None if it was never stored or its file is damaged.

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
        prompt = EncodedPrompt(tensors["embeddings"], tensors.get("pooled"), tensors.get("attention_mask"))
        pair = CachedPair.of(tensors["latents"], prompt, key)
        # Safetensors has no checksum: without ours a damaged disk would train on noise.
        return pair if facts.get("checksum") == _checksum(pair) else None

    def put(self, pair: CachedPair) -> None:
        """Store a pair under its key; afterwards its file is whole or unchanged.

        Raises:
            ScdpoError: the disk is full, or the folder cannot be written to.
        """
        try:
            write_tensors(
                self._file(pair.key), pair.tensors, {"format": _FORMAT, "checksum": _checksum(pair)}
            )
        except (OSError, SafetensorError) as error:
            raise self._failed("written to", error) from error

    def plan(self, keys: Sequence[str], missing: Sequence[str]) -> list[str]:
        """Return what was missing when these pairs were first requested, if unfinished; else `missing`.

        Raises:
            ScdpoError: the folder cannot be written to.
        """
        path = self._plan(keys)
        try:
            noted = json.loads(path.read_text("utf-8"))
            if isinstance(noted, list) and all(isinstance(key, str) for key in noted):
                ours = set(keys)
                first = dict.fromkeys(key for key in noted if key in ours)
                return list(first | dict.fromkeys(missing))
        except (OSError, ValueError, RecursionError):
            pass
        try:
            write_json(path, list(missing))
        except OSError as error:
            raise self._failed("written to", error) from error
        return list(missing)

    def finished(self, keys: Sequence[str]) -> None:
        """Note that all of these pairs are cached, and forget the plan."""
        with suppress(OSError):
            self._plan(keys).unlink(missing_ok=True)

    def _plan(self, keys: Sequence[str]) -> Path:
        digest = hashlib.sha256("\n".join(keys).encode("ascii")).hexdigest()[:16]
        return self.folder / f"unfinished-{digest}.json"

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
    mirrored: bool = False,
    texts: Texts | None = None,
) -> list[CachedPair]:
    """Encode what the cache does not hold yet, and return all pairs in the order given, on the CPU.

    The last digits of what a network computes depend on what it computes beside it. So pairs and prompts are
    encoded in the same company whether or not an earlier process was killed in between: the cache remembers
    what was missing at first, and a group of which anything is still missing is encoded as a whole.

    Args:
        pairs: labelled; images are encoded in their order, chosen first.
        model: encodes images and prompts.
        size: (width, height) in pixels of every image, multiples of 8; None: the model's default size.
        cache: where tensors are kept.
        progress: called with the number of pairs ready and the total.
        mirrored: whether to encode the images mirrored, left to right; a VAE's latents of those are not
            the mirrored latents.
        texts: of prompts that need no encoding any more.

    Raises:
        ScdpoError: the size is impossible, an image cannot be opened, the model gave values that are no
            numbers, or the cache cannot be written to.
    """
    size = model.default_size if size is None else size
    check_size(size)
    chunks = {
        prompt: model.prompt_chunks(prompt) for prompt in dict.fromkeys(each.pair.prompt for each in pairs)
    }
    prompts: Texts = dict(texts or {})
    ready: dict[str, CachedPair] = {}
    missing: dict[str, PreferencePair] = {}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        identity = (model.family, model.encoder_id, size)
        keys = list(
            pool.map(lambda p: pair_key(p, *identity, chunks[p.prompt], mirrored), [p.pair for p in pairs])
        )
        for key, labelled in zip(keys, pairs, strict=True):
            cached = None if key in missing or key in ready else cache.get(key)
            if cached is not None:
                # One tensor for every pair of the same prompt, however many files hold it.
                prompt = prompts.setdefault(labelled.pair.prompt, cached.prompt)
                ready[key] = CachedPair.of(cached.latents, prompt, key)
            elif key not in ready:
                missing[key] = labelled.pair
        progress(sum(key in ready for key in keys), len(keys))
        if not missing:
            cache.finished(keys)
            return [ready[key] for key in keys]
        by_key = {key: each.pair for key, each in zip(keys, pairs, strict=True)}
        planned = [(key, by_key[key]) for key in cache.plan(keys, list(missing))]
        # Prompts that needed no encoding at first: those of pairs that were there already.
        encoded = {pair.prompt for key, pair in by_key.items() if key not in dict(planned)} | set(texts or {})
        at_once = max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // (size[0] * size[1])) // 2)
        # Prompts of many pairs first: on a small GPU text encoders and VAE take turns.
        for window in _slices(planned, _TURN):
            for group in _slices(window, _MOST_AT_ONCE):
                new = [
                    text for text in dict.fromkeys(pair.prompt for _, pair in group) if text not in encoded
                ]
                encoded.update(new)
                _encode_prompts(new, model, chunks, prompts)
                progress(sum(key in ready for key in keys), len(keys))
            for group in _slices(window, at_once):
                if all(key in ready for key, _ in group):
                    continue
                files = [file for _, pair in group for file in (pair.chosen, pair.rejected)]
                read = partial(read_image, use=partial(to_pixels, size=size))
                pixels = torch.stack(list(pool.map(read, files)))
                pixels = pixels.flip(-1) if mirrored else pixels
                latents = _encode_images(pixels, files, model)
                for (key, pair), both in zip(group, latents.reshape(-1, 2, *latents.shape[1:]), strict=True):
                    if key in ready:
                        continue
                    ready[key] = CachedPair.of(both.clone(), prompts[pair.prompt], key)
                    cache.put(ready[key])
                progress(sum(key in ready for key in keys), len(keys))
    cache.finished(keys)
    return [ready[key] for key in keys]


@torch.no_grad()
def _encode_prompts(
    prompts: Iterable[str], model: LoadedModel, chunks: Mapping[str, int], encoded: Texts
) -> None:
    # Each at its own length, so that a long prompt changes nothing about the others.
    alike: dict[int, list[str]] = {}
    for prompt in prompts:
        alike.setdefault(chunks[prompt], []).append(prompt)
    for _, new in sorted(alike.items()):
        _encode_alike(new, model, encoded)


def _encode_alike(new: list[str], model: LoadedModel, texts: Texts) -> None:
    """Encode prompts as one batch unless all are encoded, because each depends on its batch."""
    if all(prompt in texts for prompt in new):
        return
    encoded = model.encode_prompts(new).map(lambda part: part.cpu())
    for index, prompt in enumerate(new):
        alone = encoded.prompt(index).trimmed()
        if not torch.isfinite(alone.embeddings).all():
            raise ScdpoError(
                f"The model's text encoder produced NaN for the prompt '{prompt}'. "
                "Its file may be damaged; try another copy, or the precision fp32."
            )
        pooled = None if alone.pooled is None else alone.pooled.clone()
        texts.setdefault(prompt, EncodedPrompt(alone.embeddings.clone(), pooled, alone.attention_mask))


@torch.no_grad()
def _encode_images(pixels: Tensor, files: Sequence[Path], model: LoadedModel) -> Tensor:
    """Return [N, C, h, w] on the CPU of [N, 3, H, W] pixels on the CPU."""
    latents = model.encode_images(pixels.to(model.device)).cpu()
    for file, latent in zip(files, latents, strict=True):
        # The VAE of SDXL is known for this in half precision.
        if not torch.isfinite(latent).all():
            raise ScdpoError(
                f"The model's VAE produced NaN for {file}. "
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
        what = f"the image cannot be read ({error.strerror}). Check that it is still there."
        raise ImageError(file, what) from error


def _checksum(pair: CachedPair) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in pair.tensors.values():
        raw = tensor.detach().cpu().contiguous()
        digest.update(f"{raw.dtype}{tuple(raw.shape)}".encode())
        # Bytes, since numpy knows no bfloat16.
        digest.update(raw.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
