"""Find out what a source is, and open it as a stream of records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..types import ScdpoError
from .columns import TABLE_FORMATS, Columns, TableFormat
from .folders import (
    TwoFolders,
    are_unpaired,
    find_sides,
    has_suffixes,
    simpletuner_sides,
    suffixed_outcomes,
    unpaired_outcomes,
)
from .grouping import RatedImage, groups_of
from .images import ImageFinder
from .job import ALIASES, FORMATS, ImportJob
from .rows import MISSING_FIELD, NO_PROMPT, Outcomes, RowError, Skipped, clean_prompt
from .tables import SUFFIXES, Tables, columns_of

_LARGEST_CONFIG = 16 << 20
_FOLDER_FORMATS = ("folders", "suffixes", "simpletuner", "unpaired")


@dataclass(frozen=True)
class Entry:
    """What one record of a source becomes.

    Attributes:
        number: of the record; the same in every run over an unchanged source.
        outcomes: its pairs, and what becomes none.
        near: folders that its images' names are relative to.
    """

    number: int
    outcomes: Outcomes
    near: tuple[Path, ...] = ()


@dataclass
class Source:
    """An opened source.

    Attributes:
        format: a name in `FORMATS`.
        finder: of its images.
        total: approximate number of records; 0 if unknown.
        fingerprint: changes when the source does.
        entries: yields the records from a number on.
        category: of pairs without one.
        left_over: prompts of harmless images without a partner, complete once all entries have been read.
    """

    format: str
    finder: ImageFinder
    total: int
    fingerprint: str
    entries: Callable[[int], Iterator[Entry]]
    category: str = ""
    left_over: list[str] = field(default_factory=list)


def open_source(job: ImportJob, scratch: Path, staging: Path | None) -> Source:
    """Open the source of a job.

    Args:
        job: that has been checked.
        scratch: folder for files that sorting needs.
        staging: see `ImageFinder`.

    Raises:
        ScdpoError: it is of no known format, or cannot be read at all.
    """
    name, tables, sides = _detect(job)
    roots = [folder for folder in (job.chosen, job.rejected) if folder is not None]
    if job.source is not None:
        roots = [job.source if job.source.is_dir() else job.source.parent]
    finder = ImageFinder([*roots, *job.images], staging)
    if name in _FOLDER_FORMATS:
        return _folder_source(name, job, finder, sides)
    columns = Columns.of(columns_of(tables.files[0]), job.columns)
    kind = TABLE_FORMATS.get(name)
    if kind is None:
        if "image" not in columns or not ("rating" in columns or "ranks" in columns):
            raise ScdpoError(_unknown(tables.files[0], "the columns image and rating (or rank)"))
        pairs = lambda start: _from(start, _ratings(job, tables, columns, finder, scratch))  # noqa: E731
    else:
        if not kind.is_met(columns):
            raise ScdpoError(_unknown(tables.files[0], f"what '{name}' needs ({kind.about})"))
        pairs = lambda start: _table_entries(job, tables, columns, kind, start)  # noqa: E731
    default = "" if kind is None else kind.category
    return Source(name, finder, tables.total, _digest(tables.fingerprint), pairs, default)


def _detect(job: ImportJob) -> tuple[str, Tables, list[TwoFolders]]:
    """Detect the format of a source, with its tables or its folders."""
    requested = ALIASES.get(job.format, job.format)
    nothing = Tables(())
    if job.source is None:
        if job.chosen is None or job.rejected is None:
            raise ScdpoError("Give a source, or --chosen and --rejected.")
        sides = [TwoFolders(job.chosen, job.rejected)]
        return (requested if requested in ("folders", "unpaired") else "folders"), nothing, sides
    source = job.source
    if source.is_file():
        if requested == "simpletuner" or (requested == "auto" and _is_simpletuner(source)):
            return "simpletuner", nothing, _simpletuner(job, source)
        if source.suffix.lower() not in SUFFIXES:
            raise ScdpoError(
                f"{source.name} is not a table ({', '.join(SUFFIXES)}). Give a table or a folder."
            )
        tables = Tables((source,))
        return (_table_format(source, job) if requested == "auto" else requested), tables, []
    if requested == "simpletuner":
        return requested, nothing, _simpletuner(job, source / "multidatabackend.json")
    if requested == "suffixes":
        return requested, nothing, []
    if requested in ("auto", "folders", "unpaired") and (sides := find_sides(source)):
        if requested == "auto":
            requested = "unpaired" if are_unpaired(sides) else "folders"
        return requested, nothing, sides
    if requested in ("folders", "unpaired"):
        raise ScdpoError(
            f"{source} has no two folders such as good/ and bad/ or safe/ and unsafe/. Name them with "
            "--chosen and --rejected."
        )
    if (backends := source / "multidatabackend.json").is_file() and requested == "auto":
        return "simpletuner", nothing, _simpletuner(job, backends)
    if files := _tables_in(source):
        tables = Tables(tuple(files))
        return (_table_format(files[0], job) if requested == "auto" else requested), tables, []
    if requested == "auto" and has_suffixes(source):
        return "suffixes", nothing, []
    raise ScdpoError(
        f"{source} is of no known format: it has no two folders such as good/ and bad/, no table "
        f"({', '.join(SUFFIXES)}) and no images named a_chosen and a_rejected. Known formats: "
        f"{', '.join(FORMATS)}."
    )


def _tables_in(folder: Path) -> list[Path]:
    """List the tables of a folder: metadata.jsonl, or all Parquet shards, or the only table of another type.

    Raises:
        ScdpoError: there are several, so the choice is unclear.
    """
    if (metadata := folder / "metadata.jsonl").is_file():
        return [metadata]
    if shards := sorted(folder.glob("*.parquet")) or sorted(folder.glob("*/*.parquet")):
        return shards
    others = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(others) > 1:
        names = ", ".join(path.name for path in others[:8])
        raise ScdpoError(f"{folder} holds several tables ({names}). Name the one to import.")
    return others


def _table_format(path: Path, job: ImportJob) -> str:
    """Detect the format of a table by its columns.

    Raises:
        ScdpoError: it is none that is known.
    """
    columns = Columns.of(columns_of(path), job.columns)
    for name, kind in TABLE_FORMATS.items():
        # In these, a rank is one of a single image.
        lists = name == "hpd" and path.suffix.lower() in (".csv", ".tsv") and "path1" not in columns
        if kind.is_met(columns) and not lists:
            return name
    if "image" in columns and ("rating" in columns or "ranks" in columns):
        return "ratings"
    raise ScdpoError(_unknown(path, "the columns of a known format"))


def _unknown(path: Path, lacks: str) -> str:
    header = ", ".join(columns_of(path)[:30]) or "none"
    return (
        f"{path.name} has not {lacks}; its columns are: {header}. Say which is which, for example --columns "
        "prompt=COLUMN chosen=COLUMN rejected=COLUMN, or prompt=COLUMN image=COLUMN rating=COLUMN."
    )


def _is_simpletuner(path: Path) -> bool:
    try:
        content = _json_of(path) if path.suffix.lower() == ".json" else None
    except ScdpoError:
        return False
    entries = content if isinstance(content, list) else []
    return any(isinstance(entry, dict) and "instance_data_dir" in entry for entry in entries)


def _json_of(path: Path) -> Any:
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ScdpoError(f"{path} is over {_LARGEST_CONFIG >> 20} MB, too large for settings.")
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ScdpoError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ScdpoError(f"{path} is no JSON ({str(error)[:80]}).") from error


def _simpletuner(job: ImportJob, path: Path) -> list[TwoFolders]:
    """Return the two data sets of a SimpleTuner file.

    Raises:
        ScdpoError: there are none, or they lie where nothing may be read.
    """
    sides = simpletuner_sides(_json_of(path), path.parent)
    allowed = ImageFinder([path.parent, *job.images])
    for folder in (folder for side in sides for folder in (side.chosen, side.rejected)):
        if not allowed.allows(folder):
            raise ScdpoError(
                f"{path.name} names the folder {folder}, which lies elsewhere. Add --images {folder} to "
                "allow it."
            )
        if not folder.is_dir():
            raise ScdpoError(f"{path.name} names the folder {folder}, which is not there.")
    return sides


def _folder_source(name: str, job: ImportJob, finder: ImageFinder, sides: list[TwoFolders]) -> Source:
    left_over: list[str] = []

    def outcomes() -> Iterator[Outcomes]:
        left_over.clear()
        if name == "suffixes" and job.source is not None:
            return suffixed_outcomes(job.source, job.per_prompt)
        if name == "unpaired":
            return unpaired_outcomes(sides, _prompt_reader(finder), job.match, job.seed, left_over)
        return (outcome for side in sides for outcome in side.outcomes())

    # Once for the count, so that there is a time left; only names are read.
    total, digest = 0, hashlib.sha256()
    for each in outcomes():
        total += 1
        digest.update("".join(str(outcome.where) for outcome in each).encode("utf-8", "surrogatepass"))
    if not total:
        raise ScdpoError(f"{job.title} contains no images.")
    entries = lambda start: _from(start, outcomes())  # noqa: E731
    return Source(name, finder, total, digest.hexdigest(), entries, left_over=left_over)


def _prompt_reader(finder: ImageFinder) -> Callable[[Path], str]:
    def read(image: Path) -> str:
        try:
            return finder.prompt_of(image) if finder.allows(image) else ""
        except RowError:
            return ""

    return read


def _from(start: int, outcomes: Iterator[Outcomes]) -> Iterator[Entry]:
    for number, group in enumerate(outcomes):
        if number >= start:
            yield Entry(number, group)


def _table_entries(
    job: ImportJob, tables: Tables, columns: Columns, kind: TableFormat, start: int
) -> Iterator[Entry]:
    for number, file, row, record in tables.records(start, columns.needed):
        # HPD's train.json names images of the folder train/.
        near = (file.parent, file.parent / file.stem)
        if isinstance(record, Skipped):
            yield Entry(number, [record], near)
            continue
        where = f"{file.name} row {row + 1}"
        try:
            yield Entry(number, list(kind.pairs(record, columns, where, job.per_prompt)), near)
        except RowError as error:
            yield Entry(number, [Skipped(where, error.reason, error.detail)], near)


def _ratings(
    job: ImportJob, tables: Tables, columns: Columns, finder: ImageFinder, scratch: Path
) -> Iterator[Outcomes]:
    def images() -> Iterator[RatedImage | Skipped]:
        for _, file, row, record in tables.records(0, columns.needed):
            where = f"{file.name} row {row + 1}"
            if isinstance(record, Skipped):
                yield record
                continue
            try:
                yield _rated(record, where, job, columns, finder)
            except RowError as error:
                yield Skipped(where, error.reason, error.detail)

    return groups_of(images(), scratch / "ratings.sqlite", job.per_prompt)


def _rated(record: Any, where: str, job: ImportJob, columns: Columns, finder: ImageFinder) -> RatedImage:
    name = columns.image(record, "image")
    if isinstance(name, bytes):
        raise RowError(MISSING_FIELD, "the image as a file's name; a ratings table holds no images itself")
    score = columns.number(record, "rating")
    if score is None and (rank := columns.number(record, "ranks")) is not None:
        score = -rank
    if score is None:
        raise RowError(MISSING_FIELD, "rating")
    prompt = clean_prompt(columns.text(record, "prompt"))
    prompt = prompt or finder.prompt_of(finder.find(name).path) or clean_prompt(job.prompt)
    if not prompt:
        raise RowError(NO_PROMPT, str(name)[:200])
    category, safe_prompt = columns.text(record, "category"), columns.text(record, "safe_prompt")
    return RatedImage(where, prompt, str(name), score, _storable(category), _storable(safe_prompt))


def _storable(text: str) -> str:
    """Text that a database can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _digest(fingerprint: list[list[object]]) -> str:
    return hashlib.sha256(json.dumps(fingerprint).encode("utf-8", "surrogatepass")).hexdigest()
