"""Tables of anybody's making, read record by record: CSV, TSV, JSONL, JSON arrays and Parquet.

Memory does not grow with a table: text is read line by line, JSON arrays element by element, Parquet page by
page, as large as its writer made them. Nothing is unpickled and nothing is downloaded.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from ..types import ScdpoError
from .rows import DAMAGED_ROW, Skipped

Record: TypeAlias = Mapping[str, Any]

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Endings of files that are read as tables."""

MAX_RECORD = 128 << 20
"""Characters of one record of a text table, images in it included."""
_BATCH = 16  # rows of Parquet that are in memory together
_CHUNK = 1 << 20
_LOOKED_AT = 100  # records whose keys count as columns
_WHITE = " \t\r\n"


class TableError(ScdpoError):
    """A table that cannot be read at all."""


def columns_of(path: Path) -> list[str]:
    """Return the column names of a table: its header, or the keys of its first records, which may differ.

    Raises:
        TableError: it cannot be read, or Parquet is not installed.
    """
    if path.suffix.lower() == ".parquet":
        return [str(name) for name in _parquet(path).schema_arrow.names]
    if path.suffix.lower() in (".csv", ".tsv"):
        with _text(path) as stream:
            try:
                return [name.strip() for name in next(_csv_rows(path, stream), (0, []))[1]]
            except (csv.Error, _TooLongError) as error:
                raise TableError(f"{path} is no table: {error}.") from None
    names: dict[str, None] = {}
    for number, record in itertools.islice(records_of(path), _LOOKED_AT):
        if not isinstance(record, Skipped):
            names.update(dict.fromkeys(map(str, record)))
        elif path.suffix.lower() == ".json" and number == 0:
            raise TableError(f"{path} is no JSON array of records ({record.detail}).")
    return list(names)


def count_records(path: Path) -> int:
    """Estimate how many records a table has, for the progress; lines count as records in text."""
    if path.suffix.lower() == ".parquet":
        return int(_parquet(path).metadata.num_rows)
    lines = 0
    with _opened(path).open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            lines += chunk.count(b"\n")
    return max(1, lines)


def records_of(
    path: Path, start: int = 0, columns: Collection[str] | None = None
) -> Iterator[tuple[int, Record | Skipped]]:
    """Yield (number, record) from record `start` on; a record that cannot be read is a `Skipped`.

    Args:
        path: the table; its ending says of which kind.
        start: first record, counted from 0. Parquet skips whole row groups.
        columns: that are needed; Parquet reads no others. None for all.

    Raises:
        TableError: the file cannot be opened, or Parquet is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_records(path, start, columns)
        return
    read = {".csv": _csv_records, ".tsv": _csv_records, ".json": _json_records}.get(suffix, _jsonl_records)
    for number, record in enumerate(read(path)):
        if number >= start:
            yield number, record


class _TooLongError(ValueError):
    """A record is longer than `MAX_RECORD`."""

    def __init__(self) -> None:
        super().__init__(f"a line of over {MAX_RECORD >> 20} MB")


def _opened(path: Path) -> Path:
    if not path.is_file():
        raise TableError(f"There is no file {path}.")
    return path


def _text(path: Path) -> TextIO:
    """Open a table as text; bytes that are no UTF-8 stay visible, so that one bad row does not end it."""
    try:
        return _opened(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise TableError(f"{path} cannot be read ({error.strerror}).") from error


def _lines(stream: TextIO) -> Iterator[str]:
    while line := stream.readline(MAX_RECORD + 1):
        if len(line) > MAX_RECORD:
            raise _TooLongError
        yield line


def _csv_rows(path: Path, stream: TextIO) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield (line number, cells); the delimiter is the one that the header holds most of."""
    lines = _lines(stream)
    header = next(lines, "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
    # A quoted cell may go over many lines; the reader itself bounds only cells.
    reader = csv.reader(_chained(header, lines), delimiter=delimiter)
    while (row := _next_row(reader)) is not None:
        if any(cell.strip() for cell in row):
            yield reader.line_num, row


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """Read a row with cells of up to MAX_RECORD; the limit is the whole process's, so it is put back."""
    before = csv.field_size_limit(MAX_RECORD)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _csv_records(path: Path) -> Iterator[Record | Skipped]:
    with _text(path) as stream:
        rows = _csv_rows(path, stream)
        last = 1
        try:
            header = [name.strip() for name in next(rows, (0, []))[1]]
            for last, row in rows:  # noqa: B007 - named when it breaks off
                yield dict(zip(header, row, strict=False))
        except (csv.Error, _TooLongError) as error:
            yield Skipped(f"{path.name} after line {last}", DAMAGED_ROW, f"{error}; the rest is not read")


def _jsonl_records(path: Path) -> Iterator[Record | Skipped]:
    with _text(path) as stream:
        number = 0
        try:
            for number, line in enumerate(_lines(stream), 1):
                if line.strip():
                    yield _record(line, f"{path.name} line {number}")
        except _TooLongError as error:
            yield Skipped(f"{path.name} after line {number}", DAMAGED_ROW, f"{error}; the rest is not read")


def _record(text: str, where: str) -> Record | Skipped:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Skipped(where, DAMAGED_ROW, f"no JSON: {str(error)[:80]}")
    return value if isinstance(value, dict) else Skipped(where, DAMAGED_ROW, "no JSON object")


def _json_records(path: Path) -> Iterator[Record | Skipped]:
    """Yield the elements of a JSON array, of which only one is in memory at a time."""
    decoder, number = json.JSONDecoder(), 0
    with _text(path) as stream:
        buffer = stream.read(_CHUNK).lstrip(_WHITE)
        if not buffer.startswith("["):
            yield Skipped(path.name, DAMAGED_ROW, "it does not begin with [")
            return
        position = 1
        while True:
            while position < len(buffer) and buffer[position] in _WHITE + ",":
                position += 1
            if position < len(buffer) and buffer[position] == "]":
                return
            try:
                value, position = decoder.raw_decode(buffer, position)
            except (ValueError, RecursionError) as error:
                buffer, position = buffer[position:], 0
                # As much again as there is: so the time stays in proportion to the record.
                more = stream.read(max(_CHUNK, len(buffer)))
                if not more or len(buffer) > MAX_RECORD or isinstance(error, RecursionError):
                    detail = f"{str(error)[:80]}; the rest is not read"
                    yield Skipped(f"{path.name} after record {number}", DAMAGED_ROW, detail)
                    return
                buffer += more
                continue
            number += 1
            where = f"{path.name} record {number}"
            yield value if isinstance(value, dict) else Skipped(where, DAMAGED_ROW, "no JSON object")
            if position > _CHUNK:
                buffer, position = buffer[position:], 0
            if len(buffer) - position < 2:
                buffer += stream.read(_CHUNK)


def _parquet(path: Path) -> Any:
    """Open a Parquet file.

    Raises:
        TableError: pyarrow is missing, or the file is no Parquet file.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TableError(
            f"{path.name} is a Parquet file, which needs the package pyarrow. Install it with "
            "'pip install pyarrow'; CSV, JSONL and folders need nothing."
        ) from error
    try:
        # Buffers of its own: else whole row groups, images included, are in memory at once.
        return pyarrow.parquet.ParquetFile(_opened(path), buffer_size=_CHUNK, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise TableError(f"{path} is damaged or no Parquet file ({str(error)[:120]}).") from error


def _parquet_records(
    path: Path, start: int, columns: Collection[str] | None
) -> Iterator[tuple[int, Record | Skipped]]:
    file = _parquet(path)
    import pyarrow

    names = [name for name in file.schema_arrow.names if columns is None or name in columns]
    number = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if number + rows <= start:
            number += rows
            continue
        begun = number
        try:
            for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group], columns=names):
                for row in batch.to_pylist():
                    if number >= start:
                        yield number, row
                    number += 1
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            where = f"{path.name} after row {number}"
            detail = f"{str(error)[:80]}; {begun + rows - number} rows are not read"
            yield number, Skipped(where, DAMAGED_ROW, detail)
            number = begun + rows


@dataclass(frozen=True)
class Tables:
    """Several files of one table, such as the shards of a data set, in the order of their names.

    Attributes:
        files: at least one.
    """

    files: tuple[Path, ...]

    def records(
        self, start: int, columns: Collection[str] | None
    ) -> Iterator[tuple[int, Path, int, Record | Skipped]]:
        """Yield (number over all files, file, number in it, record) from record `start` on.

        A number that stands in no file of the ones before `start` is known from Parquet's own headers;
        text has to be read again.
        """
        before = 0
        for file in self.files:
            rows = count_records(file) if file.suffix.lower() == ".parquet" else None
            if rows is not None and before + rows <= start:
                before += rows
                continue
            last = -1
            for last, record in records_of(file, 0 if rows is None else max(0, start - before), columns):
                if before + last >= start:
                    yield before + last, file, last, record
            before += last + 1 if rows is None else rows

    @property
    def total(self) -> int:
        """How many records there are, about."""
        return sum(count_records(file) for file in self.files)

    @property
    def fingerprint(self) -> list[list[object]]:
        """Name, size and time of change of every file."""
        stats = [(file, os.stat(file)) for file in self.files]
        return [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats]
