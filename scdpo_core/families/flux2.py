"""FLUX.2 klein, 4B and 9B: hidden states of Qwen3, packed latents, modulations that all blocks share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..family_info import FAMILY_INFO
from ..io.safetensors_header import Shapes, block_count
from ..types import Conditioning, ScdpoError
from .component_layout import ChatPrompt, ComponentLayout, TextEncoderSpec
from .components import Encoders
from .diffusers_family import DiffusersFamily
from .flow import FlowModel

_HEAD = 128
# Layers whose states stand side by side, counted from the embeddings; diffusers and ComfyUI take the same.
_LAYERS = (9, 18, 27)


def adapt(shapes: Shapes) -> dict[str, Any]:
    """Read the transformer's configuration off a file's shapes: 4B and 9B."""
    return {
        "num_layers": block_count(shapes, "double_blocks."),
        "num_single_layers": block_count(shapes, "single_blocks."),
        "num_attention_heads": shapes["img_in.weight"][0] // _HEAD,
        "joint_attention_dim": shapes["txt_in.weight"][1],
    }


LAYOUT = ComponentLayout(
    denoiser="transformer",
    denoiser_class="Flux2Transformer2DModel",
    texts=(
        TextEncoderSpec(
            folder="text_encoder",
            tokenizer="tokenizer",
            model="Qwen3Model",
            layout="transformers",
            prefix="",
            # qwen_3_4b.safetensors for 4B, qwen_3_8b.safetensors for 9B.
            stem="qwen_3",
            own_tokenizer=False,
            # Without thinking; the transformer reads the padding's states too.
            chat=ChatPrompt(
                "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
                tokens=512,
                layers=_LAYERS,
                reads_padding=True,
            ),
        ),
    ),
    configs="flux2",
    bare_denoiser=True,
    adapt=adapt,
    vae_class="AutoencoderKLFlux2",
    vae_names="convert_ldm_vae_checkpoint",
    prefixed=False,
)


class Flux2Model(FlowModel):
    """A loaded model; see `LoadedModel`.

    Its latents are squares of 2x2 cells of the VAE, 128 channels, each brought to mean 0 and variance 1 by
    the statistics that the VAE carries.
    """

    family = "flux2"
    reads_chunks = False

    def _cells(self) -> int:
        return 1

    def _check_channels(self) -> None:
        super()._check_channels()
        (text,) = self._get_encoders().texts
        takes = int(self.denoiser.config.joint_attention_dim)  # type: ignore[union-attr,arg-type]
        gives = None if text is None else len(_LAYERS) * int(text.model.config.hidden_size)
        if gives not in (None, takes):
            raise ScdpoError(
                f"{self._path} takes words of {takes} numbers and its text encoder gives {gives}: klein 4B "
                "goes with Qwen3-4B, klein 9B with Qwen3-8B. Give the other one as --text-encoders."
            )

    def _times(self, latents: Tensor, steps: int) -> dict[str, Any]:
        return super()._times(latents, steps) | {"mu": shift(math.prod(latents.shape[2:]), steps)}

    def _encode(
        self, encoders: Encoders, prompts: list[str], chunks: int, known: Conditioning | None = None
    ) -> Conditioning:
        if known is not None:
            return known
        (text,) = encoders.texts
        assert text is not None  # the family needs it, and the checks looked for it
        return Conditioning(text.states(prompts).words)

    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        words = conditioning.embeddings.to(self.dtype)
        height, width = noisy.shape[2:]
        answer: Tensor = self.denoiser(
            hidden_states=noisy.flatten(2).transpose(1, 2).to(self.dtype),
            timestep=timesteps / self.timesteps.count,
            encoder_hidden_states=words,
            txt_ids=position_ids(1, 1, words.shape[1], words.device),
            img_ids=position_ids(height, width, 1, words.device),
        ).sample
        latents: Tensor = answer.float().transpose(1, 2).unflatten(2, (height, width))
        return latents


def position_ids(height: int, width: int, words: int, device: torch.device) -> Tensor:
    """[height * width * words, 4]: image (there is one), row, column, and place in the prompt; float32."""
    sides = (1, height, width, words)
    return torch.cartesian_prod(*(torch.arange(side, device=device) for side in sides)).float()


def shift(tokens: int, steps: int) -> float:
    """Return how far the sampler's times move towards the noise, ln of the factor.

    Black Forest Labs' fit (flux2, `sampling.compute_empirical_mu`): straight lines in the number of tokens
    for 10 and for 200 steps, and a straight line in the number of steps between them.
    """
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    slope = (many - few) / 190
    return slope * steps + many - 200 * slope


class Flux2(DiffusersFamily):
    """The family of Flux2Transformer2DModel, Qwen3, and a VAE of 32 channels whose latents are packed."""

    def __init__(self) -> None:
        super().__init__(FAMILY_INFO[Flux2Model.family], LAYOUT, Flux2Model)
