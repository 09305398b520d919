"""Large frozen networks on several GPUs: every process keeps a part of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


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
