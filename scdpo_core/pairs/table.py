"""What was kept, and what was dropped and why: as rows, as figures by category, as words."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..io.files import write_json, write_text
from ..io.printable import printable
from .store import Row

CSV, JSON = "building.csv", "building.json"
"""In the preference folder."""

# What spreadsheets take for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_FIGURES = re.compile(r": costs .*")


@dataclass(frozen=True)
class Line:
    """A category.

    Attributes:
        category: its name; '' for none.
        wanted: requested images.
        kept: pairs that came of them.
        masks: pairs with a mask.
        tries: images drawn to be chosen for each pair, mean; 0 without pairs.
        dropped: how many for each reason, most first.
    """

    category: str
    wanted: int
    kept: int
    masks: int
    tries: float
    dropped: Mapping[str, int]

    @property
    def rate(self) -> float:
        """Share of requested images that became a pair, 0..1."""
        return self.kept / self.wanted if self.wanted else 0.0


def tally(rows: Sequence[Row]) -> list[Line]:
    """Count by category, most prompts first; the last line is the total."""
    names = [name for name, _ in Counter(row.category for row in rows).most_common()]
    by_category = [_line(name, [row for row in rows if row.category == name]) for name in names]
    return [*by_category, _line("all", rows)]


def reason_of(row: Row) -> str:
    """Return why no pair came of a row, without its figures, so that reasons can be counted."""
    return _FIGURES.sub("", row.reason)


def words(lines: Sequence[Line]) -> str:
    """Return the table for a terminal."""
    head = f"{'category':<20} {'wanted':>7} {'kept':>6} {'rate':>6} {'tries':>6}"
    lines_of_text = [head]
    for line in lines:
        name = printable(line.category or "(none)")[:20]
        tries = f"{line.tries:.1f}" if line.kept else "-"
        lines_of_text.append(f"{name:<20} {line.wanted:>7,} {line.kept:>6,} {line.rate:>6.0%} {tries:>6}")
    if lines and (dropped := lines[-1].dropped):
        lines_of_text.append("Dropped:")
        lines_of_text += [f"  {count:>6,}  {printable(reason)}" for reason, count in dropped.items()]
    return "\n".join(lines_of_text)


def write_tables(folder: Path, rows: Sequence[Row], facts: Mapping[str, str]) -> None:
    """Write every row as CSV, and rows, figures and what decided them as JSON.

    Raises:
        OSError: a file cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([field.name for field in fields(Row)])
    table.writerows([_cell(value) for value in asdict(row).values()] for row in rows)
    write_text(folder / CSV, text.getvalue())
    lines = [{**asdict(line), "rate": round(line.rate, 4)} for line in tally(rows)]
    content = {"decided_by": dict(facts), "categories": lines, "rows": [asdict(row) for row in rows]}
    write_json(folder / JSON, content)


def _cell(value: object) -> object:
    """Return a value that no spreadsheet computes: prompts are strangers' text."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value


def _line(name: str, rows: Sequence[Row]) -> Line:
    with_pair = [row for row in rows if row.pair]
    # The same pair may come of two rows: equal prompts from equal noise.
    return Line(
        name,
        len(rows),
        len({row.pair for row in with_pair}),
        len({row.pair for row in with_pair if row.mask}),
        round(sum(row.tries for row in with_pair) / len(with_pair), 2) if with_pair else 0.0,
        dict(Counter(reason_of(row) for row in rows if not row.pair).most_common()),
    )
