"""Tables as streams: the same records from any start, and memory that does not grow with them."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scdpo_core.importers.tables import Tables, records_of
from tests.support.import_sources import imported, write_csv, write_image, write_jsonl, write_parquet

ROOT = Path(__file__).resolve().parents[2]


def test_records_are_the_same_from_any_start(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{number}", "chosen": "a", "rejected": "b"} for number in range(40)]
    files = [
        write_parquet(tmp_path / "a.parquet", rows, 7),
        write_jsonl(tmp_path / "b.jsonl", rows),
        write_csv(tmp_path / "c.csv", rows),
        tmp_path / "d.json",
    ]
    files[-1].write_text(json.dumps(rows, indent=3))
    for file in files:
        assert [record for _, record in records_of(file)] == rows
        for start in (0, 1, 6, 7, 8, 39, 40):
            assert list(records_of(file, start)) == list(enumerate(rows))[start:]
    several = Tables(tuple(files))
    whole = [(number, row) for number, _, _, row in several.records(0, None)]
    assert whole == list(enumerate(rows * 4))
    for start in (0, 39, 40, 41, 95, 159):
        assert [(n, row) for n, _, _, row in several.records(start, None)] == whole[start:]


def peak_of(work: Callable[[], Any]) -> int:
    """Bytes of Python objects at most, at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "json", "parquet"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, kind: str) -> None:
    write_image(tmp_path / "a.png", 1)
    write_image(tmp_path / "b.png", 2)

    def table(count: int) -> Path:
        rows = [{"prompt": f"prompt {n}", "chosen": "a.png", "rejected": "b.png"} for n in range(count)]
        path = tmp_path / f"{count}.{kind}"
        if kind == "json":
            path.write_text(json.dumps(rows))
            return path
        return {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}[kind](path, rows)

    def look(path: Path) -> int:
        return imported(path, tmp_path / "pairs", dry_run=True).state.imported

    few, many = table(150), table(1500)
    look(few)
    small, large = peak_of(lambda: look(few)), peak_of(lambda: look(many))
    # Ten times the rows, which alone would be more.
    assert large < small + 500_000 and look(many) == 1500
    assert not (tmp_path / "pairs").exists()


def test_a_row_group_of_parquet_is_not_read_as_a_whole(tmp_path: Path) -> None:
    import pyarrow

    noise = np.random.default_rng(0)
    rows = [{"number": number, "image": noise.bytes(20_000)} for number in range(1500)]
    file = write_parquet(tmp_path / "a.parquet", rows, row_group_size=1500, write_batch_size=16)
    before = pyarrow.total_allocated_bytes()
    peak = max(pyarrow.total_allocated_bytes() - before for _ in records_of(file))
    # 30 MB in one group, on pages of about a megabyte.
    assert peak < 10_000_000


_MEASURED = """
import re, sys
from pathlib import Path
from scdpo_core.importers.job import ImportJob
from scdpo_core.importers.run import run_import
outcome = run_import(ImportJob(Path(sys.argv[2]), Path(sys.argv[1]), dry_run=True))
status = Path("/proc/self/status").read_text()
print(outcome.state.imported, re.search(r"VmHWM:\\s*(\\d+) kB", status)[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak")
def test_a_hundred_thousand_rows_take_no_more_memory_than_a_thousand(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 1)
    write_image(tmp_path / "b.png", 2)
    peaks = []
    for count in (1000, 100_000):
        rows = [{"prompt": f"prompt {n}", "chosen": "a.png", "rejected": "b.png"} for n in range(count)]
        table = write_jsonl(tmp_path / f"{count}.jsonl", rows)
        command = [sys.executable, "-c", _MEASURED, str(table), str(tmp_path / "pairs")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        pairs, peak = map(int, done.stdout.split())
        assert pairs == count
        peaks.append(peak)
    # KiB; 100,000 rows as text alone are 7 MB.
    assert peaks[1] - peaks[0] < 3 << 10, peaks
