"""Run an import: it continues where it was interrupted and writes nothing twice."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..preferences.build import prompts_of, write_benign_prompts
from ..preferences.folder import BENIGN_PROMPTS
from ..preferences.weights import read_weights, write_weights
from ..types import Problem, ScdpoError
from .job import ImportJob, check
from .pairing import ReadyPair, files_of, find_errors, prepare, write
from .record import ImportRecord, Line, State, Tally, counted, only_one
from .report import write_report
from .rows import PairRow, RowError, Skipped, clean_prompt
from .sources import Entry, Source, open_source

BATCH = 16
"""Pairs that are decoded and written between two saves of the state."""

_MOST_CATEGORIES = 1000
TITLE = "Importing"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ImportOutcome:
    """How an import ended.

    Attributes:
        state: its counts.
        report: the file with the summary; None for a dry run.
        stopped: whether it was asked to stop before its end.
        limited: whether it ended at the limit.
        restarted: whether the source had changed, so that it was read from its beginning.
        left_over: prompts of harmless images without a partner, listed in benign_prompts.txt.
    """

    state: State
    report: Path | None = None
    stopped: bool = False
    limited: bool = False
    restarted: bool = False
    left_over: int = 0


def run_import(
    job: ImportJob,
    progress: Progress = lambda what, done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> ImportOutcome:
    """Import a source into a preference folder, or say what would be imported.

    Args:
        job: what to import.
        progress: called with the phase, the number of records done and the total.
        should_stop: asked after every few pairs.

    Raises:
        ScdpoError: the job or its source cannot be used, or the folder was begun with other settings.
        OSError: the folder cannot be written to.
    """
    check(job)
    if job.dry_run:
        with tempfile.TemporaryDirectory(prefix="scdpo-import-") as scratch:
            source = open_source(job, Path(scratch), None)
            state = State(job.settings, source.fingerprint, source.format)
            return _Run(job, source, None, progress, should_stop).go(state)
    record = ImportRecord(job)
    with only_one(job.output):
        source = open_source(job, record.home, record.staging)
        previous = record.load()
        initial = State(job.settings, source.fingerprint, source.format)
        if previous is not None:
            _check_settings(previous, initial, job, record)
        restarted = previous is not None and previous.fingerprint != initial.fingerprint
        state = initial if previous is None or restarted else previous
        if state.finished:
            return ImportOutcome(state, write_report(job, record, state))
        record.begin(state)
        outcome = _Run(job, source, record, progress, should_stop).go(state)
        return replace(outcome, restarted=restarted)


def _check_settings(previous: State, current: State, job: ImportJob, record: ImportRecord) -> None:
    changed = [
        f"{name}: {previous.settings.get(name, '') or 'none'} -> {value or 'none'}"
        for name, value in current.settings.items()
        if previous.settings.get(name, "") != value
    ]
    if changed:
        raise ScdpoError(
            f"{job.title} was imported into {job.output} with other settings ({'; '.join(changed)}). Give "
            f"the same ones to continue, or another --output. To import it again, remove {record.home}; the "
            "pairs stay."
        )


class _Run:
    """One process' work on an import; without a record nothing is written."""

    def __init__(
        self,
        job: ImportJob,
        source: Source,
        record: ImportRecord | None,
        progress: Progress,
        should_stop: Callable[[], bool],
    ) -> None:
        self._job, self._source, self._record = job, source, record
        self._progress, self._should_stop = progress, should_stop
        self._category = job.category or source.category

    def go(self, state: State) -> ImportOutcome:
        """Read on from where the state is."""
        stopped = limited = False
        for entries in self._batches(state.next_record):
            if self._should_stop():
                stopped = True
                break
            state, limited = self._batch(state, entries)
            self._progress(TITLE, state.next_record, max(self._source.total, state.next_record))
            if limited:
                break
        else:
            state = replace(state, finished=True)
            if state.next_record != self._source.total:  # which was an estimate
                self._progress(TITLE, state.next_record, state.next_record)
        return self._end(state, stopped, limited)

    def _batches(self, start: int) -> Iterator[list[Entry]]:
        """Yield records that together make about `BATCH` pairs, determined by `start` alone."""
        batch: list[Entry] = []
        pairs = 0
        for entry in self._source.entries(start):
            batch.append(entry)
            pairs += sum(isinstance(outcome, PairRow) for outcome in entry.outcomes)
            if pairs >= BATCH or len(batch) >= 64 * BATCH:
                yield batch
                batch, pairs = [], 0
        if batch:
            yield batch

    def _batch(self, state: State, entries: Sequence[Entry]) -> tuple[State, bool]:
        """Import the pairs of some records; says too whether the limit is reached."""
        lines: list[Line] = []
        ready: list[ReadyPair] = []
        limited, following = False, state.next_record
        for entry in entries:
            remaining = self._job.limit - state.imported - len(ready)
            if self._job.limit and remaining <= 0:
                limited = True
                break
            for outcome in entry.outcomes:
                if isinstance(outcome, Skipped):
                    lines.append(Line(outcome.where, "", outcome.reason, outcome.detail))
                    continue
                try:
                    ready.append(prepare(outcome, self._job, self._category, self._source.finder, entry.near))
                except RowError as error:
                    lines.append(Line(outcome.where, "", error.reason, error.detail))
            following = entry.number + 1
        state, written = self._write(state, ready)
        lines += written
        state = replace(state, next_record=following, pending=())
        if self._record is None:
            return counted(state, lines), limited
        state = self._record.add(state, lines)
        self._record.save(state)
        return state, limited

    def _write(self, state: State, ready: Sequence[ReadyPair]) -> tuple[State, list[Line]]:
        """Write pairs whose images are sound; in a dry run only count them."""
        if self._record is None:
            for pair in ready:
                state = _noted(state, pair)
            return state, []
        lines, sound = list[Line](), list[ReadyPair]()
        for pair, problem in zip(ready, find_errors(ready), strict=True):
            if problem is None:
                sound.append(pair)
            else:
                lines.append(Line(pair.row.where, "", problem.reason, problem.detail))
        files = [files_of(self._job.output, pair) for pair in sound]
        # Files that a killed process was writing belong to this import.
        new = {each.stem for each in files if not each.complete} | set(state.pending)
        state = replace(state, pending=tuple(sorted(new)))
        self._record.save(state)
        for each, pair in zip(files, sound, strict=True):
            if not each.complete:
                write(each, pair, self._job)
            if each.stem in new:
                new.remove(each.stem)
                state = _noted(state, pair)
            else:
                state = replace(state, repeated=state.repeated + 1)
            lines.append(Line(pair.row.where, each.stem, weight=pair.row.weight))
        for pair in ready:
            for image in (pair.chosen, pair.rejected):
                if image.staged:
                    image.path.unlink(missing_ok=True)
        return state, lines

    def _end(self, state: State, stopped: bool, limited: bool) -> ImportOutcome:
        left_over = list(dict.fromkeys(self._source.left_over)) if state.finished else []
        if self._record is None:
            return ImportOutcome(state, None, stopped, limited, left_over=len(left_over))
        self._record.clean()
        if state.finished:
            left_over = _clean(left_over)
            self._finish(left_over)
        self._record.save(state)
        report = write_report(self._job, self._record, state)
        return ImportOutcome(state, report, stopped, limited, left_over=len(left_over))

    def _finish(self, left_over: Sequence[str]) -> None:
        """Write what belongs to the folder as a whole, beside what other imports put there."""
        output = self._job.output
        if self._record is None:
            return
        if weights := self._record.weights():
            problems: list[Problem] = []
            weights_before = read_weights(output, problems)
            if problems:
                raise ScdpoError(f"{problems[0].path}: {problems[0].what}")
            write_weights(output, weights_before | weights)
        if left_over:
            path = output / BENIGN_PROMPTS
            before = prompts_of(path.read_text("utf-8-sig")) if path.is_file() else []
            write_benign_prompts(output, [*before, *left_over])


def _clean(prompts: Sequence[str]) -> list[str]:
    """Keep the prompts that a prompt list can hold: on one line, and not a comment."""
    return [words for prompt in prompts if (words := clean_prompt(prompt).lstrip("# "))]


def _noted(state: State, pair: ReadyPair) -> State:
    """Return the state with one more pair."""
    notes = dict(state.notes)
    for note in pair.notes:
        notes[note] = notes.get(note, Tally()).plus(pair.row.where)
    categories = Counter(state.categories)
    name = pair.row.category
    # Names are anybody's, and the state is written after every few pairs.
    categories[name if name in categories or len(categories) < _MOST_CATEGORIES else "(others)"] += 1
    return replace(state, imported=state.imported + 1, notes=notes, categories=dict(categories))
