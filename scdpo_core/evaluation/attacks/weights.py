"""Attacks on the weights: another LoRA on top of the safety LoRA, and relearning by plain fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from ...types import ScdpoError
from ..judges import ImageRequest
from .base import Attacked, Budget, Examples, Sampling, Target, attacked, draw
from .probes import Probes

if TYPE_CHECKING:
    from ...families.base import LoadedModel
    from ...lora.adapter import LoraAdapter

_PEFT = "peft_config"
"""Where peft notes in a network that it has an adapter."""


@contextmanager
def folded(model: LoadedModel) -> Iterator[None]:
    """Yield the model with its LoRA added into its weights, as a merged checkpoint is, until the block ends.

    Inside, another LoRA can be put into it. Afterwards the weights are bit for bit as they were.

    Raises:
        ScdpoError: its weights are quantised.
    """
    from ...families.block_offload import bring_all

    bring_all(model.denoiser)
    originals, configs = [], []
    for network in (model.denoiser, *model.live_texts()):
        configs.append((network, vars(network).pop(_PEFT, None)))
        for path, layer in _tuned(network):
            base = layer.get_base_layer()
            if not base.weight.is_floating_point():
                raise ScdpoError("A LoRA cannot be folded into quantised weights: load the model without.")
            weight = base.weight.detach().clone()
            layer.merge()
            _put(network, path, base)
            originals.append((network, path, layer, base, weight))
    try:
        yield
    finally:
        for network, path, layer, base, weight in originals:
            layer.unmerge()
            with torch.no_grad():
                base.weight.copy_(weight)
            _put(network, path, layer)
        for network, config in configs:
            if config is not None:
                setattr(network, _PEFT, config)


def remove(model: LoadedModel) -> None:
    """Take every LoRA out of a model; what it was attached to is left as it was."""
    for network in (model.denoiser, *model.live_texts()):
        for path, layer in _tuned(network):
            _put(network, path, layer.get_base_layer())
        vars(network).pop(_PEFT, None)


def _tuned(network: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(path, layer) for path, layer in network.named_modules() if isinstance(layer, BaseTunerLayer)]


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def fine_tune(
    model: LoadedModel,
    examples: Examples,
    *,
    steps: int,
    batch: int = 8,
    lr: float = 2e-3,
    rank: int = 16,
    seed: int = 0,
) -> LoraAdapter:
    """Put a new LoRA into a model that has none and train it on images, without any safety in mind.

    Args:
        model: to train; the LoRA stays in it, see `remove`.
        examples: what it learns.
        steps: of AdamW, at a constant rate.
        batch: images a step.
        lr: learning rate.
        rank: of the LoRA on the attention layers.
        seed: of its weights, noise and timesteps.
    """
    from ...families.block_offload import bring_all
    from ...lora.adapter import attach

    bring_all(model.denoiser)
    adapter = attach(model.denoiser, rank=rank, alpha=rank, targets="attention", seed=seed)
    weights = adapter.parameters()
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.01)
    words = model.encode_prompts(list(examples.prompts))
    probes = Probes(model, examples, seed)
    for _ in range(steps):
        probe = probes.draw(batch)
        probe.error(model, words.map(itemgetter(probe.rows))).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return adapter


@dataclass(frozen=True)
class Relearn:
    """Fine-tune the tuned model on a few images: with the safety LoRA merged, a new LoRA learns them.

    Attributes:
        examples: harmful ones, or benign ones chosen without harmful intent.
        kind: which of both, for the name.
        steps: of AdamW.
        batch: images a step.
        lr: learning rate.
        rank: of the new LoRA.
        seed: of its weights, noise and timesteps.
    """

    examples: Examples
    kind: Literal["harmful", "benign"] = "harmful"
    steps: int = 20
    batch: int = 8
    lr: float = 2e-3
    rank: int = 16
    seed: int = 0

    @property
    def name(self) -> str:
        """See `Attack`."""
        return f"relearn_{self.kind}_{self.steps}"

    def __call__(self, target: Target, requests: Sequence[ImageRequest], sampling: Sampling) -> Attacked:
        """See `Attack`."""
        model = target.model
        with folded(model):
            try:
                fine_tune(
                    model,
                    self.examples,
                    steps=self.steps,
                    batch=self.batch,
                    lr=self.lr,
                    rank=self.rank,
                    seed=self.seed,
                )
                images = draw(model, requests, sampling)
            finally:
                remove(model)
        budget = Budget(self.steps, self.steps * self.batch, len(self.examples.images))
        return attacked(self.name, requests, [one.caption for one in requests], images, budget)


@dataclass(frozen=True)
class Stacked:
    """Apply an unrelated benign LoRA on top of the safety LoRA.

    Attributes:
        lora: its file.
        weight: its strength.
    """

    lora: Path
    weight: float = 1.0
    name: str = "stacked"

    def __call__(self, target: Target, requests: Sequence[ImageRequest], sampling: Sampling) -> Attacked:
        """See `Attack`."""
        from ...lora.adapter import attach_file

        model = target.model
        with folded(model):
            try:
                other, _ = attach_file(model.denoiser, self.lora)
                with other.scale(self.weight):
                    images = draw(model, requests, sampling)
            finally:
                remove(model)
        return attacked(self.name, requests, [one.caption for one in requests], images)
