"""FLUX.1: dev with its guidance embedding, schnell without."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..family_info import FAMILY_INFO
from ..io.safetensors_header import Shapes, block_count
from ..types import Conditioning
from .chunks import TextEncoder
from .component_layout import ComponentLayout, TextEncoderSpec
from .components import Encoders, Reader
from .diffusers_family import DiffusersFamily
from .flow import FlowModel
from .sampling import Denoiser

_T5_TOKENS = 512
_HEAD = 128
_SQUARE = 2


def adapt(shapes: Shapes) -> dict[str, Any]:
    """The transformer's configuration, read off a file's shapes: dev, schnell and cut-down ones."""
    return {
        "num_layers": block_count(shapes, "double_blocks."),
        "num_single_layers": block_count(shapes, "single_blocks."),
        "num_attention_heads": shapes["img_in.weight"][0] // _HEAD,
        "guidance_embeds": any(name.startswith("guidance_in.") for name in shapes),
    }


LAYOUT = ComponentLayout(
    denoiser="transformer",
    denoiser_class="FluxTransformer2DModel",
    texts=(
        TextEncoderSpec(
            folder="text_encoder",
            tokenizer="tokenizer",
            model="CLIPTextModel",
            layout="transformers",
            prefix="text_encoders.clip_l.transformer.",
            stem="clip_l",
        ),
        TextEncoderSpec(
            folder="text_encoder_2",
            tokenizer="tokenizer_2",
            model="T5EncoderModel",
            layout="transformers",
            prefix="text_encoders.t5xxl.transformer.",
            stem="t5xxl",
            own_tokenizer=False,
        ),
    ),
    configs="flux",
    bare_denoiser=True,
    adapt=adapt,
)


class FluxModel(FlowModel):
    """A loaded model; see `LoadedModel`. The words are T5's states, the pooled state is CLIP's.

    CLIP's pooled state is that of the prompt's first chunk, as in hosts.
    """

    family = "flux"
    reads_chunks = False

    def _scheduler(self, reader: Reader) -> dict[str, Any]:
        settings = super()._scheduler(reader)
        if reader.header is not None and not any("guidance_in." in name for name in reader.header.shapes):
            # Schnell takes its few steps at even distances, however large the image is.
            settings |= {"use_dynamic_shifting": False, "shift": 1.0}
        return settings

    def _text_tokens(self, index: int) -> int:
        return (self._options.t5_tokens or _T5_TOKENS) if index == 1 else 0

    def _encode(
        self, encoders: Encoders, prompts: list[str], chunks: int, known: Conditioning | None = None
    ) -> Conditioning:
        clip, t5 = encoders.texts
        assert isinstance(clip, TextEncoder)  # the family needs both, and the checks looked for them
        pooled = clip.chunked(prompts, 1, 1).pooled
        if known is not None:
            return Conditioning(known.embeddings, pooled)
        assert t5 is not None
        return Conditioning(t5.states(prompts).words, pooled)

    def _guided(self, prompts: list[str], guidance: float) -> Denoiser:
        """Distilled models answer as if they were guided, in one pass; they are only told how strongly."""
        words = self.encode_prompts(prompts)
        told = torch.full((len(prompts),), guidance, device=self.device)
        words = dataclasses.replace(words, guidance=told)
        return lambda latents, timesteps: self._predict(latents, timesteps, words)

    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if conditioning.pooled is None:
            raise ValueError("FLUX.1 needs the pooled state of its CLIP.")
        words = conditioning.embeddings.to(self.dtype)
        guidance = conditioning.guidance
        if not self.denoiser.config.guidance_embeds:  # type: ignore[union-attr]
            guidance = None
        elif guidance is None:
            guidance = torch.full((len(noisy),), self._options.guidance, device=noisy.device)
        answer: Tensor = self.denoiser(
            hidden_states=pack(noisy).to(self.dtype),
            timestep=timesteps / self.timesteps.count,
            guidance=guidance,
            pooled_projections=conditioning.pooled.to(self.dtype),
            encoder_hidden_states=words,
            txt_ids=words.new_zeros(words.shape[1], 3),
            img_ids=position_ids(noisy),
        ).sample
        return unpack(answer.float(), noisy.shape[2], noisy.shape[3])


def pack(latents: Tensor) -> Tensor:
    """[N, C, h, w] latents as [N, h/2 * w/2, 4 C] squares of 2x2 cells, row by row."""
    count, channels, height, width = latents.shape
    squares = latents.view(count, channels, height // _SQUARE, _SQUARE, width // _SQUARE, _SQUARE)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(squares: Tensor, height: int, width: int) -> Tensor:
    """What `pack` did, undone: [N, C, height, width]."""
    cut: Tensor = squares.unflatten(1, (height // _SQUARE, width // _SQUARE)).unflatten(
        3, (-1, _SQUARE, _SQUARE)
    )
    return cut.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def position_ids(latents: Tensor) -> Tensor:
    """[h/2 * w/2, 3] row and column of every square, after a zero; in float32."""
    rows, columns = (torch.arange(side // _SQUARE, device=latents.device) for side in latents.shape[2:])
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], dim=1).float()


class Flux(DiffusersFamily):
    """The family of FluxTransformer2DModel, CLIP-L and T5, and a VAE of 16 channels."""

    def __init__(self) -> None:
        super().__init__(FAMILY_INFO[FluxModel.family], LAYOUT, FluxModel)
