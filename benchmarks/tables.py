"""What benchmarks with a table share: kept rows, cells with their spread, a table's place in a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from scdpo_core.evaluation.intervals import mean_interval
from scdpo_core.io.files import write_json, write_text


def kept(result: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Measure a row and keep it in a file, or read what an earlier call found; so processes share the rows.

    Args:
        result: a JSON file that names everything the row depends on.
    """
    if result.exists():
        known: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
        return known
    found = measure()
    write_json(result, found)
    return found


def cell(values: Sequence[float], digits: int, unit: str = "") -> str:
    """A mean and, of more than two values, half its 95 % interval."""
    mean = mean_interval(list(values))
    spread = f" ± {mean.value - mean.interval.low:.{digits}f}" if len(values) > 2 else ""
    return f"{mean.value:.{digits}f}{spread}{unit}"


def percent(values: Sequence[float]) -> str:
    """The same for shares of 0..1."""
    return cell([100 * value for value in values], 1, " %")


def place_for(page: Path, name: str) -> bool:
    """Whether a page has a place for a table of that name, see `put`."""
    return f"<!-- {name} -->\n" in page.read_text(encoding="utf-8")


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands in a page between `<!-- name -->` and `<!-- end of name -->`.

    Raises:
        ValueError: the page has no such place.
    """
    first, last = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, begun, rest = page.read_text(encoding="utf-8").partition(first)
    _, ended, tail = rest.partition(last)
    if not begun or not ended:
        raise ValueError(f"{page} has no lines {first.strip()} and {last}.")
    write_text(page, f"{head}{first}{text}{last}{tail}")
