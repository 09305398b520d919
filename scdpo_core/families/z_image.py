"""Z-Image: the base model, and Turbo, which has the same layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..family_info import FAMILY_INFO
from ..io.safetensors_header import Shapes, block_count
from ..types import Conditioning
from .component_layout import ChatPrompt, ComponentLayout, TextEncoderSpec
from .components import Encoders
from .diffusers_family import DiffusersFamily
from .flow import FlowModel


def adapt(shapes: Shapes) -> dict[str, Any]:
    """Read the transformer's configuration off a file's shapes."""
    width, words = shapes["cap_embedder.1.weight"]
    heads = width // shapes["layers.0.attention.q_norm.weight"][0]
    return {
        "dim": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "n_layers": block_count(shapes, "layers."),
        "n_refiner_layers": block_count(shapes, "noise_refiner."),
        "cap_feat_dim": words,
    }


LAYOUT = ComponentLayout(
    denoiser="transformer",
    denoiser_class="ZImageTransformer2DModel",
    texts=(
        TextEncoderSpec(
            folder="text_encoder",
            tokenizer="tokenizer",
            model="Qwen3Model",
            layout="transformers",
            prefix="text_encoders.qwen3_4b.transformer.",
            stem="qwen_3_4b",
            own_tokenizer=False,
            # As diffusers and ComfyUI ask: one turn of a user, and the last layer but one.
            chat=ChatPrompt(
                "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", tokens=512, layers=(-2,)
            ),
        ),
    ),
    configs="z_image",
    bare_denoiser=True,
    adapt=adapt,
)


class ZImageModel(FlowModel):
    """A loaded model; see `LoadedModel`. Each prompt is read at its own length."""

    family = "z_image"
    reads_chunks = False

    def _encode(
        self, encoders: Encoders, prompts: list[str], chunks: int, known: Conditioning | None = None
    ) -> Conditioning:
        if known is not None:
            return known  # nothing that reads these prompts trains
        (text,) = encoders.texts
        assert text is not None  # the family needs it, and the checks looked for it
        states = text.states(prompts)
        return Conditioning(states.words, attention_mask=states.mask)

    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The transformer counts time from noise to image, and answers with the way back."""
        words = conditioning.embeddings.to(self.dtype)
        lengths = conditioning.lengths()
        answers = self.denoiser(
            [latents[:, None] for latents in noisy.to(self.dtype)],
            1 - timesteps / self.timesteps.count,
            [states[:length] for states, length in zip(words, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack([answer[:, 0].float() for answer in answers])


class ZImage(DiffusersFamily):
    """The family of ZImageTransformer2DModel, Qwen3-4B, and FLUX.1's VAE of 16 channels."""

    def __init__(self) -> None:
        super().__init__(FAMILY_INFO[ZImageModel.family], LAYOUT, ZImageModel)
