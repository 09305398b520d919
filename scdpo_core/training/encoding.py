"""Encoding the pairs, each by one process of the team and kept for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..preferences.cache import PairCache, build_cache
from ..types import CachedPair, LabelledPair
from .team import Team

if TYPE_CHECKING:
    from ..families.base import LoadedModel


def encode(
    labelled: Sequence[LabelledPair],
    model: LoadedModel,
    size: tuple[int, int] | None,
    folder: Path,
    team: Team,
    progress: Callable[[int, int], None],
) -> list[CachedPair]:
    """All pairs as the denoiser sees them, on the CPU, in the order given.

    Args:
        labelled: the pairs.
        model: encodes pictures and prompts.
        size: (width, height) in pixels; None: the model's own.
        folder: of the cache. Where processes do not share it, each encodes all pairs.
        team: the processes that train together.
        progress: is told how many of how many pairs are ready.

    Raises:
        ScdpoError: see `build_cache`.
    """
    cache = PairCache(folder)
    if team.size > 1:
        build_cache(labelled[team.rank :: team.size], model, size, cache, progress)
        team.wait()
    return build_cache(labelled, model, size, cache, progress)
