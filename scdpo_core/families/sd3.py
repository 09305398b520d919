"""Stable Diffusion 3 and 3.5, medium and large."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..family_info import FAMILY_INFO
from ..io.safetensors_header import Shapes, block_count, numbers
from ..types import Conditioning, ScdpoError
from .chunks import TextEncoder
from .component_layout import ComponentLayout, TextEncoderSpec
from .components import Encoders
from .diffusers_family import DiffusersFamily
from .flow import FlowModel

_T5_TOKENS = 256
_HEAD = 64


def adapt(shapes: Shapes) -> dict[str, Any]:
    """The transformer's configuration, read off a file's shapes: one function for 3 and both 3.5."""
    width = shapes["x_embedder.proj.weight"][0]
    return {
        "num_layers": block_count(shapes, "joint_blocks."),
        "num_attention_heads": width // _HEAD,
        "attention_head_dim": _HEAD,
        "in_channels": shapes["x_embedder.proj.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": tuple(
            sorted(numbers((n for n in shapes if ".attn2." in n), "joint_blocks."))
        ),
        "qk_norm": "rms_norm" if any(".ln_q." in name for name in shapes) else None,
    }


def _clip(number: str, stem: str) -> TextEncoderSpec:
    return TextEncoderSpec(
        folder=f"text_encoder{number}",
        tokenizer=f"tokenizer{number}",
        model="CLIPTextModelWithProjection",
        layout="transformers",
        prefix=f"text_encoders.{stem}.transformer.",
        stem=stem,
    )


LAYOUT = ComponentLayout(
    denoiser="transformer",
    denoiser_class="SD3Transformer2DModel",
    texts=(
        _clip("", "clip_l"),
        _clip("_2", "clip_g"),
        TextEncoderSpec(
            folder="text_encoder_3",
            tokenizer="tokenizer_3",
            model="T5EncoderModel",
            layout="transformers",
            prefix="text_encoders.t5xxl.transformer.",
            stem="t5xxl",
            needed=False,
            own_tokenizer=False,
        ),
    ),
    configs="sd3",
    bare_denoiser=True,
    adapt=adapt,
)


class SD3Model(FlowModel):
    """A loaded model; see `LoadedModel`.

    The words are the last states but one of both CLIPs side by side, zeros beside them up to T5's width, and
    T5's states after them; without T5 those are zeros, as the model has seen in training.
    """

    family = "sd3"
    even_times = False
    # Words and image attend to each other together, so that what comes twice counts twice.
    repeats_chunks = False

    def _text_tokens(self, index: int) -> int:
        return self._t5_tokens if index == 2 else 0

    @property
    def _t5_tokens(self) -> int:
        return self._options.t5_tokens or _T5_TOKENS

    def _own_size(self) -> tuple[int, int]:
        side = int(self.denoiser.config.sample_size) * self.vae_scale  # type: ignore[union-attr,arg-type]
        return side, side

    def _cells(self) -> int:
        return int(self.denoiser.config.patch_size)  # type: ignore[union-attr,arg-type]

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """See `LoadedModel.latent_shape`."""
        shape = super().latent_shape(size)
        most = int(self.denoiser.config.pos_embed_max_size) * self._cells()  # type: ignore[union-attr,arg-type]
        if max(shape[1:]) > most:
            raise ScdpoError(f"This model knows no images beyond {most * self.vae_scale} pixels a side.")
        return shape

    def _encode(
        self, encoders: Encoders, prompts: list[str], chunks: int, known: Conditioning | None = None
    ) -> Conditioning:
        *clips, t5 = encoders.texts
        answers = [
            clip.chunked(prompts, chunks, self._most_chunks, hidden=True, repeat=self.repeats_chunks)
            for clip in clips
            if isinstance(clip, TextEncoder)
        ]
        words = torch.cat([answer.words for answer in answers], dim=-1)
        width = int(self.denoiser.config.joint_attention_dim)  # type: ignore[union-attr,arg-type]
        if known is not None:
            more = known.embeddings[:, words.shape[1] :]
        elif t5 is None:
            more = words.new_zeros(len(prompts), self._t5_tokens, width)
        else:
            more = t5.states(prompts).words.float()
        words = pad(words, (0, width - words.shape[-1]))
        pooled = [answer.pooled for answer in answers if answer.pooled is not None]
        return Conditioning(torch.cat([words, more], dim=1), torch.cat(pooled, dim=-1))

    def _split(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        clip = len(embeddings) - self._t5_tokens
        return embeddings[:clip], embeddings[clip:]

    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if conditioning.pooled is None:
            raise ValueError("Stable Diffusion 3 needs the pooled states of its CLIPs.")
        answer: Tensor = self.denoiser(
            hidden_states=noisy.to(self.dtype),
            timestep=timesteps,
            encoder_hidden_states=conditioning.embeddings.to(self.dtype),
            pooled_projections=conditioning.pooled.to(self.dtype),
        ).sample
        return answer.float()


class SD3(DiffusersFamily):
    """The family of SD3Transformer2DModel, CLIP-L, OpenCLIP-bigG and T5, and a VAE of 16 channels."""

    def __init__(self) -> None:
        super().__init__(FAMILY_INFO[SD3Model.family], LAYOUT, SD3Model)
