"""MobileNetV2Mid of nsfwjs: drawing, hentai, neutral, porn or sexy; it knows drawings as well as photographs.

`tools/convert_nsfwjs.py` made the file beside this module from the npm package; the network was trained by
GantMan/nsfw_model. The image is squashed to 224 x 224 without a crop, bilinear, as in training.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .downscale import shrink
from .onnx_session import open_session, read_pinned

VERSION = "4.4.0"
"""Of the npm package."""
SHA256 = "9da783d593028c84876a351ad481829331006def01867d1a74541a19235afef8"
WEIGHTS = Path(__file__).with_name("weights") / "nsfwjs-mid.onnx"
CLASSES = ("drawing", "hentai", "neutral", "porn", "sexy")
"""Of the logits, in order."""
INPUT = 224
FEATURES = 1792

Square = NDArray[np.uint8]


def prepare(image: Image.Image, bands: int = 1) -> Square:
    """Prepare an image for the network: uint8 [224, 224, 3], RGB.

    Args:
        image: of any size and mode.
        bands: as `downscale.shrink`.
    """
    return np.asarray(shrink(image, INPUT, bands))


class Network:
    """The network with its 1792 features; safe to use from several threads.

    Args:
        device: as `onnx_session.open_session`.
        threads: as `onnx_session.open_session`.

    Raises:
        ScorerError: onnxruntime is missing, or the file is damaged.
    """

    def __init__(self, device: str = "cpu", threads: int = 0) -> None:
        """Check the weights and load them."""
        model = read_pinned(
            WEIGHTS, SHA256, f"nsfwjs {VERSION}", "Get the file again from where this program came from."
        )
        self._session = open_session(
            model, device, threads, "Install it with 'pip install onnxruntime', or with the extra 'score'."
        )

    def __call__(self, images: Square) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits [N, 5] of `CLASSES` and features [N, 1792] of prepared [N, 224, 224, 3] images."""
        logits, features = self._session.run(["logits", "features"], {"image": images})
        return logits, features


@lru_cache(maxsize=2)
def network(device: str = "cpu", threads: int = 0) -> Network:
    """Load the network, once for the whole program.

    Raises:
        ScorerError: as `Network`.
    """
    return Network(device, threads)


def log_chances(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Compute log probabilities [N, 5] of `CLASSES` in double precision, exact near 0 and 1."""
    exact = logits.astype(np.float64)
    return exact - np.logaddexp.reduce(exact, axis=1, keepdims=True)
