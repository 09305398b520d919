"""Score with a cost model that was trained here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..io.files import sha256_of
from ..types import CostScore
from .clip_encoders import find_tower
from .encoders import ENCODERS, TowerEncoder, load_encoder
from .model import CostFileError, CostModel, load_cost
from .protocol import Attended, Encoder, ScorerError, in_batches

_BATCH = 32


class TrainedScorer:
    """A cost model that `train_cost.py` wrote.

    Args:
        file: the cost model.
        device: where the image encoder runs.
        encoder: the encoder, or its name in `ENCODERS` or folder; by default where it was at
            training, or a folder of its name beside `file`.

    Attributes:
        model: the adapter and its heads, on the CPU.
        encoder: the frozen image encoder.

    Raises:
        CostFileError: the file cannot be used, or the encoder is not the one it was trained with.
        EncoderError: the encoder cannot be loaded.
    """

    model: CostModel
    encoder: Encoder

    def __init__(self, file: Path, device: str = "cpu", encoder: Encoder | str | Path | None = None) -> None:
        """Load the model and its encoder."""
        self.model, self.facts = load_cost(file)
        self.id = self.facts.name
        self.hash = sha256_of(file)[:12]
        self.categories = (*self.model.categories, *self.facts.untrained)
        self.encoder = self._find_encoder(file, device, encoder)
        if self.encoder.hash != self.facts.encoder_hash or self.encoder.dim != self.model.dim:
            raise CostFileError(
                f"{file} was trained with the image encoder '{self.facts.encoder}' "
                f"(hash {self.facts.encoder_hash[:12]}), but '{self.encoder.id}' has other weights "
                f"(hash {self.encoder.hash[:12]}), so its costs would be meaningless. Give the folder of the "
                "encoder it was trained with, or train the cost model again."
            )

    def _find_encoder(self, file: Path, device: str, encoder: Encoder | str | Path | None) -> Encoder:
        if encoder is not None:
            return load_encoder(encoder, device) if isinstance(encoder, str | Path) else encoder
        source = self.facts.encoder_source
        if source not in ENCODERS:
            beside = file.parent / self.facts.encoder.rsplit("/", 1)[-1]
            if beside.is_dir():
                return load_encoder(beside, device)
            if find_tower(source) is None:
                raise CostFileError(
                    f"{file} needs the image encoder '{self.facts.encoder}', which is no longer in {source}. "
                    f"Put its folder at {beside}, or give its path."
                )
        return load_encoder(source, device)

    def prepare(self, image: Image.Image) -> Tensor:
        """Prepare the image for the encoder."""
        return self.encoder.prepare(image)

    @torch.no_grad()
    def score_prepared(self, prepared: Sequence[Tensor]) -> list[CostScore]:
        """Score what `prepare` returned, in its order."""

        def costs(batch: Sequence[Tensor]) -> list[list[float]]:
            rows: list[list[float]] = self.model(self.encoder.encode_prepared(torch.stack([*batch]))).tolist()
            return rows

        return [self._score(row) for row in in_batches(prepared, _BATCH, costs)]

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        """Score images of any size, in their order."""
        return [self._score(row) for row in self.model(self.encoder.encode(images)).tolist()]

    def differentiable(self, category: str | None) -> Callable[[Tensor], Tensor] | None:
        """Return the cost as a function of pixels; None unless the encoder is an image tower."""
        column, encoder = self._column(category), self.encoder
        if not isinstance(encoder, TowerEncoder):
            return None
        return lambda pixels: self.model(encoder.embed(pixels).cpu())[:, column]

    def attentive(self, category: str | None) -> Callable[[Tensor], Attended] | None:
        """Return a function to `Attended`; None unless the encoder is a vision transformer."""
        column, encoder = self._column(category), self.encoder
        if not isinstance(encoder, TowerEncoder) or not encoder.grid:
            return None

        def attend(pixels: Tensor) -> Attended:
            embedding, attentions, tokens = encoder.attend(pixels)
            return Attended(self.model(embedding.cpu())[:, column], attentions, tokens, encoder.grid)

        return attend

    def _column(self, category: str | None) -> int:
        if category is None:
            return 0
        if category not in self.model.categories:
            raise ScorerError(f"The scorer '{self.id}' has no cost for '{category}'.")
        return 1 + self.model.categories.index(category)

    def _score(self, costs: Sequence[float]) -> CostScore:
        by_category: dict[str, float | None] = dict(zip(self.model.categories, costs[1:], strict=True))
        categories: Mapping[str, float | None] = by_category | dict.fromkeys(self.facts.untrained)
        return CostScore(costs[0], categories, self.id, self.hash)
