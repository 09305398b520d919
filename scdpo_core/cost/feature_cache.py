"""Embeddings of images on disk, so that an image is encoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..io.files import read_tensors, write_tensors
from ..io.json_schema import from_json, parse
from ..types import ScdpoError

SHARD = 512
"""Images after which new embeddings are written; an interrupted run loses fewer."""


@dataclass(frozen=True)
class _Record:
    """What a file says of its rows."""

    digests: tuple[str, ...]


@dataclass(frozen=True)
class FeatureCache:
    """A folder of embeddings by the content of the image.

    They are numbers from which no image can be seen, but which tell that an image was there; the folder
    may be removed at any time.

    Args:
        folder: made when something is added.
    """

    folder: Path

    def load(self, key: str) -> dict[str, Tensor]:
        """The embeddings [V, D] that are known, by the SHA-256 of the image's file.

        Args:
            key: tells the encoder, the number of views and the seed.
        """
        found: dict[str, Tensor] = {}
        for path in sorted((self.folder / key).glob("*.safetensors")):
            try:
                tensors, metadata = read_tensors(path)
                digests = from_json({"digests": parse(metadata["digests"])}, _Record).digests
                found |= dict(zip(digests, tensors["embeddings"], strict=True))
            # A damaged file costs time, nothing else.
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def add(self, key: str, embeddings: Mapping[str, Tensor]) -> None:
        """Write new embeddings, atomically.

        Raises:
            ScdpoError: the folder cannot be written to.
        """
        if not embeddings:
            return
        digests = list(embeddings)
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        try:
            write_tensors(
                self.folder / key / f"{name}.safetensors",
                {"embeddings": torch.stack([embeddings[digest] for digest in digests])},
                {"digests": json.dumps(digests)},
            )
        except OSError as error:
            raise ScdpoError(
                f"Embeddings could not be kept in {self.folder} ({error.strerror or error}). Name another "
                "folder."
            ) from error
