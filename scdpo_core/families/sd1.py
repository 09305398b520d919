"""Stable Diffusion 1.x, and every smaller model of the same shape, the embedded one included."""

from __future__ import annotations

from ..family_info import FAMILY_INFO
from .component_layout import ComponentLayout, TextEncoderSpec
from .diffusers_family import DiffusersFamily
from .unet import UNetModel

LAYOUT = ComponentLayout(
    denoiser="unet",
    denoiser_class="UNet2DConditionModel",
    texts=(
        TextEncoderSpec(
            folder="text_encoder",
            tokenizer="tokenizer",
            model="CLIPTextModel",
            layout="transformers",
            prefix="cond_stage_model.transformer.",
            stem="clip_l",
        ),
    ),
    configs="sd1",
)


class SD1Model(UNetModel):
    """A loaded model; see `LoadedModel`."""

    family = "sd1"


class SD1(DiffusersFamily):
    """The family of UNet2DConditionModel, CLIP-L and a VAE of four channels."""

    def __init__(self) -> None:
        super().__init__(FAMILY_INFO[SD1Model.family], LAYOUT, SD1Model)
