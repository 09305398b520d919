"""Qwen-Image: a transformer of two streams, a language model for words, and a VAE made for videos."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..family_info import FAMILY_INFO
from ..io.safetensors_header import Shapes, block_count
from ..types import Conditioning
from .component_layout import ChatPrompt, ComponentLayout, TextEncoderSpec
from .components import Encoders
from .diffusers_family import DiffusersFamily
from .flow import FlowModel
from .flux import pack, unpack

_SQUARE = 2


def adapt(shapes: Shapes) -> dict[str, Any]:
    """Read the transformer's configuration off a file's shapes: the whole one and cut-down ones."""
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    return {
        "num_layers": block_count(shapes, "transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": shapes["img_in.weight"][0] // head,
        "joint_attention_dim": shapes["txt_norm.weight"][0],
    }


LAYOUT = ComponentLayout(
    denoiser="transformer",
    denoiser_class="QwenImageTransformer2DModel",
    texts=(
        TextEncoderSpec(
            folder="text_encoder",
            tokenizer="tokenizer",
            model="Qwen2_5_VLTextModel",
            layout="transformers",
            prefix="text_encoders.qwen25_7b.transformer.",
            stem="qwen_2.5_vl_7b",
            own_tokenizer=False,
            # As diffusers and ComfyUI ask. The system's turn is read and its states are dropped: 34 of them.
            chat=ChatPrompt(
                "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
                "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
                "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
                tokens=1024 + 34,
                layers=(-1,),
                drops_start=True,
            ),
        ),
    ),
    configs="qwen_image",
    bare_denoiser=True,
    prefixed=False,
    vae_class="AutoencoderKLQwenImage",
    vae_names="convert_wan_vae_to_diffusers",
    adapt=adapt,
)


class QwenImageModel(FlowModel):
    """A loaded model; see `LoadedModel`."""

    family = "qwen_image"
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

    def _pushed(self, asked: Tensor, empty: Tensor, guidance: float) -> Tensor:
        """Every square of cells as long as the answer to the prompt has it, as diffusers' pipeline does."""
        pushed, height, width = super()._pushed(asked, empty, guidance), *asked.shape[2:]
        squares = pack(pushed)
        lengths = (pack(each).norm(dim=-1, keepdim=True) for each in (asked, pushed))
        wanted, got = lengths
        return unpack(squares * (wanted / got), height, width)

    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        # Where no prompt is padded there is nothing to leave out, and attention is faster without a mask.
        longest = max(lengths := conditioning.lengths())
        mask = conditioning.attention_mask
        mask = None if mask is None or min(lengths) == longest else mask[:, :longest]
        height, width = noisy.shape[2:]
        answer: Tensor = self.denoiser(
            hidden_states=pack(noisy).to(self.dtype),
            timestep=timesteps / self.timesteps.count,
            encoder_hidden_states=conditioning.embeddings[:, :longest].to(self.dtype),
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // _SQUARE, width // _SQUARE)]] * len(noisy),
        ).sample
        return unpack(answer.float(), height, width)


class QwenImage(DiffusersFamily):
    """The family of QwenImageTransformer2DModel, Qwen2.5-VL-7B, and the VAE of Wan 2.1."""

    def __init__(self) -> None:
        super().__init__(FAMILY_INFO[QwenImageModel.family], LAYOUT, QwenImageModel)
