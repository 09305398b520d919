"""The trained part of the cost model, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from ..io.files import read_tensors, write_tensors
from ..io.json_schema import from_json, parse
from ..types import ScdpoError

FORMAT = "scdpo-cost"
VERSION = "1"
BOTTLENECK = 256
DROPOUT = 0.5


class CostFileError(ScdpoError):
    """A cost model file that cannot be used."""


class CostModel(nn.Module):
    """C(z) = w . LayerNorm(a) + b, with a = z + W2 GELU(W1 z) and z the L2-normalised image embedding.

    "Frozen CLIP encoder + learnable adapter" is FOUND in arXiv 2504.14290; this shape of adapter is
    RECONSTRUCTED. Column 0 of every output is the overall cost; column 1 + k is harm category k, whose
    head shares the adapter.

    W2 starts at zero: the adapter starts as the identity. W1 starts with unit variance: z has length 1, so
    W1 z then spreads over GELU's bend. With the usual small numbers it stays where GELU is a straight
    line, and the adapter learns little more than a linear probe does.

    Args:
        dim: length D of the embedding.
        categories: names of the harm categories that have a head.
        bottleneck: width of the adapter.
        dropout: of the adapter's hidden layer.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        dim: int,
        categories: tuple[str, ...] = (),
        bottleneck: int = BOTTLENECK,
        dropout: float = DROPOUT,
    ) -> None:
        """Make an untrained, uncalibrated model; draws from torch's global generator."""
        super().__init__()
        self.categories = categories
        heads = 1 + len(categories)
        self.down = nn.Linear(dim, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, dim, bias=False)
        nn.init.normal_(self.down.weight)
        nn.init.zeros_(self.up.weight)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.Linear(dim, heads)
        self.register_buffer("scale", torch.ones(heads))
        self.register_buffer("offset", torch.zeros(heads))

    @property
    def dim(self) -> int:
        """Length of the input embedding."""
        return self.down.in_features

    def raw(self, embedding: Tensor) -> Tensor:
        """Compute costs before calibration, as the losses take them: [N, D] -> [N, 1 + K]."""
        z = F.normalize(embedding, dim=-1)
        adapted = z + self.up(self.dropout(F.gelu(self.down(z))))
        costs: Tensor = self.heads(self.norm(adapted))
        return costs

    def forward(self, embedding: Tensor) -> Tensor:
        """Compute calibrated costs in log-odds, above 0 harmful: [N, D] -> [N, 1 + K]."""
        return self.scale * (self.raw(embedding) - self.offset)


@dataclass(frozen=True)
class CostFacts:
    """Metadata of a cost model file.

    Attributes:
        name: id of the scorer, which every score carries.
        encoder: id of the image encoder whose embeddings it was trained on.
        encoder_hash: hash of that encoder's weights and preprocessing.
        encoder_source: where that encoder was loaded from: a name such as 'micro', or a folder.
        training_set: hash of all training images and their labels.
        untrained: categories that were named but had too few images; scores hold None for them.
        calibration: a `Calibration` of the overall cost as a dict, and under 'categories' one by name.
        figures: held-out `Figures`, in the same layout.
    """

    name: str
    encoder: str
    encoder_hash: str
    encoder_source: str = ""
    training_set: str = ""
    untrained: tuple[str, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Names:
    """Category names in the metadata."""

    names: tuple[str, ...]


def save_cost(path: Path, model: CostModel, facts: CostFacts) -> None:
    """Write a cost model atomically, as safetensors with `facts` as metadata.

    Raises:
        CostFileError: the file cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "categories": json.dumps(model.categories),
        **{
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in asdict(facts).items()
        },
    }
    try:
        write_tensors(path, dict(model.state_dict()), metadata)
    except OSError as error:
        raise CostFileError(
            f"The cost model could not be written to {path} ({error.strerror or error}). "
            "Check that the disk has space and that you may write to that folder."
        ) from error


def is_cost_file(path: Path) -> bool:
    """Return whether a file's header marks it as a cost model; False where it cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as handle:
            return (handle.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def load_cost(path: Path) -> tuple[CostModel, CostFacts]:
    """Read what `save_cost` wrote; the model is in evaluation mode and frozen.

    Raises:
        CostFileError: the file is missing, damaged, a pickle, of another type, or from a newer version.
    """
    try:
        tensors, metadata = read_tensors(path)
    except (FileNotFoundError, ValueError) as error:
        raise CostFileError(str(error)) from error
    except OSError as error:
        raise CostFileError(f"{path} could not be read ({error.strerror or error}).") from error
    if metadata.get("format") != FORMAT:
        raise CostFileError(
            f"{path} is a safetensors file, but not a cost model. Choose a file that train_cost.py wrote."
        )
    if metadata.get("version") != VERSION:
        raise CostFileError(
            f"{path} has cost model format {metadata.get('version')}, this program reads {VERSION}. "
            "Update the program, or train the cost model again."
        )
    try:
        model = CostModel(
            tensors["down.weight"].shape[1],
            from_json({"names": parse(metadata["categories"])}, _Names).names,
            tensors["down.weight"].shape[0],
        )
        model.load_state_dict(tensors)
        facts = CostFacts(
            name=metadata["name"],
            encoder=metadata["encoder"],
            encoder_hash=metadata["encoder_hash"],
            encoder_source=metadata["encoder_source"],
            training_set=metadata["training_set"],
            untrained=from_json({"names": parse(metadata["untrained"])}, _Names).names,
            calibration=dict(parse(metadata["calibration"])),
            figures=dict(parse(metadata["figures"])),
        )
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise CostFileError(
            f"{path} is a cost model with missing or wrong parts. Copy it again, or train it again."
        ) from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise CostFileError(f"{path} contains NaN or infinite values. Train the cost model again.")
    return model.eval().requires_grad_(False), facts
