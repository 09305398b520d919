"""Summaries of a LoRA: its metadata in a few lines, and what it changes block by block."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..family_info import FAMILY_INFO
from ..types import LoraFile, ScdpoError
from .formats.layouts import block_of
from .formats.peft_settings import is_number
from .metadata import EVALUATION
from .weights import Parts, by_module, delta, kind_of, kronecker, low_rank, rank_of

_ORDER = (
    "text_encoder",
    "text_encoder_2",
    "down_blocks",
    "mid_block",
    "up_blocks",
    "transformer_blocks",
    "single_transformer_blocks",
    "noise_refiner",
    "context_refiner",
    "layers",
    "other",
)


_LINES = (
    ("scdpo_objective", "Objective"),
    ("scdpo_cost_model", "Cost model"),
    ("scdpo_train_pairs", "Preference pairs"),
    ("scdpo_train_steps", "Steps"),
    ("ss_sd_model_name", "Trained on"),
    ("scdpo_init_lora", "Continues"),
    ("scdpo_reference_lora", "Made on top of, and used together with"),
)


@dataclass(frozen=True)
class BlockFigures:
    """One block of the network.

    Attributes:
        block: see `layouts.block_of`.
        modules: how many of its modules change.
        ranks: the different ranks among them, ascending.
        norm: root of the sum of squares of the change of all its weights, at strength 1.
        share: of the whole LoRA's squared norm, 0..1.
    """

    block: str
    modules: int
    ranks: Sequence[int]
    norm: float
    share: float


@dataclass(frozen=True)
class Description:
    """A LoRA's file, described.

    Attributes:
        path: the file.
        family: its base model's, '' if nothing tells.
        kinds: of its modules: lora, dora, loha, lokr.
        ranks: the different ranks, ascending; a LoKr of full factors has none.
        alphas: the different alphas, ascending.
        dtypes: number formats of the weights.
        keys: number of tensors.
        modules: number of modules that change.
        norm: root of the sum of squares of the whole change at strength 1; a DoRA's before its rescaling.
        blocks: figures of each block, in the network's order.
        metadata: everything the file says of itself.
        notes: what reading it had to assume.
    """

    path: Path
    family: str
    kinds: Sequence[str]
    ranks: Sequence[int]
    alphas: Sequence[float]
    dtypes: Sequence[str]
    keys: int
    modules: int
    norm: float
    blocks: Sequence[BlockFigures]
    metadata: Mapping[str, str]
    notes: Sequence[str] = ()


def describe(state: Mapping[str, Tensor], file: LoraFile) -> Description:
    """Describe a loaded LoRA.

    Args:
        state: canonical name -> weight, of `load_lora`.
        file: what `load_lora` said with it.

    Raises:
        ScdpoError: the change has numbers beyond all measure.
    """
    modules = by_module(state)
    squares = {module: squared_norm(parts) for module, parts in modules.items()}
    total = sum(squares.values())
    if not math.isfinite(total):
        raise ScdpoError(
            f"{file.path} changes the model beyond all measure: the training fell apart. Use an earlier file."
        )
    blocks: dict[str, list[str]] = {}
    for module in modules:
        blocks.setdefault(block_of(module), []).append(module)
    figures = []
    for block in sorted(blocks, key=_place):
        inside = blocks[block]
        square = sum(squares[module] for module in inside)
        figures.append(
            BlockFigures(
                block,
                len(inside),
                _distinct(rank_of(modules[module]) for module in inside),
                square**0.5,
                square / total if total else 0.0,
            )
        )
    return Description(
        path=file.path,
        family=file.family,
        kinds=sorted({kind_of(parts) for parts in modules.values()}),
        ranks=_distinct(rank_of(parts) for parts in modules.values()),
        alphas=sorted({float(parts["alpha"]) for parts in modules.values() if "alpha" in parts}),
        dtypes=sorted(
            {
                str(tensor.dtype).removeprefix("torch.")
                for name, tensor in state.items()
                if name[-6:] != ".alpha"
            }
        ),
        keys=file.keys,
        modules=len(modules),
        norm=total**0.5,
        blocks=figures,
        metadata=file.metadata,
        notes=file.notes,
    )


def as_text(found: Description) -> str:
    """A description as lines for people."""
    rows = {
        "file": str(found.path),
        "base model": FAMILY_INFO[found.family].title if found.family else "not known",
        "kind": ", ".join(found.kinds),
        "rank": _range(found.ranks),
        "alpha": _range(found.alphas),
        "numbers": ", ".join(found.dtypes),
        "keys": f"{found.keys}, for {found.modules} modules",
        "norm": f"{found.norm:.4g}",
    }
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {text}" for name, text in rows.items()]
    lines.append(f"\n{'block':<28} modules  rank      norm  share")
    for block in found.blocks:
        figures = f"{block.modules:>7}  {_range(block.ranks):<6} {block.norm:>7.4g}  {block.share:>5.1%}"
        lines.append(f"{block.block:<28} {figures}")
    if found.metadata:
        lines.append("\nIt says of itself:")
    for name, text in sorted(found.metadata.items()):
        lines.append(f"  {name[:100]}: {text if len(text) <= 100 else f'{text[:97]}...'}")
    return "\n".join(lines)


def squared_norm(parts: Parts) -> float:
    """The sum of squares of a module's change at strength 1, without the change itself where there is a way.

    Of a Kronecker product it is the product of its factors' own. Of a product of factors of low rank it needs
    their [rank, rank] products only: |up @ down|^2 = trace((up^T up) (down down^T)).
    """
    if kind_of(parts) == "lokr":
        first, second = kronecker(parts)
        return float(first.square().sum() * second.square().sum())
    factors = low_rank(parts)
    if factors is None or len(factors[1]) > min(len(factors[0]), factors[1].shape[1]):
        return float(delta(parts).double().square_().sum())
    up, down = factors
    return max(0.0, float(((up.T @ up) * (down @ down.T)).sum()))


def _distinct(ranks: Iterable[int | None]) -> list[int]:
    return sorted({rank for rank in ranks if rank is not None})


def _range(numbers: Sequence[float]) -> str:
    if not numbers:
        return "none"
    return f"{numbers[0]:g}" if len(numbers) == 1 else f"{numbers[0]:g}-{numbers[-1]:g}"


def _place(block: str) -> tuple[int, int]:
    name, _, number = block.partition(".")
    return _ORDER.index(name), int(number or 0)


def card_of(file: LoraFile) -> str:
    """Name, base model and rank, then what it was trained against and how it did, where the file says so."""
    metadata = file.metadata
    title = metadata.get("modelspec.title") or metadata.get("ss_output_name") or file.path.stem
    base = (
        FAMILY_INFO[file.family].title
        if file.family in FAMILY_INFO
        else "a base model that the file does not name"
    )
    # A LoKr of two full factors has no rank.
    size = f"rank {file.rank}" if file.rank else "of full rank (LoKr)"
    lines = [f"{title}: for {base}, {size}."]
    if text := metadata.get("modelspec.description"):
        lines.append(text)
    if against := _categories(metadata.get("scdpo_categories", "")):
        lines.append(f"Trained against: {against}.")
    lines += _figures(metadata.get(EVALUATION, ""))
    lines += [f"{name}: {metadata[key]}" for key, name in _LINES if metadata.get(key)]
    if not any(key.startswith("scdpo_") for key in metadata):
        lines.append("It was not made by this trainer, so it does not say what it was trained against.")
    return "\n".join([*lines, *file.notes])


def _categories(text: str) -> str:
    """Of a JSON list of names, or an object of names and numbers of pairs."""
    value = _json(text)
    if isinstance(value, dict):
        return ", ".join(f"{name or 'not said'} ({number})" for name, number in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else ""


def _figures(text: str) -> list[str]:
    """Of an object: name -> a number, or name -> {"before": ..., "after": ...}."""
    value = _json(text)
    if not isinstance(value, dict):
        return []
    lines = []
    for name, figure in value.items():
        shown = str(name).replace("_", " ").capitalize()
        if isinstance(figure, dict) and {"before", "after"} <= figure.keys():
            lines.append(f"{shown}: {_figure(figure['before'])} before, {_figure(figure['after'])} after.")
        elif is_number(figure):
            lines.append(f"{shown}: {_figure(figure)}.")
    return lines


def _figure(value: Any) -> str:
    return f"{value:.3g}" if is_number(value) else str(value)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
