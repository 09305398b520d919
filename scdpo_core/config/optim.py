"""The sections of `config` that say how a LoRA learns and how that is watched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..types import ScdpoError
from .bounds import bounded, needing, with_bounds
from .requirements import CLIP, VALIDATION, beside

_MOMENTS = beside(
    "optim", "optimizer", "--optimizer adamw, adamw8bit or prodigy", "adamw", "adamw8bit", "prodigy"
)
_INPUTS = beside("lora", "kind", "--kind lora or dora", "lora", "dora")
_NEW = beside("lora", "init_lora", "a new LoRA, so no --init-lora", None)
_CONTINUED = beside("lora", "init_lora", "--init-lora FILE")


@with_bounds
@dataclass(frozen=True)
class OptimSettings:
    """How it is minimised.

    Attributes:
        max_train_steps: optimiser steps.
        batch_size: pairs per forward pass.
        accumulation: forward passes per step; the effective batch is batch_size * accumulation.
        optimizer: 'adamw', 'adamw8bit' (with bitsandbytes), 'prodigy' (finds its own rate; give
            lr 1) or 'adafactor' (keeps next to nothing beside the LoRA).
        lr: highest learning rate.
        text_lr: of the text encoders' LoRA; not given, the same as lr.
        schedule: how the learning rate falls after the warm-up; all but constant end at zero.
        schedule_power: exponent of the polynomial schedule; 1 is a straight line.
        schedule_cycles: how often the schedule restarts.
        warmup: share of the steps over which the learning rate rises.
        weight_decay: pull of every weight towards zero, times the learning rate.
        beta1: memory of the mean gradient; Adafactor has none.
        beta2: memory of the mean squared gradient; Adafactor has its own.
        max_grad_norm: gradients are scaled down to this length; 0 switches that off.
        ema: decay of an average of the LoRA over the steps, 0.99 or 0.999, which is then what is drawn,
            validated and saved; 0 keeps none.
        seed: decides the LoRA's start, the order of the pairs, timesteps and noise.
    """

    max_train_steps: int = bounded(700, at_least=1)
    batch_size: int = bounded(4, at_least=1)
    accumulation: int = bounded(4, at_least=1)
    optimizer: Literal["adamw", "adamw8bit", "prodigy", "adafactor"] = "adamw"
    lr: float = bounded(1e-4, above=0)
    text_lr: float | None = bounded(None, above=0, needs=beside("lora", "train_text", "--train-text"))
    schedule: Literal["cosine", "linear", "constant", "polynomial", "restarts"] = "cosine"
    schedule_power: float = bounded(
        2.0, above=0, needs=beside("optim", "schedule", "--schedule polynomial", "polynomial")
    )
    schedule_cycles: int = bounded(
        3, at_least=1, needs=beside("optim", "schedule", "--schedule restarts", "restarts")
    )
    warmup: float = bounded(0.05, at_least=0, below=1)
    weight_decay: float = bounded(0.01, at_least=0)
    beta1: float = bounded(0.9, at_least=0, below=1, needs=_MOMENTS)
    beta2: float = bounded(0.999, at_least=0, below=1, needs=_MOMENTS)
    max_grad_norm: float = bounded(1.0, at_least=0)
    ema: float = bounded(0.0, at_least=0, below=1)
    seed: int = bounded(0, at_least=0, below=2**31)


@with_bounds
@dataclass(frozen=True)
class LoraSettings:
    """The LoRA's shape.

    Attributes:
        kind: LoRA, DoRA (direction and length apart), LoHa or LoKr (products of two small LoRAs).
        rank: of its matrices.
        alpha: scale of its effect times rank; not given, the same as rank.
        targets: which layers of the denoiser it adapts; 'self-attention' leaves out a UNet's attention to the
            prompt, and 'conv' is all-linear with the convolutions.
        block_ranks: ranks of blocks that differ, as BLOCK=RANK: 'mid_block=4', 'up_blocks.1=32',
            'text_encoder=8'; 0 leaves a block out. `trainer/lora.py inspect` lists a file's blocks.
        dropout: share of the LoRA's inputs that are dropped while training; LoHa and LoKr have none.
        init_lora: a LoRA file that training continues, with the kind, layers, ranks and alphas that it has.
        init_rank: bring that LoRA to this rank, by singular value decomposition where its own is higher; 0
            keeps the file's ranks. LoHa and LoKr become plain LoRAs by it.
        train_text: adapt the CLIP text encoders too; prompts are then encoded in every step.
        save_dtype: number format of the finished file.
        save_format: names in the finished file: 'kohya' for ComfyUI, A1111 and Forge, 'peft' for diffusers;
            see docs/lora-tool.md.
    """

    kind: Literal["lora", "dora", "loha", "lokr"] = needing("lora", _NEW)
    rank: int = bounded(16, at_least=1, needs=_NEW)
    alpha: float | None = bounded(None, above=0, hint="leave it out for alpha = rank", needs=_NEW)
    targets: Literal["attention", "self-attention", "attention+ff", "all-linear", "conv"] = needing(
        "attention", _NEW
    )
    block_ranks: tuple[str, ...] = needing((), _NEW)
    dropout: float = bounded(0.0, at_least=0, below=1, needs=_INPUTS)
    init_lora: Path | None = None
    init_rank: int = bounded(0, at_least=0, needs=_CONTINUED)
    train_text: bool = needing(False, CLIP)
    save_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    save_format: Literal["kohya", "kohya-ldm", "comfyui", "peft"] = "kohya"

    @property
    def effective_alpha(self) -> float:
        """`alpha`, or rank."""
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def rank_of_block(self) -> Mapping[str, int]:
        """`block_ranks` by block.

        Raises:
            ScdpoError: one of them does not read BLOCK=RANK.
        """
        ranks = {}
        for entry in self.block_ranks:
            block, _, rank = (part.strip() for part in entry.partition("="))
            if not block or not rank.isdecimal():
                raise ScdpoError(
                    f"lora.block_ranks: '{entry}' should read BLOCK=RANK, as 'mid_block=4' does."
                )
            ranks[block] = int(rank)
        return ranks


@with_bounds
@dataclass(frozen=True)
class ValidationSettings:
    """Pairs that are never trained on, to see what the LoRA makes of the unseen.

    Attributes:
        validation: share of the pairs held out, whole prompts at a time and always the same ones; 0 none.
        validation_every: steps between two looks at them.
        validation_draws: timesteps, each with noise of its own, at which every held-out pair is looked at.
        patience: stop early when the chosen images' held-out error stands above the base model's and has
            risen this many looks in a row; 0 never does.
        result: the LoRA that the run ends with: the 'last' one, or the 'best', at whose look the chosen
            images' held-out error was lowest; 'auto' is the best after an early stop, else the last.
    """

    validation: float = bounded(0.0, at_least=0, below=1)
    validation_every: int = bounded(50, at_least=1, needs=VALIDATION)
    validation_draws: int = bounded(4, at_least=1, needs=VALIDATION)
    patience: int = bounded(0, at_least=0, needs=VALIDATION)
    result: Literal["auto", "best", "last"] = needing("auto", VALIDATION)
