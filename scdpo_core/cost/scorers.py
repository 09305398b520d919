"""Scorers: pictures in, `CostScore`s out.

Hosts import this module, so importing it needs nothing but torch, numpy, Pillow and safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from PIL import Image

from ..files import sha256_of
from ..micro.model import WEIGHTS
from ..types import CostScore, ScdpoError
from .model import CostFileError, load_cost

if TYPE_CHECKING:
    from .encoders import Encoder

MICRO_COST = WEIGHTS / "cost.safetensors"
"""The cost model of the embedded world."""


class Scorer(Protocol):
    """Anything that can say how harmful a picture is."""

    @property
    def id(self) -> str:
        """Its name; costs of scorers with different names do not compare."""

    @property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of its weights."""

    @property
    def categories(self) -> tuple[str, ...]:
        """The harm categories that its scores name, those it cannot judge (None) among them."""

    def score(self, pictures: Sequence[Image.Image]) -> list[CostScore]:
        """Score pictures of any size, in their order."""


class TrainedScorer:
    """A cost model that `train_cost.py` wrote.

    Args:
        file: the cost model.
        device: where the image encoder runs.
        encoder: the encoder, or where it is ('micro' or a folder); by default where it was at training,
            or a folder of its name beside `file`.

    Raises:
        CostFileError: the file cannot be used, or the encoder is not the one it was trained with.
        EncoderError: the encoder cannot be loaded.
    """

    def __init__(self, file: Path, device: str = "cpu", encoder: Encoder | str | Path | None = None) -> None:
        """Load the model and its encoder."""
        self._model, self.facts = load_cost(file)
        self.id = self.facts.name
        self.hash = sha256_of(file)[:12]
        self.categories = (*self._model.categories, *self.facts.untrained)
        self._encoder = self._find_encoder(file, device, encoder)
        if self._encoder.hash != self.facts.encoder_hash or self._encoder.dim != self._model.dim:
            raise CostFileError(
                f"{file} was trained with the image encoder '{self.facts.encoder}' "
                f"(hash {self.facts.encoder_hash[:12]}), but '{self._encoder.id}' has other weights "
                f"(hash {self._encoder.hash[:12]}), so its costs would mean nothing. Give the folder of the "
                "encoder it was trained with, or train the cost model again."
            )

    def _find_encoder(self, file: Path, device: str, encoder: Encoder | str | Path | None) -> Encoder:
        if encoder is not None and not isinstance(encoder, str | Path):
            return encoder
        from .encoders import load_encoder

        if encoder is not None:
            return load_encoder(encoder, device)
        beside = file.parent / self.facts.encoder.rsplit("/", 1)[-1]
        if self.facts.encoder_source != "micro" and beside.is_dir():
            return load_encoder(beside, device)
        source = self.facts.encoder_source
        if source != "micro" and not Path(source).expanduser().is_dir():
            raise CostFileError(
                f"{file} needs the image encoder '{self.facts.encoder}', which is no longer in {source}. "
                f"Put its folder at {beside}, or say where it is."
            )
        return load_encoder(source, device)

    @torch.no_grad()
    def score(self, pictures: Sequence[Image.Image]) -> list[CostScore]:
        """Score pictures of any size, in their order."""
        costs = self._model(self._encoder.encode(pictures)).tolist()
        return [CostScore(row[0], self._by_category(row[1:]), self.id, self.hash) for row in costs]

    def _by_category(self, costs: Sequence[float]) -> Mapping[str, float | None]:
        known: dict[str, float | None] = dict(zip(self._model.categories, costs, strict=True))
        return known | dict.fromkeys(self.facts.untrained)


def _micro(device: str) -> Scorer:
    return TrainedScorer(MICRO_COST, device)


SCORERS: dict[str, Callable[[str], Scorer]] = {"micro": _micro}
"""Every scorer that has a name, and what loads it onto a device."""


def load_scorer(spec: str | Path, device: str = "cpu", encoder: Encoder | str | Path | None = None) -> Scorer:
    """Load a scorer by its name in `SCORERS`, or a cost model from its file.

    Args:
        spec: a name, or the path of a cost model.
        device: where to run.
        encoder: for a file: its image encoder, if that has moved.

    Raises:
        ScdpoError: no scorer or file of that name (lists the names), or it cannot be loaded.
    """
    if str(spec) in SCORERS:
        return SCORERS[str(spec)](device)
    path = Path(spec).expanduser()
    if not path.is_file():
        raise ScdpoError(
            f"There is no scorer and no cost model file '{spec}'. "
            f"The scorers are: {', '.join(sorted(SCORERS))}. Or give a .safetensors file of train_cost.py."
        )
    return TrainedScorer(path, device, encoder)
