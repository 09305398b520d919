"""Stable Diffusion 2.x: version 1 with OpenCLIP's text encoder; predicts the noise (512) or v (768)."""

from __future__ import annotations

from typing import Any

from ..family_info import FAMILY_INFO
from .component_layout import DENOISER_PREFIX, ComponentLayout, TextEncoderSpec
from .components import Reader
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
            layout="open_clip",
            prefix="cond_stage_model.model.",
            stem="clip_h",
        ),
    ),
    configs="sd2",
)

_TELLING = f"{DENOISER_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SPREAD_OF_V = 0.09
_SIZE_OF_NOISE = (512, 512)


class SD2Model(UNetModel):
    """A loaded model; see `LoadedModel`."""

    family = "sd2"

    def _marked(self, reader: Reader) -> dict[str, Any]:
        """Files of both kinds look alike; as in ComfyUI one bias tells, which varies more in models of v."""
        settings = super()._marked(reader)
        if reader.header is not None and reader.header.prediction is None:
            spread = reader.spread(_TELLING)
            if spread is not None:
                settings["prediction_type"] = "v_prediction" if spread > _SPREAD_OF_V else "epsilon"
        return settings

    def _own_size(self) -> tuple[int, int]:
        # The configuration that ships with us is that of the models of v.
        shipped = self._reader.header is not None and self._options.configs is None
        return _SIZE_OF_NOISE if shipped and self.prediction == "epsilon" else super()._own_size()


class SD2(DiffusersFamily):
    """The family of UNet2DConditionModel, OpenCLIP-H and a VAE of four channels."""

    def __init__(self) -> None:
        super().__init__(FAMILY_INFO[SD2Model.family], LAYOUT, SD2Model)
