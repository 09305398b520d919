"""The base model of a run: loaded, made fast, and spread over the processes where one GPU cannot hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from ..config.settings import ModelSettings, TrainSettings
from ..families import family_of
from ..families.base import LoadedModel
from ..types import ScdpoError
from .checks import load_options, resolve_dtype
from .distributed import ProcessGroup

if TYPE_CHECKING:
    from ..lora.adapter import LoraAdapter


def spread(network: nn.Module, keep: Sequence[nn.Parameter], device: torch.device) -> None:
    """Spread a frozen network over the processes (FSDP 2: Zhao et al. 2023), each block by itself.

    The LoRA stays whole everywhere: it is small, and checkpoints and files are then those of one process.

    Args:
        network: a denoiser with its LoRA attached. Blocks are what diffusers names in `_no_split_modules` or
            `_repeated_blocks`, or what accelerate's FSDP settings name.
        keep: parameters that are not spread.
        device: of this process; the network may still be on the CPU.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    asked = FullyShardedDataParallelPlugin()
    named = asked.transformer_cls_names_to_wrap or _blocks(network)
    on_gpu = device.type != "cpu"
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (dist.get_world_size(),)),
        "reshard_after_forward": asked.reshard_after_forward is not False,
        "offload_policy": CPUOffloadPolicy() if asked.cpu_offload and on_gpu else OffloadPolicy(),
        "ignored_params": set(keep),
    }
    # Inner blocks first: what is inside one that is spread already stays its own.
    for module in reversed(list(network.modules())):
        if module is not network and type(module).__name__ in named:
            fully_shard(module, **options)
    fully_shard(network, **options)
    for weight in keep:
        weight.data = weight.data.to(device)


def _blocks(network: nn.Module) -> list[str]:
    names = (getattr(network, key, None) for key in ("_no_split_modules", "_repeated_blocks"))
    return next((list(found) for found in names if found), [])


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
    if team.sharded and own.offload_blocks != 0:
        raise ScdpoError(
            "--offload-blocks and weights that are spread over several GPUs do not go together: FSDP has an "
            "offload of its own ('accelerate config' asks for it). Leave one of them out."
        )
    options = replace(load_options(own), denoiser_spread=team.sharded)
    dtype = resolve_dtype(own.precision, device)
    model = family_of(own.family, own.base).load(own.base, device, dtype, options)
    model.latent_shape(settings.data.size)
    if own.gradient_checkpointing:
        model.enable_gradient_checkpointing()
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
        from .loading import spread

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
