"""Base models of real shapes with random weights, made in memory: for what a step costs, any will do."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scdpo_core.families.base import DEFAULTS, LoadOptions
from scdpo_core.families.chunks import TextEncoder
from scdpo_core.families.component_layout import ComponentLayout, TextEncoderSpec
from scdpo_core.families.components import Reader
from scdpo_core.families.latent_model import LatentModel
from scdpo_core.families.sd1 import LAYOUT as SD1_LAYOUT
from scdpo_core.families.sd1 import SD1Model
from scdpo_core.families.sdxl import LAYOUT as SDXL_LAYOUT
from scdpo_core.families.sdxl import SDXLModel
from scdpo_core.families.text_encoders import CONFIGS, clip_tokenizer
from scdpo_core.family_info import FAMILY_INFO

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [32, 64, 128, 128], "cross_attention_dim": 64},
    "text_encoder": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 64,
    },
    "vae": {"block_out_channels": [32, 32, 64, 64]},
}
"""Changes to the configurations of Stable Diffusion 1 that make a model of 9 million weights."""


@dataclass(frozen=True)
class Shape:
    """A model's architecture.

    Attributes:
        layout: of its family.
        model: its class.
        size: pixels along an edge that it is usually trained at.
        changes: to the configurations of its family, by component.
    """

    layout: ComponentLayout
    model: type[LatentModel]
    size: int
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)


SHAPES = {
    "small": Shape(SD1_LAYOUT, SD1Model, 256, SMALL),
    "sd1": Shape(SD1_LAYOUT, SD1Model, 512),
    "sdxl": Shape(SDXL_LAYOUT, SDXLModel, 1024),
}


class RandomReader(Reader):
    """Components with random weights, made on the device that will use them; see `Reader`."""

    def __init__(self, shape: Shape, device: torch.device, seed: int = 0) -> None:
        self._shape, self._home = shape, CONFIGS / shape.layout.configs
        self._device, self._seed = device, seed

    def _config(self, part: str) -> dict[str, Any]:
        config = json.loads((self._home / part / "config.json").read_text("utf-8"))
        return {**config, **self._shape.changes.get(part, {})}

    def denoiser(self, dtype: torch.dtype) -> nn.Module:
        """See `Reader.denoiser`."""
        import diffusers

        layout = self._shape.layout
        # Torch's own first weights would take minutes for a large model.
        with torch.device("meta"):
            network = getattr(diffusers, layout.denoiser_class).from_config(self._config(layout.denoiser))
        network = network.to(dtype).to_empty(device=self._device)
        generator = torch.Generator(self._device).manual_seed(self._seed)
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if weight.ndim > 1:
                    weight.normal_(0, 0.5 * weight[0].numel() ** -0.5, generator=generator)
                else:
                    weight.fill_(0.0 if name.endswith("bias") else 1.0)
        return network

    def vae(self) -> Any:
        """See `Reader.vae`."""
        from diffusers import AutoencoderKL

        torch.manual_seed(self._seed)
        with self._device:
            return AutoencoderKL.from_config(self._config("vae"))

    def text(self, part: TextEncoderSpec, dtype: torch.dtype, tokens: int) -> TextEncoder | None:
        """See `Reader.text`."""
        import transformers

        torch.manual_seed(self._seed)
        model_class = getattr(transformers, part.model)
        with self._device:
            model = model_class(model_class.config_class.from_dict(self._config(part.folder)))
        model = model.to(dtype).eval()
        tokenizer = clip_tokenizer(self._home / part.tokenizer)
        return TextEncoder(tokenizer, model, tokens or tokenizer.model_max_length)

    def scheduler(self) -> dict[str, Any]:
        """See `Reader.scheduler`."""
        settings: dict[str, Any] = json.loads(
            (self._home / "scheduler" / "scheduler_config.json").read_text("utf-8")
        )
        return settings

    def spread(self, name: str) -> float | None:
        """See `Reader.spread`."""
        return None


def random_model(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    options: LoadOptions = DEFAULTS,
) -> LatentModel:
    """A model of that shape, as a family would have loaded it."""
    reader = RandomReader(shape, device, seed)
    return shape.model("random", Path("random"), reader, shape.layout, device, dtype, options)


def save_pipeline(model: LatentModel, shape: Shape, folder: Path) -> Path:
    """Write a random model as a diffusers folder, for scripts that load one."""
    encoders = model._get_encoders()
    layout = shape.layout
    index: dict[str, Any] = {"_class_name": FAMILY_INFO[shape.model.family].pipeline}
    parts: list[tuple[str, Any]] = [(layout.denoiser, model.denoiser), ("vae", encoders.vae)]
    for part, text in zip(layout.texts, encoders.texts, strict=True):
        assert text is not None
        parts += [(part.folder, text.model), (part.tokenizer, text.tokenizer)]
    for name, component in parts:
        component.save_pretrained(folder / name)
        library = type(component).__module__.split(".")[0]
        index[name] = [library, type(component).__name__]
    index["scheduler"] = ["diffusers", "DDPMScheduler"]
    place = folder / "scheduler"
    place.mkdir(parents=True, exist_ok=True)
    (place / "scheduler_config.json").write_text(json.dumps(dict(model._schedule), default=str), "utf-8")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return folder
