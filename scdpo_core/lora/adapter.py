"""The trainable LoRA inside a denoiser, by peft. Switched off, the same network is the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..types import LoraFile, ScdpoError
from .algorithms import ADAPTER, Kind, alpha_table, peft_config, start, to_canonical, to_peft, weights
from .file import load_lora
from .formats.keys import KeyNameError, text_module
from .resize import at_rank
from .targets import TargetPreset, is_convolution, module_ranks, target_modules
from .weights import by_module, kind_of, rank_of

__all__ = ["Kind", "LoraAdapter", "TargetPreset", "attach", "attach_file", "load_into", "target_modules"]


def attach(
    network: nn.Module,
    *,
    rank: int,
    alpha: float,
    targets: TargetPreset | Sequence[str],
    dropout: float = 0.0,
    seed: int,
    kind: Kind = "lora",
    ranks: Mapping[str, int] | None = None,
    owner: str = "",
) -> LoraAdapter:
    """Put an untrained LoRA into a network, which still answers exactly as before.

    The base is frozen. The LoRA's weights are float32 whatever the base is: AdamW steps of 1e-4 on
    weights near 1 vanish in 16 bits. Moving the network with `.to(dtype)` later would undo that.

    Args:
        network: a denoiser with modules of diffusers' names, or a text encoder of transformers'.
        rank: of the matrices.
        alpha: the change is up @ down * alpha / rank; where `ranks` says another rank, alpha follows it.
        targets: a preset, see `target_modules`, or paths of linear modules and convolutions.
        dropout: on the LoRA's input, only in training mode; it draws from the global random state.
        seed: of the down matrices (uniform within 1 / sqrt(inputs)). The global random state neither
            matters nor changes.
        kind: LoRA, DoRA, LoHa or LoKr.
        ranks: ranks of blocks that differ, see `targets.module_ranks`.
        owner: one of `keys.TEXT_ENCODERS` for a text encoder: how its canonical names begin.

    Raises:
        ValueError: the network has a LoRA already, or `targets` or `kind` names none there is.
        ScdpoError: there is nothing to train, or the kind does not take what is asked.
    """
    if any(isinstance(module, BaseTunerLayer) for module in network.modules()):
        raise ValueError("This network has a LoRA already.")
    if isinstance(targets, str):
        names = target_modules(network, cast(TargetPreset, targets))
    else:
        names = list(targets)
    live = {text_module(owner, name) if owner else name: name for name in names}
    own_ranks = module_ranks(list(live), rank, ranks or {})
    network.requires_grad_(False)
    devices = {p.device for p in network.parameters() if p.device.type == "cuda"}
    # peft draws first weights of its own; nobody else's dice may notice.
    with torch.random.fork_rng(devices=list(devices)):
        by_name = {live[module]: own for module, own in own_ranks.items()}
        scaled = {name: alpha if own == rank else alpha * own / rank for name, own in by_name.items()}
        inject_adapter_in_model(peft_config(kind, by_name, scaled, dropout), network, ADAPTER)

    layers: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(seed)
    for module in own_ranks:
        layer: Any = network.get_submodule(live[module])
        layers[module] = layer
        # peft's new dropout starts in training mode, even in a network that is not.
        layer.train(layer.base_layer.training)
        start(kind, layer, generator)
    return LoraAdapter(layers, max(own_ranks.values()), kind)


def attach_file(
    network: nn.Module,
    path: Path,
    texts: Mapping[str, nn.Module] | None = None,
    *,
    rank: int = 0,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[LoraAdapter, LoraFile]:
    """Put a finished LoRA into networks: exactly the modules that the file has, each with its rank.

    Args:
        network: a denoiser.
        path: the file. Networks that it has nothing for stay as they are.
        texts: text encoders by the beginning of their canonical names, one of `keys.TEXT_ENCODERS`.
        rank: that every module is brought to, see `resize.at_rank`; 0 leaves them as they are.
        dropout: see `attach`.
        seed: of what is added to the ranks.

    Raises:
        ScdpoError: as `load_lora` and `LoraAdapter.load_state`; also for different kinds in one file.
        ValueError: a network has a LoRA already.
    """
    networks = {"": network, **(texts or {})}
    live = {
        text_module(owner, name) if owner else name: (owner, name)
        for owner, part in networks.items()
        for name, module in part.named_modules()
        if is_convolution(module)
    }
    state, info = load_lora(path, live)
    if rank:
        state = at_rank(state, rank, seed)
    modules = by_module(state)
    kinds = {kind_of(parts) for parts in modules.values()}
    if len(kinds) > 1:
        raise ScdpoError(f"{path} has modules of different kinds ({', '.join(sorted(kinds))}).")
    kind = cast(Kind, kinds.pop())
    adapters = []
    for owner, part in networks.items():
        # A LoKr of two full factors has no rank; peft makes them full from half their size on.
        ranks = {
            module: rank_of(parts) or max(parts["lokr_w2"].shape[:2])
            for module, parts in modules.items()
            if live[module][0] == owner
        }
        if not ranks:
            continue
        highest = max(ranks.values())
        targets = [live[module][1] for module in ranks]
        adapters.append(
            attach(
                part,
                rank=highest,
                alpha=highest,
                targets=targets,
                dropout=dropout,
                seed=0,
                kind=kind,
                ranks=ranks,
                owner=owner,
            )
        )
    adapter = reduce(LoraAdapter.joined, adapters)
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
        rank: of its matrices, the highest where blocks differ.
        kind: LoRA, DoRA, LoHa or LoKr.
    """

    def __init__(self, layers: Mapping[str, Any], rank: int, kind: Kind = "lora") -> None:
        """Take over peft's layers, by module path.

        The list is made once: switching is one pass over it, a flag per layer, and never a search
        through the network.
        """
        self.modules = tuple(layers)
        self.rank = rank
        self.kind = kind
        self._layers = tuple(layers.values())
        self._flags = tuple(vars(layer) for layer in self._layers)
        self._on = True
        self._strength = 1.0

    @property
    def alpha(self) -> float:
        """Of the first module; a foreign file may give each module its own."""
        return float(alpha_table(self._layers[0])[ADAPTER])

    def parameters(self, wanted: Callable[[str], bool] = lambda module: True) -> list[nn.Parameter]:
        """The weights to train: float32, down and up of each module in turn (other kinds: their factors).

        Args:
            wanted: says of a module's path whether its weights are asked for.
        """
        return [
            weight
            for module, layer in zip(self.modules, self._layers, strict=True)
            if wanted(module)
            for weight in weights(self.kind, layer).values()
        ]

    def joined(self, other: LoraAdapter) -> LoraAdapter:
        """One adapter of this one's modules and those of another network's, switched and saved together.

        Raises:
            ValueError: they are of different kinds, or share a module's name.
        """
        if self.kind != other.kind or set(self.modules) & set(other.modules):
            raise ValueError("Only adapters of one kind and of different networks can be joined.")
        layers = dict(zip(self.modules + other.modules, self._layers + other._layers, strict=True))
        return LoraAdapter(layers, max(self.rank, other.rank), self.kind)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The whole network without the LoRA, bit for bit the base model, until the block ends.

        May be nested, and ends with an exception as it does without. Run backward outside of it:
        inside, the LoRA's weights take no gradient, and checkpointed activations would be
        recomputed without the LoRA.
        """
        was_on = self._on
        self._switch(False)
        try:
            yield
        finally:
            if was_on:
                self._switch(True)

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
            own = weights(self.kind, layer)
            for part, weight in own.items():
                state[f"{module}.{part}"] = to_canonical(part, weight)
            if rank_of(own) is not None:  # the alpha of a LoKr of two full factors means nothing
                state[f"{module}.alpha"] = torch.tensor(float(alpha_table(layer)[ADAPTER]))
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights and alphas; all of them, or none when one does not fit.

        Raises:
            KeyNameError: a weight for a module that this adapter lacks.
            ScdpoError: a module's weights are missing, or have another shape.
        """
        own = [weights(self.kind, layer) for layer in self._layers]
        expected = [
            f"{module}.{part}"
            for module, parts in zip(self.modules, own, strict=True)
            for part in (*parts, *(["alpha"] if rank_of(parts) is not None else []))
        ]
        given = {name: weight for name, weight in state.items() if not self._needless(name, state)}
        unknown = sorted(set(given) - set(expected))
        if unknown:
            raise KeyNameError(f"'{unknown[0]}' names no module of this LoRA: it trains other modules.")
        missing = [name for name in expected if name not in given]
        if missing:
            raise ScdpoError(f"'{missing[0]}' is missing: the LoRA was trained on other modules.")
        for module, parts in zip(self.modules, own, strict=True):
            for part, weight in parts.items():
                shape, needed = _bare(given[f"{module}.{part}"]), _bare(to_canonical(part, weight))
                if shape != needed:
                    raise ScdpoError(
                        f"'{module}.{part}' has shape {shape} and needs {needed}: "
                        "the LoRA has another rank or was made for another base model."
                    )
        for module, parts, layer in zip(self.modules, own, self._layers, strict=True):
            if f"{module}.alpha" in given:
                alpha_table(layer)[ADAPTER] = float(given[f"{module}.alpha"])
            with torch.no_grad():
                for part, weight in parts.items():
                    weight.copy_(to_peft(part, given[f"{module}.{part}"], weight))
        self._rescale(self._strength)

    @staticmethod
    def _needless(name: str, state: Mapping[str, Tensor]) -> bool:
        """Whether it is the alpha of a LoKr of two full factors, which some files have."""
        module, _, part = name.rpartition(".")
        return part == "alpha" and f"{module}.lokr_w1" in state and f"{module}.lokr_w2" in state

    def _switch(self, on: bool) -> None:
        # peft's own enable_adapters also walks through the weights of every layer to set what takes a
        # gradient; what a forward pass does not use takes none anyhow.
        for flags in self._flags:
            flags["_disable_adapters"] = not on
        self._on = on

    def _rescale(self, strength: float) -> None:
        for layer in self._layers:
            layer.set_scale(ADAPTER, strength)
        self._strength = strength


def _bare(weight: Tensor) -> tuple[int, ...]:
    """Shape without a 1x1 kernel: some trainers store such a convolution as a matrix."""
    shape = tuple(weight.shape)
    return shape[:2] if shape[2:] == (1, 1) else shape
