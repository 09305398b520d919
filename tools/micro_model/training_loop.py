"""One resumable training loop for every part of the embedded world."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scdpo_core.io.tensor_tree import load_tree, save_tree
from scdpo_core.types import ScdpoError


@dataclass(frozen=True)
class StepContext:
    """What a training step may use. All randomness of a step comes from its own seed, so that a
    resumed build goes on exactly as an uninterrupted one.

    Attributes:
        step: number of the step, from 0.
        rng: for captions and scenes.
        generator: for tensors, on the CPU.
        device: where the network is.
    """

    step: int
    rng: random.Random
    generator: torch.Generator
    device: torch.device

    def autocast(self) -> torch.autocast:
        """See `autocast`."""
        return autocast(self.device)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 for the forward pass where that is faster.

    On GPUs and on processors with AVX-512 it is 1.2 to 1.6 times as fast; other processors have to spell
    every product out and take ten times as long.
    """
    faster = device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast(device.type, torch.bfloat16, enabled=faster)


@dataclass(frozen=True)
class Plan:
    """How one part is trained.

    Attributes:
        name: of the part; also the stem of its checkpoint file.
        steps: optimizer steps in all.
        lr: peak learning rate; warm-up over the first 2 %, then a cosine down to a tenth of a percent.
        ema: decay of the weights' running mean, which is what the part ends with; 0 for none.
        weight_decay: AdamW's.
        seed: of everything random.
    """

    name: str
    steps: int
    lr: float
    ema: float = 0.0
    weight_decay: float = 0.01
    seed: int = 0


Tell = Callable[[str], None]


def train(
    plan: Plan,
    network: nn.Module,
    step_loss: Callable[[StepContext], torch.Tensor],
    folder: Path,
    device: torch.device,
    tell: Tell,
    checkpoint_every: int = 250,
) -> nn.Module:
    """Train `network` and return it, or its running mean, in evaluation mode.

    Args:
        plan: lengths and rates.
        network: trained in place.
        step_loss: makes the batch of a step and returns its scalar loss.
        folder: where the checkpoint lives; an unfinished run goes on from it.
        device: where to train.
        tell: gets a line about progress now and then.
        checkpoint_every: steps between checkpoints.

    Raises:
        ScdpoError: the folder holds a checkpoint of another plan.
    """
    # Convolutions of this size are up to a tenth faster with the channels last.
    _arrange(network.to(device), torch.channels_last).train()
    average = copy.deepcopy(network).requires_grad_(False) if plan.ema else None
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=plan.lr, weight_decay=plan.weight_decay, betas=(0.9, 0.99), fused=True
    )
    checkpoint = checkpoint_of(folder, plan.name)
    start = 0
    if checkpoint.exists():
        state = load_tree(checkpoint)
        if state.get("plan") != dataclasses.asdict(plan):
            raise ScdpoError(
                f"{checkpoint} is from a build with other settings: remove it, or build in another folder."
            )
        start = state["step"]
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])

    def save(done: int) -> None:
        save_tree(
            checkpoint,
            {
                "plan": dataclasses.asdict(plan),
                "step": done,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.state_dict() if average is not None else None,
            },
        )

    running, began = float("nan"), time.monotonic()
    for step in range(start, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * _schedule(step, plan.steps)
        key = f"{plan.seed}/{plan.name}/{step}"
        rng = random.Random(key)
        generator = torch.Generator().manual_seed(rng.getrandbits(48))
        loss = step_loss(StepContext(step, rng, generator, device))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average is not None:
            _average(average.parameters(), network.parameters(), min(plan.ema, (1 + step) / (10 + step)))
            _average(average.buffers(), network.buffers(), 0.0)
        if (step + 1) % 50 == 0:
            value = loss.item()
            running = value if math.isnan(running) else 0.8 * running + 0.2 * value
            rate = (step + 1 - start) / (time.monotonic() - began)
            left = (plan.steps - step - 1) / rate
            tell(f"{plan.name}: step {step + 1}/{plan.steps}, loss {running:.4f}, {left / 60:.1f} min left")
        if (step + 1) % checkpoint_every == 0 or step + 1 == plan.steps:
            save(step + 1)
    trained = average if average is not None else network
    return _arrange(trained, torch.contiguous_format).eval().requires_grad_(False)


def checkpoint_of(folder: Path, name: str) -> Path:
    """Return the file that a stage resumes from."""
    return folder / f"{name}.state.safetensors"


def _arrange(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    to: Any = network.to  # torch's own type hints do not know this way of calling it
    arranged: nn.Module = to(memory_format=layout)
    return arranged


def _schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 50)
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def _average(into: Iterable[torch.Tensor], new: Iterable[torch.Tensor], decay: float) -> None:
    pairs = list(zip(into, new, strict=True))
    floats = [(mean, value) for mean, value in pairs if mean.is_floating_point()]
    if floats:
        # One call for all tensors: a loop of small calls took a tenth of the step.
        torch._foreach_lerp_([mean for mean, _ in floats], [value for _, value in floats], 1 - decay)
    for mean, value in pairs:
        if not mean.is_floating_point():
            mean.copy_(value)
