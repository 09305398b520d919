"""What a cost model said of a run's images, so that a resumed run need not score them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..cost.protocol import Scorer
from ..io.files import write_json
from ..io.json_schema import SchemaError, read_json
from ..types import CostScore


@dataclass(frozen=True)
class _Record:
    """The file."""

    scorer: str
    scorer_hash: str
    costs: Mapping[str, float] = field(default_factory=dict)


class KnownCosts:
    """Costs by image, kept in a file; of an image that has been written since, nothing is known."""

    def __init__(self, path: Path | None, scorer: Scorer) -> None:
        """Read what the file says of this very scorer; a missing, damaged or other one says nothing.

        Args:
            path: the file; None keeps nothing.
            scorer: whose costs.
        """
        self._path, self._scorer = path, scorer
        self._costs = {} if path is None else _read(path, scorer)
        self._fresh = False

    def get(self, image: Path) -> CostScore | None:
        """What is known of an image."""
        cost = self._costs.get(_key(image))
        return None if cost is None else CostScore(cost, {}, self._scorer.id, self._scorer.hash)

    def put(self, image: Path, score: CostScore) -> None:
        """Remember what an image costs."""
        if score.finite:
            self._costs[_key(image)] = score.value
            self._fresh = True

    def write(self) -> None:
        """Write the file, if there is anything new."""
        if self._path is not None and self._fresh:
            own = self._scorer
            write_json(self._path, asdict(_Record(own.id, own.hash, self._costs)))
            self._fresh = False


def _key(image: Path) -> str:
    found = image.stat()
    return f"{image.as_posix()}|{found.st_size}|{found.st_mtime_ns}"


def _read(path: Path, scorer: Scorer) -> dict[str, float]:
    try:
        record = read_json(path, _Record)
    except (OSError, SchemaError):
        return {}
    return dict(record.costs) if (record.scorer, record.scorer_hash) == (scorer.id, scorer.hash) else {}
