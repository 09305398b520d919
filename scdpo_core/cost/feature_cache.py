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
"""Images per write: an interrupted run loses fewer than this many."""


@dataclass(frozen=True)
class _Record:
    """Digests of a file's rows, from its metadata."""

    digests: tuple[str, ...]


@dataclass(frozen=True)
class FeatureCache:
    """A folder of embeddings by the content of the image.

    An embedding does not show its image, but it does prove that the image was there. The folder may be
    deleted at any time.

    Args:
        folder: made when something is added.
    """

    folder: Path

    def load(self, key: str) -> dict[str, Tensor]:
        """Return the cached embeddings [V, D], by the SHA-256 of the image's file.

        Args:
            key: identifies the encoder, the number of views and the seed.
        """
        embeddings: dict[str, Tensor] = {}
        for path in sorted((self.folder / key).glob("*.safetensors")):
            try:
                tensors, metadata = read_tensors(path)
                digests = from_json({"digests": parse(metadata["digests"])}, _Record).digests
                embeddings |= dict(zip(digests, tensors["embeddings"], strict=True))
            # A damaged file costs time, nothing else.
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return embeddings

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
                f"Embeddings could not be saved in {self.folder} ({error.strerror or error}). Choose another "
                "folder."
            ) from error
