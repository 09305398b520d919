"""LoRA files made of LoRA files: in other names, of a lower rank, several as one. Inputs stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..types import LoraFile, ScdpoError
from .file import base_metadata, load_lora, write_lora
from .formats.keys import Dialect
from .merge import Method, common_family, merge
from .metadata import EVALUATION, as_metadata
from .resize import Resized, resize


@dataclass(frozen=True)
class Target:
    """What is written.

    Attributes:
        path: the .safetensors file.
        dialect: of its names.
        family: of the base model, where the input does not tell; '' to believe the input.
        dtype: of the weights; None for what comes of the work.
        overwrite: whether the file may be there already.
    """

    path: Path
    dialect: Dialect = "kohya"
    family: str = ""
    dtype: torch.dtype | None = None
    overwrite: bool = False


def convert_file(source: Path, target: Target) -> LoraFile:
    """Write the same LoRA with the names that another program reads.

    Raises:
        ScdpoError: the input is no LoRA or cannot be told in those names, or the output is refused.
    """
    _require(target, [source])
    state, file = load_lora(source)
    return _write(target, state, file.family, file.metadata, file.notes)


def resize_file(
    source: Path, target: Target, *, rank: int | None = None, energy: float | None = None
) -> tuple[LoraFile, Resized]:
    """Write the nearest LoRA of a lower rank; see `resize`.

    Raises:
        ScdpoError: as `convert_file`.
    """
    _require(target, [source])
    state, file = load_lora(source)
    result = resize(state, rank=rank, energy=energy)
    facts = {"resized_from": file.path.name}
    return _write_new(target, result, file.family, file.metadata, facts, file.notes), result


def merge_files(
    sources: Sequence[Path],
    target: Target,
    *,
    weights: Sequence[float] = (),
    method: Method = "sum",
    rank: int | None = None,
    energy: float | None = None,
) -> tuple[LoraFile, Resized]:
    """Write several LoRAs as one; see `merge`.

    Args:
        sources: the files.
        target: what to write.
        weights: the strength of each; none for 1 everywhere.
        method: as `merge`.
        rank: as `merge`.
        energy: as `merge`.

    Raises:
        ScdpoError: as `convert_file`; or they are for different base models, or not as many as the weights.
    """
    _require(target, sources)
    strengths = weights or [1.0] * len(sources)
    if len(strengths) != len(sources):
        raise ScdpoError(f"There are {len(sources)} LoRAs and {len(strengths)} weights; give each its own.")
    states, files = zip(*(load_lora(path) for path in sources), strict=True)
    family = target.family or common_family(files)
    result = merge(states, strengths, method=method, rank=rank, energy=energy)
    told = [
        {"file": file.path.name, "weight": weight, "hash": file.metadata.get("sshs_model_hash", "")}
        for file, weight in zip(files, strengths, strict=True)
    ]
    facts = {"merged_from": told, "merge_method": method}
    notes = [f"{file.path.name}: {note}" for file in files for note in file.notes]
    return _write_new(target, result, family, base_metadata(family), facts, notes), result


def _require(target: Target, sources: Sequence[Path]) -> None:
    output = target.path
    try:
        if any(output.resolve() == path.resolve() for path in sources):
            raise ScdpoError(f"{output} is an input, and inputs are never changed. Choose another output.")
        if output.exists() and not target.overwrite:
            raise ScdpoError(f"There is already {output}. Choose another name, or say --overwrite.")
    except OSError as error:
        raise ScdpoError(f"{output} cannot be written ({error.strerror or error}).") from error


def _write_new(
    target: Target,
    result: Resized,
    family: str,
    metadata: Mapping[str, str],
    facts: Mapping[str, object],
    notes: Sequence[str],
) -> LoraFile:
    """Write weights that are not those of the input any more, and say so in the file."""
    state = result.state
    if target.dtype is not None:
        state = {
            name: tensor if name.endswith(".alpha") else tensor.to(target.dtype)
            for name, tensor in state.items()
        }
    ranks = [tensor.shape[0] for name, tensor in state.items() if name.endswith(".down")]
    own = {
        "ss_output_name": target.path.stem,
        "modelspec.title": target.path.stem,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(ranks)),
        "ss_network_alpha": str(float(max(ranks))),
        **as_metadata(facts),
    }
    # The figures were those of the input's weights.
    kept = {name: text for name, text in metadata.items() if name not in ("ss_network_args", EVALUATION)}
    return _write(target, state, family, {**kept, **own}, notes)


def _write(
    target: Target,
    state: Mapping[str, Tensor],
    family: str,
    metadata: Mapping[str, str],
    notes: Sequence[str],
) -> LoraFile:
    """Write it; what is told of the result includes what reading the inputs had to assume."""
    written = write_lora(
        target.path, state, dialect=target.dialect, family=target.family or family, metadata=metadata
    )
    return replace(written, notes=notes)
