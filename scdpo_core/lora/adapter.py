"""The trainable LoRA inside a denoiser, by peft. Switched off, the same network is the reference."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..types import LoraFile, ScdpoError
from .file import load_lora
from .keys import PARTS, KeyNameError

TargetPreset = Literal["attention", "attention+ff", "all-linear"]

_NAME = "scdpo"
_ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)"
_FEED_FORWARD = r"ff\.net\.(0\.proj|2)"
_REST = r"proj_in|proj_out|time_emb_proj|(time|add)_embedding\.linear_[12]"
_PRESETS: dict[str, re.Pattern[str]] = {
    "attention": re.compile(rf"(.*\.)?({_ATTENTION})"),
    "attention+ff": re.compile(rf"(.*\.)?({_ATTENTION}|{_FEED_FORWARD})"),
    "all-linear": re.compile(rf"(.*\.)?({_ATTENTION}|{_FEED_FORWARD}|{_REST})"),
}


def target_modules(denoiser: nn.Module, targets: TargetPreset) -> list[str]:
    """Paths of the modules that a preset trains, in the network's order.

    attention: queries, keys, values and output of self- and cross-attention. attention+ff: the
    feed-forward layers beside them too. all-linear: also the projections into and out of each
    transformer (linear or 1x1 convolution) and the time embedding with its projection in every
    residual block. Convolutions that look at neighbours are in none: hosts read them, but older
    loaders do not, and they gain a safety LoRA little for their size.

    Raises:
        ValueError: there is no such preset.
        ScdpoError: the network has no such modules.
    """
    if targets not in _PRESETS:
        raise ValueError(f"There is no target preset '{targets}'; choose one of {', '.join(_PRESETS)}.")
    names = [
        name
        for name, module in denoiser.named_modules()
        if _PRESETS[targets].fullmatch(name) and _is_linear(module)
    ]
    if not names:
        raise ScdpoError(f"This model has no modules that a LoRA on '{targets}' could train.")
    return names


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )


def attach(
    denoiser: nn.Module,
    *,
    rank: int,
    alpha: float,
    targets: TargetPreset | Sequence[str],
    dropout: float = 0.0,
    seed: int,
) -> LoraAdapter:
    """Put an untrained LoRA into a network, which still answers exactly as before.

    The base is frozen. The LoRA's weights are float32 whatever the base is: AdamW steps of 1e-4 on
    weights near 1 vanish in 16 bits. Moving the network with `.to(dtype)` later would undo that.

    Args:
        denoiser: any network with modules of diffusers' names.
        rank: of the matrices.
        alpha: the change is up @ down * alpha / rank.
        targets: a preset, see `target_modules`, or paths of linear modules.
        dropout: on the LoRA's input, only in training mode; it draws from the global random state.
        seed: of the down matrices (uniform within 1 / sqrt(inputs)). The global random state neither
            matters nor changes.

    Raises:
        ValueError: the network has a LoRA already, or `targets` names no preset.
        ScdpoError: there is nothing to train.
    """
    if any(isinstance(module, BaseTunerLayer) for module in denoiser.modules()):
        raise ValueError("This network has a LoRA already.")
    if isinstance(targets, str):
        names = target_modules(denoiser, cast(TargetPreset, targets))
    else:
        names = list(targets)
    denoiser.requires_grad_(False)
    devices = {p.device for p in denoiser.parameters() if p.device.type == "cuda"}
    # peft draws first weights of its own; nobody else's dice may notice.
    with torch.random.fork_rng(devices=list(devices)):
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=dropout, bias="none")
        inject_adapter_in_model(config, denoiser, _NAME)

    layers: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        layer: Any = denoiser.get_submodule(name)
        layers[name] = layer
        # peft's new dropout starts in training mode, even in a network that is not.
        layer.train(layer.base_layer.training)
        down, up = layer.lora_A[_NAME].float().weight, layer.lora_B[_NAME].float().weight
        bound = 1 / math.sqrt(down[0].numel())
        start = torch.empty(down.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            down.copy_(start)
            up.zero_()
    return LoraAdapter(layers, rank)


def attach_file(denoiser: nn.Module, path: Path) -> tuple[LoraAdapter, LoraFile]:
    """Put a finished LoRA into a network: exactly the modules that the file has.

    Raises:
        ScdpoError: as `load_lora` and `LoraAdapter.load_state`; also for ranks that differ between modules.
        ValueError: the network has a LoRA already.
    """
    state, info = load_lora(path, [name for name, module in denoiser.named_modules() if _is_linear(module)])
    downs = {name.removesuffix(".down"): weight for name, weight in state.items() if name.endswith(".down")}
    if any(weight.shape[0] != info.rank for weight in downs.values()):
        raise ScdpoError(f"{path} has modules of different ranks, which cannot be trained on.")
    adapter = attach(denoiser, rank=info.rank, alpha=info.rank, targets=list(downs), seed=0)
    _load(adapter, state, path)
    return adapter, info


def load_into(adapter: LoraAdapter, path: Path) -> LoraFile:
    """Replace an adapter's weights by those of a file.

    Raises:
        ScdpoError: as `load_lora` and `LoraAdapter.load_state`. The adapter is then as it was.
    """
    state, info = load_lora(path, adapter.modules)
    _load(adapter, state, path)
    return info


def _load(adapter: LoraAdapter, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        adapter.load_state(state)
    except ScdpoError as error:
        raise type(error)(f"{path} cannot be used: {error}") from error


class LoraAdapter:
    """The LoRA in one network. Made by `attach` and `attach_file`.

    Attributes:
        modules: paths of the modules it changes.
        rank: of its matrices.
    """

    def __init__(self, layers: Mapping[str, Any], rank: int) -> None:
        """Take over peft's layers, by module path.

        The list is made once: switching is one pass over it, a flag per layer, and never a search
        through the network.
        """
        self.modules = tuple(layers)
        self.rank = rank
        self._layers = tuple(layers.values())
        self._on = True
        self._strength = 1.0

    @property
    def alpha(self) -> float:
        """Of the first module; a foreign file may give each module its own."""
        return float(self._layers[0].lora_alpha[_NAME])

    def parameters(self) -> list[nn.Parameter]:
        """The weights to train: float32, down and up of each module in turn."""
        return [
            weight
            for layer in self._layers
            for weight in (layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight)
        ]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The whole network without the LoRA, bit for bit the base model, until the block ends.

        May be nested, and ends with an exception as it does without. Run backward outside of it:
        inside, the LoRA's weights take no gradient, and checkpointed activations would be
        recomputed without the LoRA.
        """
        was_on = self._on
        wanted = [weight.requires_grad for weight in self.parameters()]
        self._switch(False)
        try:
            yield
        finally:
            if was_on:
                self._switch(True)
            for weight, gradient in zip(self.parameters(), wanted, strict=True):
                weight.requires_grad_(gradient)

    @contextmanager
    def scale(self, strength: float) -> Iterator[None]:
        """The network with the LoRA at another strength, until the block ends.

        Strengths do not multiply: the innermost counts. 0 is `disabled`, since adding a zero
        product is not free of rounding (-0.0, NaN). Inside `disabled` nothing changes.
        """
        if strength == 0:
            with self.disabled():
                yield
            return
        before = self._strength
        self._rescale(strength)
        try:
            yield
        finally:
            self._rescale(before)

    def state(self) -> dict[str, Tensor]:
        """Canonical name -> copy of the weight, on its device: what a file or a checkpoint needs."""
        state: dict[str, Tensor] = {}
        for module, layer in zip(self.modules, self._layers, strict=True):
            state[f"{module}.down"] = layer.lora_A[_NAME].weight.detach().clone()
            state[f"{module}.up"] = layer.lora_B[_NAME].weight.detach().clone()
            state[f"{module}.alpha"] = torch.tensor(float(layer.lora_alpha[_NAME]))
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights and alphas; all of them, or none when one does not fit.

        Raises:
            KeyNameError: a weight for a module that this adapter lacks.
            ScdpoError: a module's weights are missing, or have another shape.
        """
        expected = [f"{module}.{part}" for module in self.modules for part in PARTS]
        unknown = sorted(set(state) - set(expected))
        if unknown:
            raise KeyNameError(f"'{unknown[0]}' names no module of this LoRA: it trains other modules.")
        missing = [name for name in expected if name not in state]
        if missing:
            raise ScdpoError(f"'{missing[0]}' is missing: the LoRA was trained on other modules.")
        for module, layer in zip(self.modules, self._layers, strict=True):
            for part, weight in self._weights(layer):
                given = state[f"{module}.{part}"]
                if _bare(given) != _bare(weight):
                    raise ScdpoError(
                        f"'{module}.{part}' has shape {_bare(given)} and needs {_bare(weight)}: "
                        "the LoRA has another rank or was made for another base model."
                    )
        for module, layer in zip(self.modules, self._layers, strict=True):
            layer.lora_alpha[_NAME] = float(state[f"{module}.alpha"])
            with torch.no_grad():
                for part, weight in self._weights(layer):
                    weight.copy_(state[f"{module}.{part}"].reshape(weight.shape))
        self._rescale(self._strength)

    @staticmethod
    def _weights(layer: Any) -> tuple[tuple[str, nn.Parameter], ...]:
        return ("down", layer.lora_A[_NAME].weight), ("up", layer.lora_B[_NAME].weight)

    def _switch(self, on: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(on)
        self._on = on

    def _rescale(self, strength: float) -> None:
        for layer in self._layers:
            layer.set_scale(_NAME, strength)
        self._strength = strength


def _bare(weight: Tensor) -> tuple[int, ...]:
    """Shape without a 1x1 kernel: some trainers store such a convolution as a matrix."""
    shape = tuple(weight.shape)
    return shape[:2] if shape[2:] == (1, 1) else shape
