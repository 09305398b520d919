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
"""Images in one call of the network."""
_SIDE_BY_SIDE = 4
"""The same for a single-threaded scorer per processor; larger batches exceed the CPU's cache."""


@dataclass(frozen=True)
class _Decoded:
    """A file after decoding in a thread.

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
        earlier: rows of earlier runs by path; an unchanged file is not opened again, and one
            whose content was scored under another name is not decoded again.
        every: which frames of animations count: 0 the first, n every n-th.
        batch: images in one call of the network.
        workers: decoding threads; by default one for each processor, at most 8.

    Attributes:
        reused: how many rows needed no network.
    """

    scorer: Scorer
    earlier: Mapping[str, Row] = field(default_factory=dict)
    every: int = 0
    batch: int = BATCH
    workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    reused: int = 0

    def __post_init__(self) -> None:
        """Sort earlier rows by content."""
        self._provenance = provenance(self.scorer)
        beside = self.scorer.one_thread() if isinstance(self.scorer, SideBySide) else None
        self._scorer, self._beside = beside or self.scorer, beside is not None
        usable = [row for row in self.earlier.values() if self._is_reusable(row)]
        self._by_path = {row.path: row for row in usable}
        self._by_content = {row.sha256: row for row in usable if row.sha256}
        self._claimed: set[str] = set()
        self._lock = threading.Lock()

    def rows(self, files: Sequence[Path]) -> Iterator[Row]:
        """Score files and yield a row for each, roughly in order, as soon as it is ready.

        Never raises because of a file: what cannot be decoded whole gives a row with its reason.

        Raises:
            ScdpoError: the scorer itself fails, on every image.
        """
        # Threads stay at most this far ahead, so that memory does not grow with the folder.
        ahead = self.workers + (1 if self.every else 2 * self.batch)
        decoding: deque[Future[_Decoded]] = deque()
        scoring: deque[tuple[list[_Decoded], Future[list[CostScore | str]]]] = deque()
        batch: list[_Decoded] = []
        finished: dict[str, Row] = {}
        followers: dict[str, list[Row]] = {}
        remaining = iter(files)
        with self._threads() as (decoders, network, lanes, size):
            for path in islice(remaining, ahead):
                decoding.append(decoders.submit(self._decode, path))
            while decoding or batch or scoring:
                if decoding:
                    looked = decoding.popleft().result()
                    for path in islice(remaining, 1):
                        decoding.append(decoders.submit(self._decode, path))
                    yield from self._sort_in(looked, batch, finished, followers)
                if batch and (not decoding or sum(len(item.frames) for item in batch) >= size):
                    views = [view for item in batch for _, view in item.frames]
                    scoring.append((batch, network.submit(self._try, views)))
                    batch = []
                # One batch more than are worked on is enough to keep the network busy.
                while scoring and (scoring[0][1].done() or len(scoring) > lanes or not decoding):
                    items, scores = scoring.popleft()
                    yield from self._score(items, scores.result(), finished, followers)

    @contextmanager
    def _threads(self) -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor, int, int]]:
        """Return the decoding pool, the scoring pool, its size, and the images per call.

        A scorer with single-threaded calls shares the decoders' threads, one for each processor, so
        that no thread waits. Any other has one thread, which calls it with whole batches.
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

    def _sort_in(
        self,
        looked: _Decoded,
        batch: list[_Decoded],
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
        batch: Sequence[_Decoded],
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
        """Return a score or an error for every view; a view that fails does not affect the others."""
        try:
            return [_finite(score) for score in self._scorer.score_prepared(views)]
        except ScdpoError as error:
            if len(views) == 1:
                return [str(error)]
        return [result for view in views for result in self._try([view])]

    def _decode(self, path: Path) -> _Decoded:
        row = Row(str(path), None, None, None, {}, self._provenance, None, every=self.every)
        try:
            if not path.is_file():
                what = "the link points nowhere." if path.is_symlink() else "this is not a file."
                return _Decoded(replace(row, error=f"{what} Put an image in its place."))
            facts = path.stat()
            row = replace(row, bytes=facts.st_size, mtime_ns=facts.st_mtime_ns)
            earlier_row = self._by_path.get(row.path)
            if earlier_row is not None and (earlier_row.bytes, earlier_row.mtime_ns) == (
                row.bytes,
                row.mtime_ns,
            ):
                return _Decoded(earlier_row)
            with path.open("rb") as stream:
                digest = hashlib.sha256()
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
                content = digest.hexdigest()
                row = replace(row, sha256=content)
                if (same := self._by_content.get(content)) is not None:
                    return _Decoded(_same_content(row, same))
                if not self._claim(content):
                    return _Decoded(row)
                stream.seek(0)
                with closing(open_frames(path, stream, self.every)) as frames:
                    return _Decoded(row, [(number, self.scorer.prepare(frame)) for number, frame in frames])
        except ImageError as error:
            return _refused(row, error.what)
        except OSError as error:
            return _refused(row, f"the file cannot be read ({error.strerror or error}).")
        # A file that breaks a decoder or a scorer's preparation must not end the run.
        except (Exception, MemoryError) as error:
            return _refused(row, f"the image could not be prepared ({type(error).__name__}: {error}).")

    def _claim(self, content: str) -> bool:
        """Return whether this thread is the first with this content, and so decodes it."""
        with self._lock:
            first = content not in self._claimed
            self._claimed.add(content)
            return first

    def _is_reusable(self, row: Row) -> bool:
        has_cost = row.cost is not None and math.isfinite(row.cost)
        return has_cost and row.scorer == self._provenance and row.every == self.every


def _finite(score: CostScore) -> CostScore | str:
    """Return the score, or what is wrong with it."""
    return score.problem or score


def _refused(row: Row, reason: str) -> _Decoded:
    return _Decoded(replace(row, error=reason))


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


def _with_scores(row: Row, by_frame: Sequence[tuple[int, CostScore | str]]) -> Row:
    """Return the row with the highest cost of its frames and views, or why there is none."""
    # A frame that could not be scored may be the harmful one.
    for _, score in by_frame:
        if isinstance(score, str):
            return replace(row, error=score)
    scored = [(number, score) for number, score in by_frame if isinstance(score, CostScore)]
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
