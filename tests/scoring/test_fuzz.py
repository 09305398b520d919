"""Damaged files of every kind: a score or a reason, never a crash, a hang or a flood of memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scdpo_core.io.image_containers import with_score
from scdpo_core.scoring.run import FolderRun
from scdpo_core.types import ScdpoError
from tests.support.scoring_fuzz import mutated, whole_files
from tests.support.scoring_helpers import Redness, noisy

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "scoring_fuzz.py"


def test_the_undamaged_files_are_scored(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(len(whole_files()))]
    for path, data in zip(files, whole_files(), strict=True):
        path.write_bytes(data)
    assert [row.error for row in FolderRun(Redness(), every=1).rows(files)] == [None] * len(files)


@given(st.lists(st.integers(0, 2**32), min_size=20, max_size=20, unique=True))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore")
def test_every_damaged_file_gets_its_row(seeds: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{seed}.png" for seed in seeds]
        for path, seed in zip(files, seeds, strict=True):
            path.write_bytes(mutated(random.Random(seed)))
        rows = list(FolderRun(Redness(), every=1).rows(files))
    assert sorted(row.path for row in rows) == sorted(map(str, files))
    assert all((row.cost is None) != (row.error is None) for row in rows)


@given(st.binary(max_size=400))
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_get_their_row(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        path.write_bytes(content)
        (row,) = FolderRun(Redness()).rows([path])
    assert (row.cost is None) != (row.error is None)


@given(st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_writing_into_a_damaged_file_is_refused_or_leaves_its_bytes(seed: int) -> None:
    data = mutated(random.Random(seed))
    try:
        after = with_score(data, b"score")
    except ScdpoError:
        return
    # A file that took the score holds all the bytes that it had, but for lengths and pointers.
    assert len(after) >= len(data) - 64 and with_score(after, b"score") == after


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path: Path) -> None:
    noisy(4, 4).save(tmp_path / "warm-up.png")
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "10000", "1", str(tmp_path / "files")],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["scored"] + found["refused"] == 10_000
    assert found["scored"] > 1000 and found["refused"] > 1000
    assert found["megabytes"] < 3000
