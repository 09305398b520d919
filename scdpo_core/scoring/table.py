"""The row of one scored file, and the files of such rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ..io import json_schema
from ..io.files import atomic_path, write_text
from ..io.printable import printable
from ..types import Band, ScdpoError


@dataclass(frozen=True)
class Row:
    """One file and its score. The first seven fields are for the reader, the rest for the next run.

    Attributes:
        path: the absolute path.
        sha256: of the file's bytes, hexadecimal; None when it could not be read.
        cost: the cost in log-odds, above 0 harmful; of an animation the highest of the frames looked at.
            None when there is none, see `error`.
        band: 'safe', 'review' or 'unsafe'; None without a cost.
        categories: cost per harm category; None where the scorer does not know the category.
        scorer: 'id@hash'.
        error: why there is no cost; None when there is one.
        frame: number of the frame that the cost belongs to.
        every: which frames of an animation were looked at: 0 the first, n every n-th.
        bytes: the file's size.
        mtime_ns: when it was last changed, nanoseconds.
        details: what the cost is made of, as `CostScore.details`.
    """

    path: str
    sha256: str | None
    cost: float | None
    band: Band | None
    categories: Mapping[str, float | None]
    scorer: str
    error: str | None
    frame: int = 0
    every: int = 0
    bytes: int = 0
    mtime_ns: int = 0
    details: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the row as one line of JSON; costs to four decimals, beyond any scorer's precision."""
        row = asdict(self)
        row["cost"] = _rounded(self.cost)
        row["categories"] = {name: _rounded(cost) for name, cost in self.categories.items()}
        row["details"] = {name: round(cost, 4) for name, cost in self.details.items()}
        return json.dumps(row)

    @classmethod
    def from_json(cls, line: str) -> Row | None:
        """Read such a line; None if it is no row (cut off by a crash, say)."""
        try:
            row = json_schema.from_json(json_schema.parse(line), cls)
        except json_schema.SchemaError:
            return None
        # A cost, or a reason why there is none.
        return row if (row.cost is None) == (row.band is None) == (row.error is not None) else None


@dataclass
class RowFile:
    """A JSONL file that grows by a row at a time, so that an interrupted run loses nothing.

    During a run rows are appended, and a later row of a path replaces an earlier one;
    `finish` then rewrites the file, complete and sorted.

    Args:
        path: the .jsonl file; need not exist.

    Attributes:
        rows: the last row of every path.
    """

    path: Path
    rows: dict[str, Row] = field(default_factory=dict)
    _stream: TextIO | None = None

    @classmethod
    def open(cls, path: Path) -> RowFile:
        """Read the rows of an earlier run, and open the file to append.

        Raises:
            ScdpoError: the file exists but holds no such rows, or cannot be read or written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file() and not path.is_dir():
                raise ScdpoError(f"{path} is a device or a pipe. Give a regular file.")
            rows = cls.read(path) if path.exists() else {}
            stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise _unusable(path, error) from error
        # A crash may have cut the last line off.
        if stream.tell() and not path.read_bytes().endswith(b"\n"):
            stream.write("\n")
        return cls(path, rows, stream)

    @staticmethod
    def read(path: Path) -> dict[str, Row]:
        """Return the last row of every path in such a file, which stays as it is.

        Raises:
            ScdpoError: the file holds no such rows, or cannot be read.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _unusable(path, error) from error
        lines = [line for line in text.splitlines() if line.strip()]
        rows = [row for row in map(Row.from_json, lines) if row is not None]
        if len(rows) < len(lines) - 1:
            raise ScdpoError(
                f"{path} contains other things than scores and is left unchanged. Choose another name."
            )
        return {row.path: row for row in rows}

    def add(self, row: Row) -> None:
        """Append a row and flush it to the operating system."""
        assert self._stream is not None
        self.rows[row.path] = row
        self._stream.write(row.to_json() + "\n")
        self._stream.flush()

    def finish(self, rows: Sequence[Row]) -> None:
        """Replace the file by exactly these rows, atomically."""
        self.close()
        self.rows = {row.path: row for row in rows}
        write_text(self.path, "".join(f"{row.to_json()}\n" for row in rows))

    def close(self) -> None:
        """Close the file as it is."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write a table with one column for each category, atomically."""
    names = category_names(rows)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow([*_COLUMNS, *(f"cost of {name}" for name in names)])
    for row in rows:
        costs = [_rounded(row.categories.get(name)) for name in names]
        table.writerow([*_values(row).values(), *costs])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write the same table as Parquet, atomically.

    Raises:
        ScdpoError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ScdpoError(
            "Parquet needs the package 'pyarrow' (the extra 'parquet'); CSV and JSONL need nothing."
        ) from error
    names = category_names(rows)
    columns: dict[str, Any] = {
        name: pyarrow.array([_values(row)[name] for row in rows], _arrow_type(pyarrow, name))
        for name in _COLUMNS
    }
    for name in names:
        costs = [row.categories.get(name) for row in rows]
        columns[f"cost of {name}"] = pyarrow.array(costs, pyarrow.float64())
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(columns), str(temporary))


def category_names(rows: Iterable[Row]) -> list[str]:
    """Return all categories that any row names, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row.categories))


_COLUMNS = ("path", "sha256", "cost", "band", "scorer", "error", "frame", "bytes")


def _values(row: Row) -> dict[str, object]:
    values: dict[str, object] = {name: getattr(row, name) for name in _COLUMNS}
    return values | {
        "path": printable(row.path),
        "error": None if row.error is None else printable(row.error),
        "cost": _rounded(row.cost),
    }


def _arrow_type(pyarrow: Any, name: str) -> Any:
    if name == "cost":
        return pyarrow.float64()
    return pyarrow.int64() if name in ("frame", "bytes") else pyarrow.string()


def _unusable(path: Path, error: Exception) -> ScdpoError:
    return ScdpoError(f"{path} cannot be used ({error}). Choose another file.")


def _rounded(cost: float | None) -> float | None:
    return None if cost is None else round(cost, 4)
