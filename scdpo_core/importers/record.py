"""The record of an import in its preference folder: its progress, and the outcome of every row.

importing/NAME-1a2b3c4d/state.json     how far, and the counts; replaced after every few pairs
importing/NAME-1a2b3c4d/rows.jsonl     one line for each row: its pair, or why there is none
importing/NAME-1a2b3c4d/report.txt     the summary, once the import has ended; report.json for programs
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..io.files import write_json
from ..io.json_schema import SchemaError, read_json
from ..run_store.file_lock import try_exclusive
from ..types import ScdpoError
from .job import ImportJob

FOLDER = "importing"
EXAMPLES = 5
"""Rows that are named for each reason."""

_NO_NAME = re.compile(r"[^A-Za-z0-9]+")


@dataclass(frozen=True)
class Tally:
    """Rows of one kind.

    Attributes:
        count: how many.
        examples: the first of them: where they stand, and what is particular about them.
    """

    count: int = 0
    examples: tuple[str, ...] = ()

    def plus(self, example: str) -> Tally:
        """Count one more."""
        examples = self.examples if len(self.examples) >= EXAMPLES else (*self.examples, example[:300])
        return Tally(self.count + 1, examples)


@dataclass(frozen=True)
class State:
    """How far an import has come.

    Attributes:
        settings: that decide the pairs.
        fingerprint: of the source.
        format: of the source.
        next_record: the first record of the source that is not done.
        log_bytes: of rows.jsonl that belong to what is done.
        imported: pairs that were written.
        repeated: pairs that were in the folder already.
        skipped: by reason.
        notes: of pairs that were written otherwise than the source states, by what was changed.
        categories: pairs written by category.
        pending: ids of pairs that were being written when this was.
        finished: whether the source was read to its end.
    """

    settings: Mapping[str, str]
    fingerprint: str
    format: str
    next_record: int = 0
    log_bytes: int = 0
    imported: int = 0
    repeated: int = 0
    skipped: Mapping[str, Tally] = field(default_factory=dict)
    notes: Mapping[str, Tally] = field(default_factory=dict)
    categories: Mapping[str, int] = field(default_factory=dict)
    pending: tuple[str, ...] = ()
    finished: bool = False


@dataclass(frozen=True)
class Line:
    """The outcome of a row.

    Attributes:
        where: it stands.
        pair: id of its pair; '' where there is none.
        reason: why there is none; '' for a pair.
        detail: what is particular about it.
        weight: of the pair.
    """

    where: str
    pair: str = ""
    reason: str = ""
    detail: str = ""
    weight: float = 1.0


class ImportRecord:
    """The record of one source in one preference folder."""

    def __init__(self, job: ImportJob) -> None:
        """Name the record; nothing is read or written yet."""
        origin = str(job.source.absolute()) if job.source is not None else ""
        names = [origin, *(str(side.absolute()) for side in (job.chosen, job.rejected) if side is not None)]
        digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        stem = (job.source or job.chosen or job.output).stem
        slug = _NO_NAME.sub("-", stem).strip("-")[:40] or "source"
        self.home = job.output / FOLDER / f"{slug}-{digest}"
        self.log = self.home / "rows.jsonl"
        self.staging = self.home / "staging"

    def load(self) -> State | None:
        """Return the state of the last import; None where there was none.

        Raises:
            ScdpoError: the file is damaged.
        """
        path = self.home / "state.json"
        try:
            return read_json(path, State)
        except FileNotFoundError:
            return None
        except SchemaError as error:
            raise ScdpoError(
                f"{path} is damaged: {error}. Remove the folder {self.home} to read the source from its "
                "beginning; pairs that are there are not written twice."
            ) from error

    def begin(self, state: State) -> None:
        """Forget what belongs to no finished batch.

        Raises:
            OSError: the folder cannot be written to.
        """
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as stream:
            stream.truncate(min(state.log_bytes, stream.tell()))
        self.save(state)

    def save(self, state: State) -> None:
        """Write how far the import has come."""
        write_json(self.home / "state.json", asdict(state))

    def add(self, state: State, lines: Sequence[Line]) -> State:
        """Append lines to the log; returns the state that counts them, which is not saved yet."""
        with self.log.open("ab") as stream:
            for line in lines:
                stream.write(json.dumps(asdict(line)).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        return replace(counted(state, lines), log_bytes=size)

    def weights(self) -> dict[str, float]:
        """Return the weights of all pairs in the log that are not 1."""
        weights: dict[str, float] = {}
        with self.log.open("rb") as stream:
            for text in stream:
                line = json.loads(text)
                if line["pair"] and line["weight"] != 1:
                    weights[line["pair"]] = line["weight"]
        return weights

    def clean(self) -> None:
        """Remove files that are not needed once the source has been read."""
        shutil.rmtree(self.staging, ignore_errors=True)


def counted(state: State, lines: Sequence[Line]) -> State:
    """Return the state with lines of skipped rows counted by their reason."""
    skipped = dict(state.skipped)
    for line in lines:
        if line.reason:
            example = f"{line.where}: {line.detail}" if line.detail else line.where
            skipped[line.reason] = skipped.get(line.reason, Tally()).plus(example)
    return replace(state, skipped=skipped)


@contextmanager
def only_one(output: Path) -> Iterator[None]:
    """Keep other imports out of a preference folder while the block runs.

    Raises:
        ScdpoError: another one works there.
    """
    lock = output / FOLDER / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            free = try_exclusive(handle)
        except OSError:  # a disk without locks
            free = True
        if not free:
            raise ScdpoError(f"Another import is writing into {output}. Wait for it, or stop it first.")
        yield
    finally:
        os.close(handle)
