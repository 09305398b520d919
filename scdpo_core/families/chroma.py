"""Chroma1: FLUX.1 schnell with T5 alone, undistilled, and one small network in place of all modulations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from ..family_info import FAMILY_INFO
from ..io.safetensors_header import Shapes, block_count
from ..types import Conditioning
from .chunks import TextEncoder
from .component_layout import ComponentLayout, TextEncoderSpec
from .components import Encoders
from .diffusers_family import DiffusersFamily
from .flow import FlowModel
from .flux import pack, position_ids, unpack

_T5_TOKENS = 512
_HEAD = 128
# Far enough below any product of normalised queries and keys that its exponential is 0 in 32 bits; its square
# still fits into 16 bits.
_HIDDEN = -200.0
_SINGLE_INPUTS = 3


def adapt(shapes: Shapes) -> dict[str, Any]:
    """Read the transformer's configuration off a file's shapes: whole ones and cut-down ones."""
    layer = "distilled_guidance_layer"
    return {
        "num_layers": block_count(shapes, "double_blocks."),
        "num_single_layers": block_count(shapes, "single_blocks."),
        "num_attention_heads": shapes["img_in.weight"][0] // _HEAD,
        "approximator_num_channels": shapes[f"{layer}.in_proj.weight"][1],
        "approximator_hidden_dim": shapes[f"{layer}.in_proj.weight"][0],
        "approximator_layers": block_count(shapes, f"{layer}.layers."),
    }


LAYOUT = ComponentLayout(
    denoiser="transformer",
    denoiser_class="ChromaTransformer2DModel",
    texts=(
        TextEncoderSpec(
            folder="text_encoder",
            tokenizer="tokenizer",
            model="T5EncoderModel",
            layout="transformers",
            prefix="text_encoders.t5xxl.transformer.",
            stem="t5xxl",
            own_tokenizer=False,
        ),
    ),
    configs="chroma",
    bare_denoiser=True,
    adapt=adapt,
)


class ChromaModel(FlowModel):
    """A loaded model; see `LoadedModel`. The words are T5's states, of which padding is hidden but for one.

    The model was trained so: T5 sees a prompt's tokens and its end, the transformer one token of padding too.
    ComfyUI and Forge Neo pad nothing, which is the same but for that token.
    """

    family = "chroma"
    reads_chunks = False

    def _text_tokens(self, index: int) -> int:
        return self._options.t5_tokens or _T5_TOKENS

    def _encode(
        self, encoders: Encoders, prompts: list[str], chunks: int, known: Conditioning | None = None
    ) -> Conditioning:
        if known is not None:
            return known
        (t5,) = encoders.texts
        assert isinstance(t5, TextEncoder)  # the family needs it, and the checks looked for it
        states = t5.states(prompts, masked=True)
        assert states.mask is not None
        mask = with_first_padding(states.mask)
        longest = int(mask.sum(1).max())
        return Conditioning(states.words[:, :longest], attention_mask=mask[:, :longest])

    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        lengths = conditioning.lengths()
        longest = max(lengths)
        words = conditioning.embeddings[:, :longest].to(self.dtype)
        squares = pack(noisy).to(self.dtype)
        self._bias = None
        if conditioning.attention_mask is not None and min(lengths) < longest:
            # The transformer adds the products of two tokens' numbers to what they are to each other, so that
            # padding sees padding alone and no row of the attention is empty. As numbers and not as a mask,
            # since diffusers 0.42 adds masks too (its issue 12116).
            shown = pad(conditioning.attention_mask[:, :longest], (0, squares.shape[1]), value=True)
            self._bias = torch.where(shown, 1.0, _HIDDEN).to(self.dtype)
        answer: Tensor = self.denoiser(
            hidden_states=squares,
            timestep=timesteps / self.timesteps.count,
            encoder_hidden_states=words,
            txt_ids=words.new_zeros(words.shape[1], 3),
            img_ids=position_ids(noisy),
            attention_mask=self._bias,
        ).sample
        return unpack(answer.float(), noisy.shape[2], noisy.shape[3])

    def enable_gradient_checkpointing(self) -> None:
        """See `LoadedModel.enable_gradient_checkpointing`.

        Diffusers 0.42 leaves the mask out where it checkpoints single blocks, so that policy and reference
        would see different words.
        """

        def run(block: nn.Module, *inputs: Any) -> Any:
            given = inputs if len(inputs) != _SINGLE_INPUTS else (*inputs, self._bias)
            return checkpoint(block.__call__, *given, use_reentrant=False)

        self.denoiser.enable_gradient_checkpointing(run)  # type: ignore[operator]


def with_first_padding(mask: Tensor) -> Tensor:
    """Show the first token of padding too: [N, T] bool, of the mask of the prompts' own tokens."""
    return mask | pad(mask[:, :-1], (1, 0), value=True)


class Chroma(DiffusersFamily):
    """The family of ChromaTransformer2DModel, T5, and FLUX.1's VAE of 16 channels."""

    def __init__(self) -> None:
        super().__init__(FAMILY_INFO[ChromaModel.family], LAYOUT, ChromaModel)
