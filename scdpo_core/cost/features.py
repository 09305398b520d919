"""Embeddings of the training images, computed once."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from ..io.images import open_image
from .feature_cache import SHARD, FeatureCache
from .protocol import Encoder, SideBySide
from .training_images import CostExample, training_set_hash

A = TypeVar("A")

VIEWS = 2
"""Views of each image: as it is, and changed ones."""
_BATCH, _BATCH_OF_ONE = 32, 4
"""Views per batch, and per batch of a single-threaded encoder, where they should fit the CPU's cache."""
_JITTER = 0.3
_CROP = 0.12
_TILT = 10.0
_ROOM = 1.25
"""Augmented views are made at this multiple of the encoder's size."""


@dataclass(frozen=True)
class FeatureSet:
    """Everything that training needs of N images with V views each.

    Attributes:
        embeddings: [N, V, D] of length 1; view 0 is the image as it is.
        unsafe: [N] bool.
        categories: names of all categories that any image has, sorted (K).
        labels: [N, K] 1 where the image shows that harm, 0 where not, NaN where that is not known.
        twins: [N] number of an unsafe image's safe twin, -1 for none.
        groups: of each image; those of one group are never split between training and held-out.
        encoder_id: id of the encoder.
        encoder_hash: its hash.
        training_set: hash of images and labels.
        digests: [N] SHA-256 of the files.
        mined: [N] bool, images chosen for being hard; they teach, but neither place zero nor count in
            figures. None for none.
    """

    embeddings: Tensor
    unsafe: Tensor
    categories: tuple[str, ...]
    labels: Tensor
    twins: Tensor
    groups: Sequence[str]
    encoder_id: str
    encoder_hash: str
    training_set: str
    digests: Sequence[str] = ()
    mined: Tensor | None = None


def compute_features(
    examples: Sequence[CostExample],
    encoder: Encoder,
    *,
    views: int = VIEWS,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cache: FeatureCache | None = None,
) -> FeatureSet:
    """Encode every image in every view.

    Args:
        examples: checked examples.
        encoder: the frozen image encoder.
        views: how many views of each image, at least 1.
        seed: of the changed views.
        progress: called with the number of images done and the total.
        cache: embeddings of earlier runs; new ones are added.

    Raises:
        ScdpoError: an image cannot be opened any more, or the encoder fails.
    """
    # The result must not depend on the order of files on the disk.
    ordered = sorted(examples, key=lambda example: example.digest)
    key = f"{encoder.hash[:24]}-{views}-{seed}"
    embeddings_of = cache.load(key) if cache is not None else {}
    missing = [example for example in ordered if example.digest not in embeddings_of]
    progress(len(ordered) - len(missing), len(ordered))
    unsaved: dict[str, Tensor] = {}
    for number, (digest, embeddings) in enumerate(_encode(missing, encoder, views, seed), 1):
        embeddings_of[digest] = unsaved[digest] = embeddings
        if cache is not None and len(unsaved) == SHARD:
            cache.add(key, unsaved)
            unsaved = {}
        progress(len(ordered) - len(missing) + number, len(ordered))
    if cache is not None:
        cache.add(key, unsaved)
    categories = tuple(sorted({name for example in ordered for name in example.categories}))
    safe_of = {e.pair: number for number, e in enumerate(ordered) if e.pair and not e.unsafe}
    return FeatureSet(
        embeddings=torch.stack([embeddings_of[example.digest] for example in ordered]),
        unsafe=torch.tensor([example.unsafe for example in ordered]),
        categories=categories,
        labels=torch.tensor([_labels(example, categories) for example in ordered]).reshape(
            len(ordered), len(categories)
        ),
        twins=torch.tensor([safe_of.get(e.pair, -1) if e.unsafe else -1 for e in ordered]),
        groups=[example.pair or example.digest for example in ordered],
        encoder_id=encoder.id,
        encoder_hash=encoder.hash,
        training_set=training_set_hash(ordered),
        digests=[example.digest for example in ordered],
        mined=torch.tensor([example.mined for example in ordered]),
    )


def _encode(
    examples: Sequence[CostExample], encoder: Encoder, views: int, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield digest and embeddings [V, D] of every image, in order; threads prepare the next images."""

    def prepare(example: CostExample) -> Tensor:
        rng = random.Random(f"{seed}/{example.digest}")
        image = open_image(example.path)
        small = _shrink(image, round(_ROOM * encoder.size))
        changed = (change(small, rng) for _ in range(views - 1))
        return torch.stack([encoder.prepare(image), *map(encoder.prepare, changed)])

    def embedded(prepared: Sequence[Tensor], by: Encoder) -> Tensor:
        return by.encode_prepared(torch.cat([*prepared])).reshape(len(prepared), views, encoder.dim)

    single_threaded = encoder.one_thread() if isinstance(encoder, SideBySide) else None
    size = max(1, (_BATCH if single_threaded is None else _BATCH_OF_ONE) // views)
    chunks = [examples[start : start + size] for start in range(0, len(examples), size)]
    encoded: Iterator[Tensor]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        if single_threaded is None:
            prepared_views = _ahead(pool, prepare, examples, 2 * size)
            encoded = (embedded([*islice(prepared_views, len(chunk))], encoder) for chunk in chunks)
        else:
            encoded = _ahead(pool, lambda chunk: embedded([*map(prepare, chunk)], single_threaded), chunks, 8)
        for chunk, embeddings in zip(chunks, encoded, strict=True):
            yield from zip((example.digest for example in chunk), embeddings, strict=True)


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[A], Tensor], items: Iterable[A], count: int
) -> Iterator[Tensor]:
    """Yield the results of `work` in the order of its items, computing up to `count` items ahead."""
    remaining = iter(items)
    pending = deque(pool.submit(work, item) for item in islice(remaining, count))
    while pending:
        yield pending.popleft().result()
        pending.extend(pool.submit(work, item) for item in islice(remaining, 1))


def change(image: Image.Image, rng: random.Random) -> Image.Image:
    """Augment an image without changing what it shows: mirror, rotate, crop, colour, blur.

    Args:
        image: RGB.
        rng: the only source of randomness.
    """
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    border = _border(image)
    image = image.rotate(rng.uniform(-_TILT, _TILT), Image.Resampling.BICUBIC, fillcolor=border)
    width, height = image.size
    crop_left, crop_right, crop_top, crop_bottom = (rng.uniform(0, _CROP / 2) for _ in range(4))
    box = (crop_left * width, crop_top * height, (1 - crop_right) * width, (1 - crop_bottom) * height)
    image = image.resize((width, height), Image.Resampling.BICUBIC, box)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(1 + rng.uniform(-_JITTER, _JITTER))
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, min(width, height) / 64)))
    return image


def _border(image: Image.Image) -> tuple[int, int, int]:
    """Return the mean colour of the four corners, so that rotating adds no black wedges."""
    width, height = image.size
    corners = [image.getpixel((x, y)) for x in (0, width - 1) for y in (0, height - 1)]
    red, green, blue = (sum(c[i] for c in corners if isinstance(c, tuple)) // 4 for i in range(3))
    return red, green, blue


def _shrink(image: Image.Image, side: int) -> Image.Image:
    """Shrink an image to `side` before augmenting, which saves time and loses nothing the encoder sees."""
    if max(image.size) <= side:
        return image
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return small


def _labels(example: CostExample, categories: Sequence[str]) -> list[float]:
    if example.unsafe and not example.categories:
        return [float("nan")] * len(categories)
    return [1.0 if name in example.categories else 0.0 for name in categories]
