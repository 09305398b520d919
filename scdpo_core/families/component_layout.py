"""Where the components of a family's models are, in a diffusers folder and in a single file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..io.safetensors_header import Shapes

DENOISER_PREFIX = "model.diffusion_model."
"""How the denoiser's tensors begin in a single file; files with a transformer alone may lack it."""
VAE_PREFIXES = ("first_stage_model.", "vae.")


TextKind = Literal["clip", "t5", "language"]
"""What a text encoder is: CLIP, which a LoRA may adapt; T5; or a language model that reads a chat."""
_KINDS: dict[str, TextKind] = {
    "CLIPTextModel": "clip",
    "CLIPTextModelWithProjection": "clip",
    "T5EncoderModel": "t5",
}


@dataclass(frozen=True)
class ChatPrompt:
    """How a language model reads a prompt.

    Attributes:
        template: the whole chat, special tokens included, with '{}' for the prompt.
        tokens: that are read at most, the template's among them.
        layers: hidden states that are taken, as transformers counts them (0: the embeddings; -1: the last
            one, after the final norm); several stand side by side.
        drops_start: whether the states of what stands before the prompt are cut off.
        reads_padding: whether every prompt is padded to `tokens` and the denoiser reads the padding's states
            too; otherwise prompts keep their length and a mask says where they end.
    """

    template: str
    tokens: int
    layers: tuple[int, ...] = (-1,)
    drops_start: bool = False
    reads_padding: bool = False


@dataclass(frozen=True)
class TextEncoderSpec:
    """A text encoder.

    Attributes:
        folder: of a diffusers folder, which holds its weights.
        tokenizer: folder of its tokenizer.
        model: its class in transformers.
        layout: of its tensors in a single file: transformers' own names, or OpenCLIP's.
        prefix: how its tensors begin in a single file; '' if single files never hold it.
        stem: how a file of it alone begins in a folder of text encoders.
        needed: whether the family does nothing without it.
        own_tokenizer: whether its tokenizer ships with us.
        chat: how it reads prompts, of a language model.
    """

    folder: str
    tokenizer: str
    model: Literal[
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "T5EncoderModel",
        "Qwen3Model",
        "Qwen2_5_VLTextModel",
        "MistralModel",
    ]
    layout: Literal["transformers", "open_clip"]
    prefix: str
    stem: str
    needed: bool = True
    own_tokenizer: bool = True
    chat: ChatPrompt | None = None

    @property
    def kind(self) -> TextKind:
        """What it is."""
        return _KINDS.get(self.model, "language")


@dataclass(frozen=True)
class ComponentLayout:
    """A family's components.

    Attributes:
        denoiser: folder of the denoiser.
        denoiser_class: its class in diffusers.
        vae_class: of its VAE in diffusers.
        vae_names: name of diffusers' function that gives a single VAE's tensors their names in diffusers; ''
            where the class does so itself.
        texts: its text encoders, in the order in which their states are joined.
        configs: name of the folder of configurations that ships with us.
        bare_denoiser: whether its single files may be a denoiser alone, without `DENOISER_PREFIX`.
        diffusers_names: whether its single files name the denoiser's tensors as diffusers does.
        adapt: what a single file's shapes change in the denoiser's configuration.
    """

    denoiser: str
    denoiser_class: str
    texts: tuple[TextEncoderSpec, ...]
    configs: str
    bare_denoiser: bool = False
    diffusers_names: bool = False
    vae_class: str = "AutoencoderKL"
    vae_names: str = ""
    adapt: Callable[[Shapes], dict[str, Any]] = lambda shapes: {}
