"""Stable Diffusion XL and its fine-tunes, those of v with zero terminal SNR included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..family_info import FAMILY_INFO
from ..types import Conditioning
from .chunks import TextEncoder
from .component_layout import ComponentLayout, TextEncoderSpec
from .components import Encoders
from .diffusers_family import DiffusersFamily
from .unet import UNetModel, uncropped

LAYOUT = ComponentLayout(
    denoiser="unet",
    denoiser_class="UNet2DConditionModel",
    texts=(
        TextEncoderSpec(
            folder="text_encoder",
            tokenizer="tokenizer",
            model="CLIPTextModel",
            layout="transformers",
            prefix="conditioner.embedders.0.transformer.",
            stem="clip_l",
        ),
        TextEncoderSpec(
            folder="text_encoder_2",
            tokenizer="tokenizer_2",
            model="CLIPTextModelWithProjection",
            layout="open_clip",
            prefix="conditioner.embedders.1.model.",
            stem="clip_g",
        ),
    ),
    configs="sdxl",
)


class SDXLModel(UNetModel):
    """A loaded model; see `LoadedModel`.

    The words are the last states but one of both encoders side by side; the pooled state is the second's,
    of a prompt's first chunk.
    """

    family = "sdxl"
    # The second encoder's last layer still reaches the pooled state.
    unread_layers: ClassVar[Mapping[str, int]] = {"text_encoder": 1}

    def _encode(
        self, encoders: Encoders, prompts: list[str], chunks: int, known: Conditioning | None = None
    ) -> Conditioning:
        answers = [
            text.chunked(prompts, chunks, self._most_chunks, hidden=True)
            for text in encoders.texts
            if isinstance(text, TextEncoder)
        ]
        return Conditioning(torch.cat([answer.words for answer in answers], dim=-1), answers[-1].pooled)

    def _added(self, noisy: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        sizes, pooled = conditioning.sizes, conditioning.pooled
        if pooled is None:
            raise ValueError("Stable Diffusion XL needs the pooled state of its second text encoder.")
        if sizes is None:
            height, width = (cells * self.vae_scale for cells in noisy.shape[2:])
            sizes = uncropped(height, width, noisy.device).expand(len(noisy), -1)
        # Not in 16 bits, which know no odd numbers as large as an image.
        return {"text_embeds": pooled.to(self.dtype), "time_ids": sizes.float()}


class SDXL(DiffusersFamily):
    """The family of a large UNet2DConditionModel, CLIP-L and OpenCLIP-bigG, and a VAE of four channels."""

    def __init__(self) -> None:
        super().__init__(FAMILY_INFO[SDXLModel.family], LAYOUT, SDXLModel)
