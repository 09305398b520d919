"""Scoring many files: decoding in threads beside the network, each content once, one row for every file."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..cost.protocol import Scorer, SideBySide, provenance
from ..io.alpha_views import worst
from ..io.image_frames import open_frames
from ..io.images import ImageError
from ..types import CostScore, ScdpoError
from .table import Row

BATCH = 16
"""Images that the network looks at together."""
_SIDE_BY_SIDE = 4
"""The same where each processor has a batch of its own; larger ones fall out of its cache."""


@dataclass(frozen=True)
class _Looked:
    """What a thread made of a file.

    Attributes:
        row: a row without a cost yet; with an error, or complete, when no network is needed.
        frames: numbers and prepared images of the frames to score; empty when `row` is complete or when
            another file with the same content has them.
    """

    row: Row
    frames: Sequence[tuple[int, Any]] = ()


@dataclass
class FolderRun:
    """Scores files.

    Args:
        scorer: what scores.
        known: rows of earlier runs by path; a file that did not change since is not opened again, and one
            whose content was scored under another name is not decoded again.
        every: which frames of animations count: 0 the first, n every n-th.
        batch: images in one call of the network.
        workers: decoding threads; by default one for each processor, at most 8.

    Attributes:
        reused: how many rows needed no network.
    """

    scorer: Scorer
    known: Mapping[str, Row] = field(default_factory=dict)
    every: int = 0
    batch: int = BATCH
    workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    reused: int = 0

    def __post_init__(self) -> None:
        """Sort earlier rows by content."""
        self._provenance = provenance(self.scorer)
        beside = self.scorer.one_thread() if isinstance(self.scorer, SideBySide) else None
        self._scorer, self._beside = beside or self.scorer, beside is not None
        usable = [row for row in self.known.values() if self._still_right(row)]
        self._by_path = {row.path: row for row in usable}
        self._by_content = {row.sha256: row for row in usable if row.sha256}
        self._claimed: set[str] = set()
        self._lock = threading.Lock()

    def rows(self, files: Sequence[Path]) -> Iterator[Row]:
        """Score files; a row for each, roughly in their order, as soon as it is known.

        Never raises because of a file: what cannot be decoded whole gives a row with its reason.

        Raises:
            ScdpoError: the scorer itself fails, on every image.
        """
        # Threads stay at most this far ahead, so that memory does not grow with the folder.
        ahead = self.workers + (1 if self.every else 2 * self.batch)
        waiting: deque[Future[_Looked]] = deque()
        scoring: deque[tuple[list[_Looked], Future[list[CostScore | str]]]] = deque()
        batch: list[_Looked] = []
        finished: dict[str, Row] = {}
        followers: dict[str, list[Row]] = {}
        left = iter(files)
        with self._threads() as (decoders, network, lanes, size):
            for path in islice(left, ahead):
                waiting.append(decoders.submit(self._look, path))
            while waiting or batch or scoring:
                if waiting:
                    looked = waiting.popleft().result()
                    for path in islice(left, 1):
                        waiting.append(decoders.submit(self._look, path))
                    yield from self._take(looked, batch, finished, followers)
                if batch and (not waiting or sum(len(item.frames) for item in batch) >= size):
                    views = [view for item in batch for _, view in item.frames]
                    scoring.append((batch, network.submit(self._try, views)))
                    batch = []
                # One batch more than are worked on is enough to keep the network busy.
                while scoring and (scoring[0][1].done() or len(scoring) > lanes or not waiting):
                    items, scores = scoring.popleft()
                    yield from self._score(items, scores.result(), finished, followers)

    @contextmanager
    def _threads(self) -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor, int, int]]:
        """Return the decoding pool, the scoring pool, its size, and the images per call.

        A scorer that likes to be called side by side shares the decoders' threads, one for each processor, so
        that nobody waits. Any other has a thread of its own, which calls it with whole batches.
        """
        decoders = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        network = decoders if self._beside else ThreadPoolExecutor(1, thread_name_prefix="score")
        try:
            if self._beside:
                yield decoders, network, self.workers, min(self.batch, _SIDE_BY_SIDE)
            else:
                yield decoders, network, 1, self.batch
        finally:
            for pool in (decoders, network):
                pool.shutdown(wait=True, cancel_futures=True)

    def _take(
        self,
        looked: _Looked,
        batch: list[_Looked],
        finished: dict[str, Row],
        followers: dict[str, list[Row]],
    ) -> Iterator[Row]:
        row = looked.row
        content = row.sha256
        if looked.frames:
            batch.append(looked)
        elif row.cost is not None:
            self.reused += 1
            yield row
        elif row.error is not None:
            yield from self._settle(row, finished, followers)
        # The same content as another file's, whose thread may have been the later one to start.
        elif content in finished:
            self.reused += 1
            yield _same_content(row, finished[content])
        elif content is not None:
            followers.setdefault(content, []).append(row)

    def _score(
        self,
        batch: Sequence[_Looked],
        scores: Sequence[CostScore | str],
        finished: dict[str, Row],
        followers: dict[str, list[Row]],
    ) -> Iterator[Row]:
        each = iter(scores)
        for looked in batch:
            by_frame = [(number, next(each)) for number, _ in looked.frames]
            yield from self._settle(_with_scores(looked.row, by_frame), finished, followers)

    def _settle(self, row: Row, finished: dict[str, Row], followers: dict[str, list[Row]]) -> Iterator[Row]:
        """Yield a row that is final now, and those of files with the same content that waited for it."""
        yield row
        if row.sha256 is not None:
            finished[row.sha256] = row
            for follower in followers.pop(row.sha256, []):
                self.reused += 1
                yield _same_content(follower, row)

    def _try(self, views: Sequence[Any]) -> list[CostScore | str]:
        """Return a score or a reason for every view; one that upsets the scorer costs the others nothing."""
        try:
            return [_finite(score) for score in self._scorer.score_prepared(views)]
        except ScdpoError as error:
            if len(views) == 1:
                return [str(error)]
        return [result for view in views for result in self._try([view])]

    def _look(self, path: Path) -> _Looked:
        row = Row(str(path), None, None, None, {}, self._provenance, None, every=self.every)
        try:
            if not path.is_file():
                what = "the link leads nowhere." if path.is_symlink() else "this is not a file."
                return _Looked(replace(row, error=f"{what} Put an image in its place."))
            facts = path.stat()
            row = replace(row, bytes=facts.st_size, mtime_ns=facts.st_mtime_ns)
            before = self._by_path.get(row.path)
            if before is not None and (before.bytes, before.mtime_ns) == (row.bytes, row.mtime_ns):
                return _Looked(before)
            with path.open("rb") as stream:
                digest = hashlib.sha256()
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
                content = digest.hexdigest()
                row = replace(row, sha256=content)
                if (same := self._by_content.get(content)) is not None:
                    return _Looked(_same_content(row, same))
                if not self._claim(content):
                    return _Looked(row)
                stream.seek(0)
                with closing(open_frames(path, stream, self.every)) as frames:
                    return _Looked(row, [(number, self.scorer.prepare(frame)) for number, frame in frames])
        except ImageError as error:
            return _refused(row, error.what)
        except OSError as error:
            return _refused(row, f"the file cannot be read ({error.strerror or error}).")
        # Whatever a file does to a decoder or to a scorer's preparation, the run goes on.
        except (Exception, MemoryError) as error:
            return _refused(row, f"the image could not be prepared ({type(error).__name__}: {error}).")

    def _claim(self, content: str) -> bool:
        """Return whether this thread is the first with such content, and so has to decode it."""
        with self._lock:
            first = content not in self._claimed
            self._claimed.add(content)
            return first

    def _still_right(self, row: Row) -> bool:
        known = row.cost is not None and math.isfinite(row.cost)
        return known and row.scorer == self._provenance and row.every == self.every


def _finite(score: CostScore) -> CostScore | str:
    """Return the score, or what is wrong with it."""
    return score.problem or score


def _refused(row: Row, reason: str) -> _Looked:
    return _Looked(replace(row, error=reason))


def _same_content(row: Row, other: Row) -> Row:
    return replace(
        row,
        cost=other.cost,
        band=other.band,
        categories=other.categories,
        details=other.details,
        frame=other.frame,
        error=other.error,
    )


def _with_scores(row: Row, found: Sequence[tuple[int, CostScore | str]]) -> Row:
    """Return the row with the highest cost of its frames and views, or why there is none."""
    # One that could not be judged may be the harmful one.
    for _, score in found:
        if isinstance(score, str):
            return replace(row, error=score)
    scored = [(number, score) for number, score in found if isinstance(score, CostScore)]
    number, _ = max(scored, key=lambda pair: pair[1].value)
    highest = worst([score for _, score in scored])
    return replace(
        row,
        cost=highest.value,
        band=highest.band,
        categories=highest.categories,
        details=highest.details,
        frame=number,
    )
