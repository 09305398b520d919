"""Errors of the reference, kept on disk: two numbers for each draw of timestep and noise.

A draw follows from the run's seed, the pair's content and the draw's number, so that only its errors need
keeping; its noise is thrown again whenever it comes up. Whoever throws other noise (another processor or
version of torch) or computes on another kind of device finds nothing here and measures anew: what is found is
exact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..families.timesteps import TimestepLaw, Timesteps
from ..io.files import read_tensors, write_tensors
from ..types import ScdpoError
from .reference import NoiseSample

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..families.parameterisation import Weighting

# Part of every key: raise it when draws or errors come out differently.
_FORMAT = "scdpo-reference-1"


@dataclass(frozen=True)
class NoiseSeeds:
    """What decides a draw beside the pair.

    Attributes:
        seed: of the run.
        law: of the timesteps.
        timesteps: of the model.
    """

    seed: int
    law: TimestepLaw
    timesteps: Timesteps

    def throw(self, pair: str, number: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Timestep [1] and noise [C, h, w] of a pair's draw, on the CPU.

        Args:
            pair: the pair's key in the cache of latents.
            number: of the draw, from 0.
            shape: of its latents.
        """
        digest = hashlib.blake2b(f"{self.seed}/{number}/{pair}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") % 2**63)
        return self.timesteps.draw(1, self.law, generator), torch.randn(shape, generator=generator)

    def draws(
        self, which: Sequence[tuple[str, int]], shape: tuple[int, ...], device: torch.device
    ) -> NoiseSample:
        """The draws of B pairs, each given by its key and number, on the training device."""
        times, noise = zip(*(self.throw(pair, number, shape) for pair, number in which), strict=True)
        return NoiseSample.sent(torch.cat(times), torch.stack(noise), device)


@cache
def rng_fingerprint() -> str:
    """12 hexadecimal digits that change where this processor and this torch throw other numbers."""
    generator = torch.Generator().manual_seed(0)
    thrown = [torch.randn(shape, generator=generator) for shape in ((4, 64, 64), (3, 5))]
    thrown += [torch.rand(99, generator=generator), torch.randint(1000, (9,), generator=generator)]
    thrown.append(TimestepLaw().logit_normal(99, generator))
    digest = hashlib.sha256()
    for tensor in thrown:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:12]


def measured_by(
    model: LoadedModel,
    network: str,
    weighting: Weighting,
    dice: NoiseSeeds,
    at_once: int,
    settings: Sequence[str],
) -> str:
    """40 hexadecimal digits that change whenever the errors of a pair would.

    Args:
        model: the base.
        network: its `denoiser_id`.
        weighting: of the errors.
        dice: that are thrown.
        at_once: draws in a forward pass; how many there are decides how sums are rounded.
        settings: of the run that change how the network rounds or which sizes it is told.
    """
    card = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else ""
    facts = [
        _FORMAT, model.family, network, str(model.dtype), model.device.type, card, torch.__version__,
        settings, str(weighting), dice.seed, asdict(dice.law), dice.timesteps.count, at_once,
        rng_fingerprint(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:40]


class ReferenceCache:
    """A folder with one small safetensors file a pair. Several runs may share it."""

    def __init__(self, folder: Path, by: str) -> None:
        """Files in `folder`, which need not exist; `by` is `measured_by` of the run."""
        self._folder, self._by = folder, by

    def get(self, pair: str) -> Tensor:
        """[K, 2] errors of a pair's first K draws; K is 0 if there are none or the file is damaged.

        Raises:
            ScdpoError: the cache may not be read.
        """
        try:
            tensors, facts = read_tensors(self._file(pair))
        except PermissionError as error:
            raise ScdpoError(f"The cache {self._folder} cannot be read ({error}).") from error
        except (OSError, ValueError):
            return torch.empty(0, 2)
        errors = tensors.get("errors", torch.empty(0, 2))
        # Safetensors has no checksum: without ours a damaged disk would train towards noise.
        return errors if facts.get("checksum") == _checksum(errors) else torch.empty(0, 2)

    def put(self, pair: str, errors: Tensor) -> None:
        """Keep a pair's errors [K, 2]; afterwards its file is whole or unchanged.

        Raises:
            ScdpoError: the disk is full, or the folder cannot be written to.
        """
        facts = {"format": _FORMAT, "checksum": _checksum(errors)}
        try:
            write_tensors(self._file(pair), {"errors": errors}, facts)
        except (OSError, SafetensorError) as error:
            raise ScdpoError(
                f"The cache {self._folder} cannot be written to ({error}). Make room or give your user "
                "permission for it, put the cache elsewhere (--cache), or set --reference-draws 0."
            ) from error

    def _file(self, pair: str) -> Path:
        name = hashlib.sha256(f"{self._by}/{pair}".encode()).hexdigest()[:40]
        return self._folder / f"{name}.reference.safetensors"


def _checksum(errors: Tensor) -> str:
    raw = errors.detach().cpu().contiguous().numpy().tobytes()
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def extended(found: Tensor, wanted: int, at_once: int, measure: Callable[[range], Tensor]) -> Tensor:
    """[at least `wanted`, 2] errors of a pair's first draws, the missing ones measured.

    Draws are always measured in the same groups, so that rounding does not depend on how many there are.

    Args:
        found: [K, 2] what is there already; whole groups.
        wanted: draws, at least 1.
        at_once: draws in a group.
        measure: errors [at_once, 2] of a group of draws, on the CPU.

    Raises:
        ScdpoError: the reference's errors are no numbers.
    """
    parts = [found]
    for first in range(len(found), wanted, at_once):
        parts.append(measure(range(first, first + at_once)))
    errors = torch.cat(parts)
    if not torch.isfinite(errors).all():
        raise ScdpoError(
            "The base model gave values that are no numbers. Its file may be damaged, or half precision is "
            "too narrow for it: try --precision bf16 or fp32."
        )
    return errors
