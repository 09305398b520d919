"""Weights of pairs: a table in the preference folder, which says how much each pair counts in training.

my_pairs/weights.csv, with the columns pair and weight:

    pair,weight
    weapon/0001,2
    weapon/0002,0.5

A pair that it does not name counts as 1.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from ..io.files import write_text
from ..types import Problem

WEIGHTS = "weights.csv"
"""File in a preference folder."""

_MOST_BYTES = 64 << 20
_HEADER = ["pair", "weight"]


def read_weights(folder: Path, problems: list[Problem]) -> dict[str, float]:
    """Read how much each pair of a folder counts, by the pair's id; what is wrong is added to `problems`.

    Returns:
        Numbers of 0 or more; of no pair where there is no file.
    """
    path = folder / WEIGHTS
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            problems.append(Problem(path, "this is over 64 MB, too large for a table of weights."))
            return {}
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = f"the weights cannot be read ({error}). Save the file as CSV, UTF-8."
        problems.append(Problem(path, what))
        return {}
    if not rows or [cell.strip().lower() for cell in rows[0]] != _HEADER:
        problems.append(Problem(path, "its first line has to be: pair,weight"))
        return {}
    weights: dict[str, float] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(row):
            continue
        weight = _weight(row)
        if weight is None:
            what = f"line {number} is no pair and weight. Write a name, a comma and a number of 0 or more."
            problems.append(Problem(path, what))
        else:
            weights[row[0]] = weight
    return weights


def _weight(row: list[str]) -> float | None:
    try:
        weight = float(row[1]) if len(row) == 2 else math.nan
    except ValueError:
        return None
    return weight if 0 <= weight < math.inf else None


def write_weights(folder: Path, weights: Mapping[str, float]) -> None:
    """Write the weights of pairs, sorted by name; without any, no file is made.

    Raises:
        OSError: the file cannot be written.
    """
    if not weights:
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_HEADER)
    table.writerows([pair, f"{weight:g}"] for pair, weight in sorted(weights.items()))
    write_text(folder / WEIGHTS, text.getvalue())
