"""The sections of `config` that say how a LoRA learns and how that is watched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .types import ScdpoError


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
        schedule_cycles: how often the schedule with restarts begins anew.
        warmup: share of the steps over which the learning rate rises.
        weight_decay: pull of every weight towards zero, times the learning rate.
        beta1: memory of the mean gradient; Adafactor has none.
        beta2: memory of the mean squared gradient; Adafactor has its own.
        max_grad_norm: gradients are scaled down to this length; 0 switches that off.
        ema: decay of an average of the LoRA over the steps, 0.99 or 0.999, which is then what is drawn,
            validated and saved; 0 keeps none.
        seed: decides the LoRA's start, the order of the pairs, timesteps and noise.
    """

    max_train_steps: int = 700
    batch_size: int = 4
    accumulation: int = 4
    optimizer: Literal["adamw", "adamw8bit", "prodigy", "adafactor"] = "adamw"
    lr: float = 1e-4
    text_lr: float | None = None
    schedule: Literal["cosine", "linear", "constant", "polynomial", "restarts"] = "cosine"
    schedule_power: float = 2.0
    schedule_cycles: int = 3
    warmup: float = 0.05
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    max_grad_norm: float = 1.0
    ema: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class LoraSettings:
    """The LoRA's shape.

    Attributes:
        kind: LoRA, DoRA (direction and length apart), LoHa or LoKr (products of two small LoRAs).
        rank: of its matrices.
        alpha: scale of its effect times rank; not given, the same as rank.
        targets: which layers of the denoiser it adapts; 'conv' is all-linear with the convolutions.
        block_ranks: ranks of blocks that differ, as BLOCK=RANK: 'mid_block=4', 'up_blocks.1=32',
            'text_encoder=8'; 0 leaves a block out. `trainer/lora.py inspect` lists a file's blocks.
        dropout: share of the LoRA's inputs that are dropped while training; LoHa and LoKr have none.
        train_text: adapt the CLIP text encoders too; prompts are then encoded in every step.
        save_dtype: number format of the finished file.
    """

    kind: Literal["lora", "dora", "loha", "lokr"] = "lora"
    rank: int = 16
    alpha: float | None = None
    targets: Literal["attention", "attention+ff", "all-linear", "conv"] = "attention"
    block_ranks: tuple[str, ...] = ()
    dropout: float = 0.0
    train_text: bool = False
    save_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"

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


@dataclass(frozen=True)
class ValidationSettings:
    """Pairs that are never trained on, to see what the LoRA makes of the unseen.

    Attributes:
        validation: share of the pairs held out, whole prompts at a time and always the same ones; 0 none.
        validation_every: steps between two looks at them.
        validation_draws: timesteps, each with noise of its own, at which every held-out pair is looked at.
        patience: stop early when the chosen pictures' held-out error stands above the base model's and has
            risen this many looks in a row; 0 never does.
    """

    validation: float = 0.0
    validation_every: int = 50
    validation_draws: int = 4
    patience: int = 0
