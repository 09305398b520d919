"""The optimisers that a LoRA can be trained with, one registry."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import Version

from ..config.optim import OptimSettings
from ..lora.formats.names import TEXT_ENCODERS
from ..types import ScdpoError

if TYPE_CHECKING:
    from ..lora.adapter import LoraAdapter


Groups = list[dict[str, Any]]
"""What torch calls parameter groups; `share` is by what its learning rate differs from the step's."""
_BNB_ON_CPU = Version("0.50")


def _adamw(groups: Groups, settings: OptimSettings, device: torch.device) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        # One kernel for all weights, which also knows how to skip a step of a gradient scaler without
        # asking the GPU.
        fused=True if device.type in ("cuda", "cpu") else None,
    )


def _adamw8bit(groups: Groups, settings: OptimSettings, device: torch.device) -> torch.optim.Optimizer:
    """AdamW whose moments are kept in 8 bits, in blocks of 256 with a scale each (Dettmers et al. 2022).

    Weights of fewer than 4,096 numbers keep theirs in 32 bits: they cost nothing, and would lose most.
    """
    try:
        import bitsandbytes
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise _missing("adamw8bit", "bitsandbytes", "adam8bit") from error
    too_old = Version(bitsandbytes.__version__) < _BNB_ON_CPU
    if device.type == "mps" or (device.type == "cpu" and too_old):
        raise ScdpoError(
            f"--optimizer adamw8bit cannot compute on '{device.type}' with bitsandbytes "
            f"{bitsandbytes.__version__}. It requires an NVIDIA GPU, or bitsandbytes 0.50 on a processor. "
            "Use adamw, or adafactor, which needs even less memory."
        )
    optimizer: torch.optim.Optimizer = AdamW8bit(
        groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), weight_decay=settings.weight_decay
    )
    return optimizer


def _prodigy(groups: Groups, settings: OptimSettings, device: torch.device) -> torch.optim.Optimizer:
    """Prodigy (Mishchenko and Defazio 2024) with the settings its authors advise for diffusion models."""
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise _missing("prodigy", "prodigyopt", "prodigy") from error
    # It prints a line about weight decay.
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer: torch.optim.Optimizer = Prodigy(
            groups,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            use_bias_correction=True,
            safeguard_warmup=True,
        )
    return optimizer


def _adafactor(groups: Groups, settings: OptimSettings, device: torch.device) -> torch.optim.Optimizer:
    """Adafactor (Shazeer and Stern 2018): one number a row and one a column instead of two a weight.

    The rate is the schedule's alone: Adafactor would multiply it by the size of each weight, which is zero
    for the half of a LoRA that starts at zero.
    """
    if not hasattr(torch.optim, "Adafactor"):
        raise ScdpoError("--optimizer adafactor needs torch 2.5 or newer.")
    return torch.optim.Adafactor(groups, lr=settings.lr, weight_decay=settings.weight_decay, eps=(None, 1.0))


OPTIMIZERS: Mapping[str, Callable[[Groups, OptimSettings, torch.device], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "prodigy": _prodigy,
    "adafactor": _adafactor,
}


def build_optimizer(
    adapter: LoraAdapter, settings: OptimSettings, device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser of a run.

    Args:
        adapter: whose weights it changes; those of text encoders are a group of their own.
        settings: which, and its figures.
        device: where the weights are.

    Raises:
        ScdpoError: there is no such optimiser, or it cannot be had here; says what to do.
    """
    if settings.optimizer not in OPTIMIZERS:
        raise ScdpoError(
            f"There is no optimiser '{settings.optimizer}'. Choose one of: {', '.join(OPTIMIZERS)}."
        )
    texts = adapter.parameters(lambda module: module.startswith(TEXT_ENCODERS))
    others = adapter.parameters(lambda module: not module.startswith(TEXT_ENCODERS))
    text_share = 1.0 if settings.text_lr is None else settings.text_lr / settings.lr
    groups: Groups = [
        {"params": weights, "share": share}
        for weights, share in ((others, 1.0), (texts, text_share))
        if weights
    ]
    return OPTIMIZERS[settings.optimizer](groups, settings, device)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step be of that learning rate, times each group's share."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def invalid(settings: OptimSettings) -> Iterator[str]:
    """A sentence about each figure that the chosen optimiser would not take."""
    own = settings
    if own.optimizer == "prodigy":
        if own.lr < 0.1:
            yield (
                f"optim.lr multiplies the rate that Prodigy finds, and {own.lr:g} would all but stop it: "
                "give --lr 1"
            )
        if own.text_lr is not None and own.text_lr != own.lr:
            yield "optim.text_lr cannot differ from optim.lr with Prodigy, which finds one rate for all"


def _missing(name: str, package: str, extra: str) -> ScdpoError:
    return ScdpoError(
        f"--optimizer {name} needs the package {package}, which is not installed: "
        f"pip install '.[{extra}]' (or pip install {package})."
    )


Fall = Callable[[float, OptimSettings], float]
"""Share of the steps after the warm-up that is gone, 0..1, in; share of the highest rate, 0..1, out."""


def _restarts(gone: float, settings: OptimSettings) -> float:
    """Half a cosine again and again, each time from the top (Loshchilov and Hutter 2017, equal cycles)."""
    return 0.5 * (1 + math.cos(math.pi * ((gone * settings.schedule_cycles) % 1)))


FALLS: Mapping[str, Fall] = {
    "constant": lambda gone, settings: 1.0,
    "linear": lambda gone, settings: 1 - gone,
    "polynomial": lambda gone, settings: (1 - gone) ** settings.schedule_power,
    "cosine": lambda gone, settings: 0.5 * (1 + math.cos(math.pi * gone)),
    "restarts": _restarts,
}


def learning_rate(step: int, settings: OptimSettings) -> float:
    """The learning rate of a step, counted from 0.

    It rises in a straight line over the warm-up and then falls as the schedule says, see `FALLS`. It is
    never 0, neither in the first step nor in the last.
    """
    total = settings.max_train_steps
    rising = round(settings.warmup * total)
    if step < rising:
        return settings.lr * (step + 1) / (rising + 1)
    gone = (step - rising) / (total - rising)
    return settings.lr * FALLS[settings.schedule](gone, settings)
