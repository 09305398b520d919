"""What a training step needs in memory, found out without needing it.

The step is run on tensors that have a shape and a place but no contents (torch's fake tensors), and what
would be alive at any moment is added up. Weights, optimiser and averages are counted.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..config.settings import TrainSettings
from ..config.terms import TermName, term_weights
from ..families.block_offload import bytes_saved, offload_of
from ..types import PairBatch
from .batches import TrainBatch
from .reference import NoiseSample
from .step import Measure
from .term_batches import TermRows

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..lora.adapter import LoraAdapter

_STATES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16, "adafactor": 0}
"""Bytes that an optimiser keeps for each weight. Adafactor's rows and columns are next to nothing."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the training device.

    Attributes:
        weights: of the frozen denoiser, but for blocks that wait in main memory, of which two are there at a
            time; and of the text encoders if some train along.
        lora: its weights, gradients, averages and what the optimiser keeps.
        step: what a forward and backward pass need on top, at their peak.
    """

    weights: int
    lora: int
    step: int

    @property
    def total(self) -> int:
        """All of it, at the peak; the device's own libraries (some 0.5 GB of CUDA's) are not in it."""
        return self.weights + self.lora + self.step


def memory_of(
    model: LoadedModel,
    adapter: LoraAdapter,
    settings: TrainSettings,
    batch: PairBatch,
    mode: FakeTensorMode | None = None,
) -> Memory:
    """What training needs with these settings.

    Text encoders that train along count with their weights.

    Args:
        model: with the LoRA attached.
        adapter: that LoRA.
        settings: of the run.
        batch: any of the run's; only its shapes count.
        mode: that the model's weights were made in, if they are fake too.
    """
    own = settings.optim
    step = peak_of_step(model, adapter, settings, batch, mode)
    parameters = adapter.parameters()
    count = sum(weight.numel() for weight in parameters)
    # Master, gradient, states and the average.
    lora = count * (4 + 4 + _STATES[own.optimizer] + (4 if own.ema else 0))
    trained = {id(weight) for weight in parameters}
    networks = [model.denoiser, *(model.live_texts() if settings.lora.train_text else [])]
    frozen = [part for network in networks for part in _held(network) if id(part) not in trained]
    offload = offload_of(model.denoiser)
    saved = 0 if offload is None else bytes_saved(model.denoiser, offload.count)
    return Memory(sum(map(_bytes, frozen)) - saved, lora, step)


def peak_of_step(
    model: LoadedModel,
    adapter: LoraAdapter,
    settings: TrainSettings,
    batch: PairBatch,
    mode: FakeTensorMode | None = None,
) -> int:
    """Most bytes alive at once while a batch is measured for the objective and goes back to the LoRA.

    Every pass that the objective asks for is made: DUO looks at pure noise as well. Where text encoders train
    along, the prompts are encoded first.

    Args:
        model: with the LoRA attached, in training mode or not.
        adapter: that LoRA.
        settings: of the run; they say how many pairs go at a time.
        batch: any of the run's; only its shapes count.
        mode: see `memory_of`.
    """
    # Late, since peft takes seconds to import.
    from .adapters import encode_prompts_with_grad

    live = encode_prompts_with_grad(model, settings.lora)
    fake = mode or FakeTensorMode(allow_non_fake_inputs=True)
    with unchanged(model.denoiser), fake, Alive() as alive:
        model.denoiser.train()
        portion = _empty(model, settings, batch)
        found = Measure(model, adapter, lambda _: portion, settings.objective, None, live, settings.terms)(0)
        parts = [term.loss for term in found.terms]
        if found.pair is not None:
            prior = found.pair.prior
            parts += [found.pair.errors.policy, *([] if prior is None else [prior])]
        loss = torch.stack([part.sum() for part in parts]).sum()
        del found, parts
        torch.autograd.grad(loss, adapter.parameters(), allow_unused=True)
    # Gradients are counted with the LoRA; here they are among what is alive at the end.
    gradients = sum(_bytes(weight) for weight in adapter.parameters())
    return max(0, int(alive.peak) - gradients)


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Make a network forget what it keeps for later calls while the block runs, such as tables of positions.

    Otherwise tensors without contents would meet real ones in the next step.
    """
    kept = {module: dict(vars(module)) for module in network.modules()}
    try:
        yield
    finally:
        for module, values in kept.items():
            vars(module).update(values)
        for cls in {type(module) for module in kept}:
            for function in vars(cls).values():
                for cell in getattr(function, "__closure__", None) or ():
                    if hasattr(cell.cell_contents, "cache_clear"):
                        cell.cell_contents.cache_clear()


def _empty(model: LoadedModel, settings: TrainSettings, like: PairBatch) -> TrainBatch:
    """A batch without contents, with as many rows of the terms as there may be."""
    pairs, device, shape = settings.optim.batch_size, model.device, like.latents.shape[2:]
    # Sizes are given to every family: SDXL's model would make some, and keep them beyond this block.
    known = dataclasses.replace(
        like.conditioning.map(lambda part: _several(part, pairs, device)),
        sizes=torch.empty((pairs, 6), device=device),
        # Nothing is known of lengths here: every prompt counts as the longest.
        attention_mask=None,
    )
    one, two = torch.empty(pairs, device=device), torch.empty((pairs, 2), device=device)
    latents = torch.empty((pairs, 2, *shape), device=device)
    batch = PairBatch(latents, known, one, one, two, ("",) * pairs)
    return TrainBatch(batch, _draws(model, pairs, shape), rows=_rows(model, settings, batch))


def _rows(model: LoadedModel, settings: TrainSettings, batch: PairBatch) -> tuple[TermRows, ...]:
    """Rows without contents: all pairs are of the kind that needs most, and few benign prompts are known."""
    own, pairs = settings.terms, len(batch.weight)
    weights = term_weights(settings.objective.objective, own, benign_prompts=0)
    over_pairs: list[TermName] = [name for name in weights if name not in ("keep_empty", "keep_text")]
    counts: dict[TermName, int] = {
        "keep_empty": math.ceil(pairs * own.keep_empty_share),
        "keep_text": math.ceil(pairs * own.keep_text_share),
    }
    counts = {name: count for name, count in counts.items() if name in weights}
    if over_pairs:
        # A pair is harmful or benign: it brings a row of one of these.
        counts[over_pairs[0]] = pairs
    asked = {"redirect": 0, "esd": 2, "gem": 2}
    made = []
    for term, rows in counts.items():
        known = batch.conditioning.map(partial(_several, rows=rows, device=model.device))
        images = torch.empty((rows, *batch.latents.shape[2:]), device=model.device)
        made.append(
            TermRows(
                term,
                tuple(range(rows)),
                images,
                _draws(model, rows, images.shape[1:]),
                known,
                ("",) * rows,
                torch.empty(rows, device=model.device),
                reference=(known,) * asked.get(term, 1),
                target=images if term == "redirect" else None,
            )
        )
    return tuple(made)


def _draws(model: LoadedModel, rows: int, shape: torch.Size) -> NoiseSample:
    times = model.timesteps.last(torch.empty(rows, device=model.device, dtype=_times_of(model)))
    return NoiseSample(times, torch.empty((rows, *shape), device=model.device))


def _several(part: Tensor, rows: int, device: torch.device) -> Tensor:
    return torch.empty((rows, *part.shape[1:]), dtype=part.dtype, device=device)


class Alive(TorchDispatchMode):
    """Adds up the storages that are born while it is on, until they die.

    Attributes:
        now: bytes alive.
        peak: most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let an operation happen, and look at what it made."""
        result = func(*args, **(kwargs or {}))
        # A view of a weight looks new here, for the weight itself is no fake tensor; the schema knows better.
        if all(output.alias_info is None for output in func._schema.returns):
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and _storage(leaf)._cdata not in self._known:
                    self._born(_storage(leaf))
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        size, number = storage.nbytes(), storage._cdata
        self._known.add(number)
        self.now += size
        self.peak = max(self.peak, self.now)

        def dies() -> None:
            self._known.discard(number)
            self.now -= size

        weakref.finalize(storage, dies)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _held(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _times_of(model: LoadedModel) -> torch.dtype:
    return torch.float32 if model.prediction == "flow" else torch.int64
