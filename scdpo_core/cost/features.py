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
from .encoders import Encoder
from .feature_cache import SHARD, FeatureCache
from .protocol import SideBySide
from .training_images import CostExample, training_set_hash

A = TypeVar("A")

VIEWS = 2
"""Views of each image: as it is, and changed ones."""
_BATCH, _BATCH_OF_ONE = 32, 4
"""Views that an encoder looks at together, and those for one processor, whose cache they should fit."""
_JITTER = 0.3
_CROP = 0.12
_TILT = 10.0
_ROOM = 1.25
"""Changed views are made of images this much larger than the encoder looks at."""


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
        progress: is told how many of how many images are done.
        cache: embeddings of earlier runs; new ones are added.

    Raises:
        ScdpoError: an image cannot be opened any more, or the encoder fails.
    """
    # The order of files on a disk must not decide what is learned.
    ordered = sorted(examples, key=lambda example: example.digest)
    key = f"{encoder.hash[:24]}-{views}-{seed}"
    known = cache.load(key) if cache is not None else {}
    missing = [example for example in ordered if example.digest not in known]
    progress(len(ordered) - len(missing), len(ordered))
    fresh: dict[str, Tensor] = {}
    for number, (digest, embeddings) in enumerate(_encode(missing, encoder, views, seed), 1):
        known[digest] = fresh[digest] = embeddings
        if cache is not None and len(fresh) == SHARD:
            cache.add(key, fresh)
            fresh = {}
        progress(len(ordered) - len(missing) + number, len(ordered))
    if cache is not None:
        cache.add(key, fresh)
    categories = tuple(sorted({name for example in ordered for name in example.categories}))
    safe_of = {e.pair: number for number, e in enumerate(ordered) if e.pair and not e.unsafe}
    return FeatureSet(
        embeddings=torch.stack([known[example.digest] for example in ordered]),
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
    """Digest and embeddings [V, D] of every image, in order; the next ones are drawn beside the encoder."""

    def prepare(example: CostExample) -> Tensor:
        rng = random.Random(f"{seed}/{example.digest}")
        image = open_image(example.path)
        small = _shrink(image, round(_ROOM * encoder.size))
        changed = (change(small, rng) for _ in range(views - 1))
        return torch.stack([encoder.prepare(image), *map(encoder.prepare, changed)])

    def embedded(prepared: Sequence[Tensor], by: Encoder) -> Tensor:
        return by.encode_prepared(torch.cat([*prepared])).reshape(len(prepared), views, encoder.dim)

    alone = encoder.one_thread() if isinstance(encoder, SideBySide) else None
    size = max(1, (_BATCH if alone is None else _BATCH_OF_ONE) // views)
    parts = [examples[start : start + size] for start in range(0, len(examples), size)]
    encoded: Iterator[Tensor]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        if alone is None:
            drawn = _ahead(pool, prepare, examples, 2 * size)
            encoded = (embedded([*islice(drawn, len(part))], encoder) for part in parts)
        else:
            encoded = _ahead(pool, lambda part: embedded([*map(prepare, part)], alone), parts, 8)
        for part, embeddings in zip(parts, encoded, strict=True):
            yield from zip((example.digest for example in part), embeddings, strict=True)


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[A], Tensor], items: Iterable[A], count: int
) -> Iterator[Tensor]:
    """The results of some work in the order of its items, done in a pool for so many items ahead."""
    rest = iter(items)
    waiting = deque(pool.submit(work, item) for item in islice(rest, count))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in islice(rest, 1))


def change(image: Image.Image, rng: random.Random) -> Image.Image:
    """A view of an image that shows the same thing: mirrored, tilted, cropped, other colours, blurred.

    Args:
        image: RGB.
        rng: the only source of randomness.
    """
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    border = _border(image)
    image = image.rotate(rng.uniform(-_TILT, _TILT), Image.Resampling.BICUBIC, fillcolor=border)
    width, height = image.size
    left, right, top, bottom = (rng.uniform(0, _CROP / 2) for _ in range(4))
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    image = image.resize((width, height), Image.Resampling.BICUBIC, box)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(1 + rng.uniform(-_JITTER, _JITTER))
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, min(width, height) / 64)))
    return image


def _border(image: Image.Image) -> tuple[int, int, int]:
    """The mean colour of the four corners, so that tilting adds no black wedges."""
    width, height = image.size
    corners = [image.getpixel((x, y)) for x in (0, width - 1) for y in (0, height - 1)]
    red, green, blue = (sum(c[i] for c in corners if isinstance(c, tuple)) // 4 for i in range(3))
    return red, green, blue


def _shrink(image: Image.Image, side: int) -> Image.Image:
    """Changing large images costs time and gains nothing that the encoder would see."""
    if max(image.size) <= side:
        return image
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return small


def _labels(example: CostExample, categories: Sequence[str]) -> list[float]:
    if example.unsafe and not example.categories:
        return [float("nan")] * len(categories)
    return [1.0 if name in example.categories else 0.0 for name in categories]
