"""Scoring the pairs with a cost model, and what the combined reward makes of the artist's labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..config.settings import DataSettings
from ..cost.protocol import Scorer
from ..cost.scorers import load_scorer
from ..io.files import write_json
from ..io.images import open_image
from ..io.json_schema import SchemaError, read_json
from ..preferences.relabel import relabel
from ..types import CostScore, LabelledPair, PreferencePair, RelabelReport, ScdpoError, ScoredPair
from .distributed import ProcessGroup


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


_AT_ONCE, _BYTES_AT_ONCE = 32, 2**28  # images scored together, and how much memory they may take


@dataclass(frozen=True)
class Labelling:
    """What came of it.

    Attributes:
        pairs: those that training uses.
        report: what became of every pair.
        scorer: id of the cost model.
        scorer_hash: of its weights.
    """

    pairs: list[LabelledPair]
    report: RelabelReport
    scorer: str
    scorer_hash: str

    @property
    def changed(self) -> bool:
        """Whether any pair was swapped or left out."""
        return bool(self.report.swapped or self.report.dropped)

    @property
    def summary(self) -> str:
        """How many pairs were kept, swapped and left out, in a sentence."""
        own = self.report
        total = len(own.kept) + len(own.swapped) + len(own.dropped)
        # What comes before the colon is the kind of reason.
        kinds = Counter(reason.partition(":")[0] for _, reason in own.dropped)
        why = ", ".join(f"{count} {reason}" for reason, count in kinds.most_common())
        return (
            f"Of {total} pairs the cost model keeps {len(own.kept)}, swaps {len(own.swapped)} and leaves out "
            f"{len(own.dropped)}{f' ({why})' if why else ''}."
        )

    def write(self, path: Path) -> None:
        """Write what became of every pair.

        Raises:
            ScdpoError: no pair is left to train on; the file is written all the same.
        """
        write_json(path, {"scorer": self.scorer, **asdict(self.report)})
        if not self.pairs:
            raise ScdpoError(
                "The cost model left no pair to train on: all of them are near ties, or both images are "
                f"harmful. {path} says why for each. Lower --tie, use --both-unsafe order, or train without "
                "a cost model (--cost-model none)."
            )


def label_pairs(
    pairs: Sequence[PreferencePair],
    settings: DataSettings,
    device: str,
    progress: Callable[[int, int], None],
    known: Path | None = None,
) -> Labelling:
    """Score both images of every pair and relabel.

    Args:
        pairs: as the artist ordered them.
        settings: which cost model, and how costs count.
        device: where the cost model runs.
        progress: is told how many pairs of how many are scored.
        known: file that keeps the costs for a resumed run; None for none.

    Raises:
        ScdpoError: the cost model cannot be loaded, or an image cannot be opened.
    """
    scorer = load_scorer(settings.cost_model, device)
    costs = KnownCosts(known, scorer)
    try:
        scores = _scored(pairs, scorer, costs, progress)
    finally:
        costs.write()  # of an interrupted run, too
    scored = [ScoredPair(pair, scores[pair.chosen], scores[pair.rejected]) for pair in pairs]
    labelled, report = relabel(
        scored,
        safety_weight=settings.safety_weight,
        tie=settings.tie,
        both_unsafe=settings.both_unsafe,
        soft_tau=settings.soft_tau,
    )
    return Labelling(labelled, report, scorer.id, scorer.hash)


def _scored(
    pairs: Sequence[PreferencePair], scorer: Scorer, costs: KnownCosts, progress: Callable[[int, int], None]
) -> dict[Path, CostScore]:
    """The cost of every image, of which only as many are open at once as memory allows."""
    scores: dict[Path, CostScore] = {}
    waiting: list[tuple[Path, Image.Image]] = []

    def flush() -> None:
        for (path, _), score in zip(waiting, scorer.score([image for _, image in waiting]), strict=True):
            scores[path] = score
            costs.put(path, score)
        waiting.clear()

    for done, pair in enumerate(pairs):
        for path in (pair.chosen, pair.rejected):
            found = costs.get(path)
            if found is not None:
                scores[path] = found
                continue
            waiting.append((path, open_image(path)))
            used = sum(3 * image.width * image.height for _, image in waiting)
            if len(waiting) >= _AT_ONCE or used >= _BYTES_AT_ONCE:
                flush()
                progress(done, len(pairs))
    if waiting:
        flush()
    progress(len(pairs), len(pairs))
    return scores


def sample_scorer(settings: DataSettings) -> Scorer | None:
    """The cost model for the samples that are drawn; None where the run has none.

    It stays on the CPU: samples are few, and a GPU's memory is the training's.

    Raises:
        ScdpoError: it cannot be loaded.
    """
    return None if settings.cost_model == "none" else load_scorer(settings.cost_model, "cpu")


def share_labels(
    pairs: Sequence[PreferencePair],
    score: Callable[[Sequence[PreferencePair]], list[LabelledPair]],
    team: ProcessGroup,
) -> list[LabelledPair]:
    """Score pairs in the first process and give every process its labels.

    One process decides, because another GPU's rounding could turn a near tie.
    """
    if team.size == 1:
        return score(pairs)
    rows = serialize_labels(score(pairs), pairs) if team.rank == 0 else []
    return deserialize_labels(team.broadcast(rows), pairs)


def serialize_labels(labelled: Sequence[LabelledPair], pairs: Sequence[PreferencePair]) -> list[list[Any]]:
    """Labels as plain values, for another process that has the same pairs."""
    places = {pair.id: place for place, pair in enumerate(pairs)}
    return [
        [
            places[one.pair.id],
            one.chosen_cost,
            one.rejected_cost,
            one.swapped,
            one.weight,
            one.label,
            one.reason,
        ]
        for one in labelled
    ]


def deserialize_labels(rows: Sequence[Sequence[Any]], pairs: Sequence[PreferencePair]) -> list[LabelledPair]:
    """The labels that `serialize_labels` wrote down."""
    labelled = []
    for place, chosen_cost, rejected_cost, swapped, weight, label, reason in rows:
        pair = pairs[place]
        if swapped:
            pair = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
        labelled.append(LabelledPair(pair, chosen_cost, rejected_cost, swapped, weight, label, reason))
    return labelled
