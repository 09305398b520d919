"""Frozen image encoders: images in, one L2-normalised vector each out.

Only calling an encoder imports `transformers`, so that a host can import this module without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..micro.model import IMAGE_ENCODER
from .clip_encoders import (
    EncoderError,
    Preprocessing,
    eager,
    load_tower,
    readable_name,
    require_tower,
    weights_hash,
)
from .open_nsfw import OpenNsfwEncoder
from .protocol import Encoder, encode_in_batches

_BATCH = 32


class TowerEncoder:
    """A frozen image tower from a local folder in the Hugging Face layout.

    A CLIP one with its projection, which `CLIPVisionModelWithProjection` or `CLIPModel` saved (CLIP
    ViT-L/14, say), a SigLIP, DINO, BEiT, Swin, ConvNeXt or plain ViT one, a `ResNetModel`, or a
    `ResNetForImageClassification` of many tags an image, as the embedded one is, whose tags are the
    embedding. Size, mean and standard deviation come from `config.json` and `preprocessor_config.json`;
    CLIP's own mean and deviation are taken where there are none.

    Args:
        folder: the folder with `config.json` and safetensors weights.
        device: where to run.
        name: the id; by default the folder's name.

    Raises:
        EncoderError: the folder is missing, damaged or of another model type; says which and what to do.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu", name: str | None = None) -> None:
        """Load the tower and hash it."""
        self.id = name or readable_name(folder)
        self._device = torch.device(device)
        self._tower, self._read = load_tower(folder)
        self._tower.to(self._device)
        preprocessing = Preprocessing.read(folder)
        self._mean, self._std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.size = int(getattr(self._tower.config, "image_size", preprocessing.size))
        self.dim = self.embed(torch.zeros(1, 3, self.size, self.size)).shape[1]
        self.hash = weights_hash(self._tower, (self.size, preprocessing.mean, preprocessing.std))

    def prepare(self, image: Image.Image) -> Tensor:
        """Prepare an image for the tower: float32 [3, size, size].

        Images are resized to a square. CLIP's own preprocessing crops the middle instead, and harm
        at the edge of a wide image would cost nothing.
        """
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        if rgb.size != (self.size, self.size):
            rgb = rgb.resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(rgb, np.float32)).div_(255.0)
        return ((pixels - self._mean) / self._std).permute(2, 0, 1)

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed [N, 3, size, size] from any device: [N, D] of length 1, with gradient if `pixels` has one."""
        return F.normalize(self._read(self._tower, pixels.to(self._device)).float(), dim=-1)

    @property
    def grid(self) -> int:
        """Patches along a side of the image, for a vision transformer; 0 for other towers."""
        config: Any = self._tower.config
        heads = getattr(config, "num_attention_heads", None)
        return self.size // int(config.patch_size) if isinstance(heads, int) else 0

    def attend(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Embed as `embed` does, and return attentions and tokens too; for vision transformers.

        Returns:
            The embeddings [N, D], each layer's attention [N, heads, T, T], the last tokens [N, T, width].

        Raises:
            EncoderError: this version of transformers returns no attention.
        """
        with eager(self._tower):
            output = self._tower(pixel_values=pixels.to(self._device), output_attentions=True)
        if not output.attentions or any(attention is None for attention in output.attentions):
            raise EncoderError(
                "This version of transformers returns no attention. Use gradients or occlusion."
            )
        projected: Tensor | None = getattr(output, "image_embeds", None)
        embedding = F.normalize((output.pooler_output if projected is None else projected).float(), dim=-1)
        return embedding, tuple(output.attentions), output.last_hidden_state

    @torch.no_grad()
    def encode_prepared(self, pixels: Tensor) -> Tensor:
        """Embed N prepared images [N, 3, size, size]: float32 [N, D] on the CPU, rows of length 1.

        Raises:
            EncoderError: an embedding is not finite.
        """
        embeddings = self.embed(pixels).cpu()
        if not bool(torch.isfinite(embeddings).all()):
            raise EncoderError(f"The image encoder '{self.id}' produced NaN or infinite values.")
        return embeddings

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed N images of any size: float32 [N, D] on the CPU, rows of length 1.

        Raises:
            EncoderError: an embedding is not finite.
        """
        return encode_in_batches(self, images, _BATCH)


def _micro(device: str | torch.device) -> Encoder:
    return TowerEncoder(IMAGE_ENCODER, device, "micro")


def _embedded(device: str | torch.device) -> Encoder:
    return OpenNsfwEncoder(str(device))


ENCODERS: dict[str, Callable[[str | torch.device], Encoder]] = {"micro": _micro, "embedded": _embedded}
"""Named encoders and the function that loads each onto a device; others are folders or hub names."""


DEFAULT_ENCODER = "embedded"
"""Encoder used by default: most images are photographs, or drawn like them."""

_LARGER = "a folder with a larger model, such as CLIP ViT-L/14 (--encoder FOLDER)"
_ADVICE = {
    "micro": f"'micro' knows the embedded world's drawings. For photographs, use 'embedded' or {_LARGER}.",
    "embedded": f"'embedded' knows photographs. For drawings, or finer categories of harm, use {_LARGER}.",
}


def encoder_advice(name: str) -> str:
    """Recommend another encoder for data that this one hardly separates."""
    return (
        f"The image encoder {_ADVICE.get(name, f'was {name!r}; another one may separate better: {_LARGER}.')}"
    )


def load_encoder(spec: str | Path, device: str | torch.device = "cpu") -> Encoder:
    """Load the encoder that `spec` names: one of `ENCODERS`, a folder, or 'owner/name' in the hub's cache.

    Nothing is downloaded.

    Raises:
        EncoderError: as `TowerEncoder`.
        ScorerError: the embedded scorer's package is missing.
    """
    if str(spec) in ENCODERS:
        return ENCODERS[str(spec)](device)
    return TowerEncoder(require_tower(spec), device)
