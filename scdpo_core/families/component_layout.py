"""Where the components of a family's models are, in a diffusers folder and in a single file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..io.safetensors_header import Shapes

DENOISER_PREFIX = "model.diffusion_model."
"""How the denoiser's tensors begin in a single file; files with a transformer alone may lack it."""
VAE_PREFIXES = ("first_stage_model.", "vae.")


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
    """

    folder: str
    tokenizer: str
    model: Literal["CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"]
    layout: Literal["transformers", "open_clip"]
    prefix: str
    stem: str
    needed: bool = True
    own_tokenizer: bool = True


@dataclass(frozen=True)
class ComponentLayout:
    """A family's components.

    Attributes:
        denoiser: folder of the denoiser.
        denoiser_class: its class in diffusers.
        texts: its text encoders, in the order in which their states are joined.
        configs: name of the folder of configurations that ships with us.
        bare_denoiser: whether its single files may be a denoiser alone, without `DENOISER_PREFIX`.
        adapt: what a single file's shapes change in the denoiser's configuration.
    """

    denoiser: str
    denoiser_class: str
    texts: tuple[TextEncoderSpec, ...]
    configs: str
    bare_denoiser: bool = False
    adapt: Callable[[Shapes], dict[str, Any]] = lambda shapes: {}
