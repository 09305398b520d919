"""The whole job: find images, score them, write the tables, and sort, stamp or explain the files."""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..cost.attribution import Method
from ..cost.protocol import Scorer, provenance
from ..io.discover import Found, find_images
from ..types import Problem, ScdpoError
from .gallery import write_gallery
from .heatmaps import write_heatmaps
from .run import BATCH, FolderRun
from .sort_files import file_away, leads_out, over
from .table import Row, RowFile, write_csv, write_parquet
from .write_back import STAMPS, StampError

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ScoreJob:
    """What to score and what to do with the scores.

    Attributes:
        places: folders and files.
        jsonl: rows as JSON lines; also the memory by which the next run scores only what is new.
        csv: a table.
        parquet: the same table.
        html: a gallery.
        every: of animations, score every n-th frame; 0 for the first one alone.
        batch: images in one call of the network.
        over: the cost above which images are moved or copied.
        move_to: folder for those, or None.
        copy_to: folder for copies of those, or None.
        write_back: a key of `write_back.STAMPS`, or None.
        heatmaps: folder for heatmaps of the images above `over`, or None.
        method: of the heatmaps, see `cost.attribution.explain`.
        rescore: score everything again.
        rank: number of this process.
        processes: number of processes that share the work by the hash of a file's path, so that
            a file that appears or disappears meanwhile leaves no gap.
    """

    places: Sequence[Path]
    jsonl: Path | None = None
    csv: Path | None = None
    parquet: Path | None = None
    html: Path | None = None
    every: int = 0
    batch: int = BATCH
    over: float = 0.0
    move_to: Path | None = None
    copy_to: Path | None = None
    write_back: str | None = None
    heatmaps: Path | None = None
    method: Method = "occlusion"
    rescore: bool = False
    rank: int = 0
    processes: int = 1

    @property
    def part(self) -> Path | None:
        """The rows of this process alone, where several share the work."""
        return self.jsonl if self.processes == 1 else _shard(self.jsonl, self.rank)


@dataclass(frozen=True)
class JobResult:
    """Result of a job.

    Attributes:
        rows: one for every file, sorted by path.
        reused: number of rows that needed no network.
        repeats: further names that led to files already listed.
        filed: rows of the moved or copied images, with their new paths.
        problems: what could not be written back, moved or copied, and why.
        notes: folders that were passed over.
        unwritten: files whose score was to be written back and was not.
    """

    rows: Sequence[Row]
    reused: int = 0
    repeats: int = 0
    filed: Sequence[Row] = ()
    problems: Sequence[Problem] = ()
    notes: Sequence[Problem] = ()
    unwritten: Sequence[Path] = ()


def check(job: ScoreJob) -> None:
    """Find what is wrong with a job before any work is done.

    Raises:
        ScdpoError: says what.
    """
    if job.processes > 1 and job.jsonl is None:
        raise ScdpoError("Several processes share one JSONL file. Name it with --jsonl.")
    if job.move_to is not None and job.copy_to is not None:
        raise ScdpoError("Images can be moved or copied, not both.")
    for folder in (job.move_to, job.copy_to, job.heatmaps):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise ScdpoError(f"{folder} is a file. Give a folder.")


def score_files(
    job: ScoreJob, scorer: Scorer, progress: Progress = lambda what, done, total: None
) -> JobResult:
    """Score this process's share of the files. Rows are on the disk as soon as they are known.

    Raises:
        ScdpoError: the JSONL file cannot be used.
    """
    images = _find(job)
    files = [path for path in images.files if _rank_of(path, job.processes) == job.rank]
    memory = RowFile.open(job.part) if job.part is not None else None
    earlier = _earlier_rows(job, memory)
    run = FolderRun(scorer, {} if job.rescore else earlier, job.every, job.batch)
    others = [] if memory is None else _of_other_scorers(memory, scorer)
    rows = [] if job.rank else list(_unreachable(images.problems, scorer))
    total = len(rows) + len(files)
    try:
        for row in run.rows(files):
            rows.append(row)
            if memory is not None and memory.rows.get(row.path) != row:
                memory.add(row)
            progress("scoring", len(rows), total)
    finally:
        if memory is not None:
            memory.close()
    ordered = sorted(rows, key=lambda row: row.path)
    return JobResult(ordered, run.reused, images.repeats, notes=[*images.notes, *others])


def _of_other_scorers(memory: RowFile, scorer: Scorer) -> list[Problem]:
    """Note scores in the file by another scorer, which stay until their files are scored again."""
    scorer_id = provenance(scorer)
    counts = Counter(
        row.scorer for row in memory.rows.values() if row.cost is not None and row.scorer != scorer_id
    )
    return [
        Problem(
            memory.path,
            f"{count:,} of its scores are by another scorer, '{name}'. Costs of different scorers cannot be "
            f"compared, so these files are scored again by '{scorer_id}'.",
            fatal=False,
        )
        for name, count in counts.items()
    ]


def gather(job: ScoreJob) -> JobResult:
    """Return the rows of all processes, once all of them are done.

    Their own files stay until `finish` has written the rows of all of them.

    Raises:
        ScdpoError: a process's file is missing or damaged.
    """
    shards = []
    for rank in range(job.processes):
        file = _shard(job.jsonl, rank)
        if not file.exists():
            raise ScdpoError(
                f"{file} is missing, and with it the scores of process {rank}. Check that all machines share "
                "the disk with the JSONL file."
            )
        shards.append(RowFile.read(file))
    # A part also remembers, from an interrupted run, files that are gone now or another process's.
    files = _find(job)
    rows = [shards[_rank_of(path, job.processes)].get(str(path)) for path in files.files]
    rows += [shards[0].get(str(problem.path)) for problem in files.problems]
    ordered = sorted((row for row in rows if row is not None), key=lambda row: row.path)
    return JobResult(ordered, notes=files.notes)


def explain(
    job: ScoreJob, result: JobResult, scorer: Scorer, progress: Progress = lambda what, done, total: None
) -> JobResult:
    """Write heatmaps of the images over the bound into the job's folder.

    Raises:
        OSError: the folder cannot be written to.
    """
    assert job.heatmaps is not None
    chosen = list(over(result.rows, job.over))
    problems = write_heatmaps(
        chosen, scorer, job.heatmaps, job.method, lambda done, total: progress("heatmaps", done, total)
    )
    return replace(result, problems=[*result.problems, *problems])


def finish(
    job: ScoreJob, result: JobResult, progress: Progress = lambda what, done, total: None
) -> JobResult:
    """Write scores back, move or copy files, and write the tables and the gallery, as the job requests.

    Raises:
        ScdpoError: pyarrow is missing.
        OSError: a table cannot be written.
    """
    rows = {row.path: row for row in result.rows}
    memory = RowFile.open(job.jsonl) if job.jsonl is not None and _touches_files(job) else None
    # A killed run has noted what it has done so far.
    note = (lambda row: None) if memory is None else memory.add
    try:
        unwritten = list(_write_back(job, rows, note, progress))
        problems = [*result.problems, *unwritten]
        filed: Sequence[Row] = ()
        target = job.move_to or job.copy_to
        if target is not None:
            move = job.move_to is not None
            chosen = sorted(over(list(rows.values()), job.over), key=lambda row: row.path)
            record = note if move else lambda row: None
            sorted_files = file_away(chosen, target, job.places, move=move, filed=record)
            filed, problems = sorted_files.done, [*problems, *sorted_files.problems]
            if move:
                stayed = {problem.path for problem in sorted_files.problems}
                moved = [row.path for row in chosen if Path(row.path) not in stayed]
                rows = {path: row for path, row in rows.items() if path not in moved}
                rows |= {row.path: row for row in filed}
    finally:
        if memory is not None:
            memory.close()
    ordered = [rows[path] for path in sorted(rows)]
    _write_tables(job, ordered, progress)
    failed_paths = [problem.path for problem in unwritten]
    return replace(result, rows=ordered, filed=filed, problems=problems, unwritten=failed_paths)


def _touches_files(job: ScoreJob) -> bool:
    return job.write_back is not None or job.move_to is not None


def _write_back(
    job: ScoreJob, rows: dict[str, Row], note: Callable[[Row], None], progress: Progress
) -> Iterator[Problem]:
    """Write scores into or beside the files; the rows then know the files' new content."""
    if job.write_back is None:
        return
    scored = [row for row in rows.values() if row.cost is not None]
    for number, row in enumerate(scored, 1):
        path = Path(row.path)
        out = leads_out(path.parent if job.write_back == "sidecar" else path, job.places)
        try:
            if out is not None and path not in map(_absolute, job.places):
                raise StampError(f"a link leads out of what was scored, to {out}: the score was not written.")
            rows[row.path] = STAMPS[job.write_back](row)
            if rows[row.path] != row:
                note(rows[row.path])
        except StampError as error:
            yield Problem(path, str(error).removeprefix(f"{row.path}: "))
        progress("writing back", number, len(scored))


def _write_tables(job: ScoreJob, rows: Sequence[Row], progress: Progress) -> None:
    if job.jsonl is not None:
        # Rows of other places stay: a file may remember many folders.
        memory = RowFile.open(job.jsonl)
        roots, ours = _within(job.places), {row.path for row in rows}
        others = [row for row in memory.rows.values() if row.path not in ours and not roots(row)]
        memory.finish(sorted([*rows, *others], key=lambda row: row.path))
        for part in _shards(job.jsonl):
            part.unlink(missing_ok=True)
    if job.csv is not None:
        write_csv(job.csv, rows)
    if job.parquet is not None:
        write_parquet(job.parquet, rows)
    if job.html is not None:
        write_gallery(job.html, rows, progress=lambda done, total: progress("gallery", done, total))


def _find(job: ScoreJob) -> Found:
    """Return the files to score, without those that this job itself puts somewhere."""
    ours = [folder for folder in (job.move_to, job.copy_to, job.heatmaps) if folder is not None]
    return find_images(job.places, skip=ours)


def _earlier_rows(job: ScoreJob, memory: RowFile | None) -> Mapping[str, Row]:
    """Return the rows of earlier runs: the merged ones, those of interrupted runs, and this process's."""
    if job.jsonl is None or memory is None:
        return {}
    rows: dict[str, Row] = {}
    for file in (job.jsonl, *_shards(job.jsonl)):
        if file != memory.path and file.exists():
            rows |= RowFile.read(file)
    return rows | memory.rows


def _unreachable(problems: Iterable[Problem], scorer: Scorer) -> Iterator[Row]:
    for problem in problems:
        yield Row(str(problem.path), None, None, None, {}, provenance(scorer), problem.what)


def _within(paths: Sequence[Path]) -> Callable[[Row], bool]:
    roots = [_absolute(path) for path in paths]
    return lambda row: any(Path(row.path).is_relative_to(root) for root in roots)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))


def _rank_of(path: Path, processes: int) -> int:
    return zlib.crc32(os.fsencode(path)) % processes


def _shard(jsonl: Path | None, rank: int) -> Path:
    assert jsonl is not None
    return jsonl.with_name(f"{jsonl.name}.part{rank}")


def _shards(jsonl: Path) -> list[Path]:
    """Return the files of all processes, those of interrupted runs with more of them included."""
    name = re.compile(re.escape(jsonl.name) + r"\.part\d+")
    return sorted(path for path in jsonl.parent.iterdir() if name.fullmatch(path.name))
