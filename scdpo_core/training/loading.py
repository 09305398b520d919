"""The base model of a run: loaded, made fast, and spread over the processes where one GPU cannot hold it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..config.settings import ModelSettings, TrainSettings
from ..families import family_of
from ..families.base import LoadedModel
from ..types import ScdpoError
from .checks import load_options, resolve_dtype
from .distributed import ProcessGroup

if TYPE_CHECKING:
    from ..lora.adapter import LoraAdapter

_COMPILED = 64
"""Versions of a block that may be compiled."""


def load_base(settings: TrainSettings, device: torch.device, team: ProcessGroup) -> LoadedModel:
    """The frozen base model.

    Args:
        settings: of the run.
        device: of this process.
        team: where its weights will be spread over several processes, they wait in main memory.

    Raises:
        ScdpoError: it cannot be loaded, or does not fit the settings.
    """
    own = settings.model
    if team.sharded and own.quantize != "off":
        raise ScdpoError(
            "--quantize and weights that are spread over several GPUs do not go together: take one of them."
        )
    options = replace(load_options(own), denoiser_spread=team.sharded)
    dtype = resolve_dtype(own.precision, device)
    model = family_of(own.family, own.base).load(own.base, device, dtype, options)
    model.latent_shape(settings.data.size)
    if own.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    return model


def make_ready(model: LoadedModel, adapter: LoraAdapter, settings: ModelSettings, team: ProcessGroup) -> None:
    """Spread, lay out and compile the denoiser, as the settings ask; the LoRA is in it already.

    Args:
        model: the base.
        adapter: the LoRA in its denoiser.
        settings: of the model.
        team: whose processes share the weights, if they run in lockstep.
    """
    if wants_channels_last(settings, model):
        model.denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if team.sharded:
        from .sharding import spread

        spread(model.denoiser, adapter.parameters(), model.device)
    if settings.compile == "whole":
        model.denoiser.compile()
    elif settings.compile == "blocks":
        # All blocks share one function, which is compiled anew for each width, with and without gradients;
        # beyond torch's limit of 8 the rest would silently run as it is.
        torch._dynamo.config.cache_size_limit = max(_COMPILED, torch._dynamo.config.cache_size_limit)
        for block in repeated_blocks(model.denoiser):
            block.compile()


def wants_channels_last(settings: ModelSettings, model: LoadedModel) -> bool:
    """Whether convolutions are to see channels last: 'auto' is yes for 16-bit convolutions on a GPU."""
    if settings.channels_last != "auto":
        return settings.channels_last == "on"
    half = model.device.type == "cuda" and model.dtype != torch.float32
    return half and any(isinstance(module, nn.Conv2d) for module in model.denoiser.modules())


def repeated_blocks(denoiser: nn.Module) -> list[Any]:
    """The blocks that a network repeats, which compile once for all of them; itself if it names none."""
    names = getattr(denoiser, "_repeated_blocks", None) or []
    found = [module for module in denoiser.modules() if type(module).__name__ in names]
    return found or [denoiser]
