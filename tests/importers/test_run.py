"""An import as a whole: kills at any moment, resuming, the command line, training on what came of it."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scdpo_core.importers.job import ALIASES, FORMATS, ImportJob
from scdpo_core.importers.run import run_import
from scdpo_core.preferences.folder import check_folder, read_folder
from scdpo_core.preferences.relabel import relabel, unscored
from scdpo_core.types import CostScore, ScdpoError, ScoredPair
from tests.preferences.test_labelling_session_kills import killed_at
from tests.support.import_sources import (
    imported,
    pairs_in,
    pickapic_row,
    write_image,
    write_jsonl,
    write_parquet,
)

ROOT = Path(__file__).resolve().parents[2]


def table(folder: Path, pairs: int, stored: bool = False) -> Path:
    rows: list[dict[str, Any]] = []
    for number in range(pairs):
        write_image(folder / f"{number}-a.png", 2 * number)
        write_image(folder / f"{number}-b.png", 2 * number + 1)
        row = {"prompt": f"p{number}", "chosen": f"{number}-a.png", "rejected": f"{number}-b.png"}
        rows.append(row | {"weight": 1 + number, "category": "weapon", "safe_prompt": "a spoon"})
    # A row twice, a missing file, a damaged one and a tie of an image with itself.
    (folder / "damaged.png").write_bytes((folder / "0-a.png").read_bytes()[:300])
    rows += [rows[0], *(rows[0] | {"chosen": name} for name in ("missing.png", "damaged.png", "0-b.png"))]
    for row in rows if stored else []:
        for side in ("chosen", "rejected"):
            if (file := folder / row[side]).is_file():
                row[side] = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    return write_jsonl(folder / "pairs.jsonl", rows)


def content(folder: Path) -> dict[str, bytes]:
    """Every file that is not the record of the work."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != "importing"
    }


@pytest.mark.skipif(os.name == "nt", reason="forks")
@pytest.mark.parametrize(("by", "stored"), [("copy", False), ("link", False), ("copy", True)])
def test_a_kill_at_any_moment_loses_nothing_and_imports_nothing_twice(
    tmp_path: Path, by: str, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scdpo_core.importers.run.BATCH", 2)
    source = table(tmp_path / "set", 2, stored)
    whole = imported(source, tmp_path / "whole", by=by)
    assert whole.state.imported == 2 and whole.state.repeated == 1
    log = next((tmp_path / "whole/importing").glob("*/rows.jsonl")).read_bytes()
    moments = 0
    while True:
        output = tmp_path / f"pairs{moments}"
        job = ImportJob(output, source, by=by)  # type: ignore[arg-type]
        if not killed_at(moments, partial(run_import, job)):
            break
        again = run_import(job)
        assert content(output) == content(tmp_path / "whole"), moments
        assert again.state.imported == 2 and again.state.repeated == 1, moments
        assert again.state.skipped == whole.state.skipped
        assert next((output / "importing").glob("*/rows.jsonl")).read_bytes() == log
        moments += 1
    assert moments > 20


def test_parquet_goes_on_in_the_middle_of_a_shard(tmp_path: Path) -> None:
    rows = [pickapic_row(number, 1) for number in range(40)]
    for shard in range(2):
        write_parquet(tmp_path / f"set/{shard}.parquet", rows[20 * shard : 20 * shard + 20], 7)
    job = ImportJob(tmp_path / "pairs", tmp_path / "set")
    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 1

    first = run_import(job, should_stop=stop)
    assert first.stopped and 0 < first.state.imported < 40 and not first.state.finished
    second = run_import(job)
    assert second.state.imported == 40 and len(pairs_in(tmp_path / "pairs")) == 40
    # Nothing is left to do, and what was taken away by hand does not come back.
    pair = check_folder(tmp_path / "pairs")[0]
    pair.chosen.unlink()
    pair.rejected.unlink()
    assert run_import(job).state.finished and len(check_folder(tmp_path / "pairs")) == 39


def test_a_limit_is_gone_on_from(tmp_path: Path) -> None:
    source = table(tmp_path / "set", 5)
    first = imported(source, tmp_path / "pairs", limit=2)
    assert first.limited and first.state.imported == 2
    assert imported(source, tmp_path / "pairs").state.imported == 5


def test_other_settings_are_refused_and_a_changed_source_is_read_anew(tmp_path: Path) -> None:
    source = table(tmp_path / "set", 2)
    imported(source, tmp_path / "pairs")
    with pytest.raises(ScdpoError, match=r"with other settings \(category: none -> gore\)"):
        imported(source, tmp_path / "pairs", category="gore")
    table(tmp_path / "set", 4)
    outcome = imported(source, tmp_path / "pairs")
    # The two that are there are not written twice; a row stands twice in the table.
    assert outcome.restarted and outcome.state.imported == 2 and outcome.state.repeated == 3
    assert len(pairs_in(tmp_path / "pairs")) == 4


def test_several_sources_share_a_folder_and_its_weights(tmp_path: Path) -> None:
    imported(table(tmp_path / "one", 2), tmp_path / "pairs")
    write_image(tmp_path / "two/a.png", 100)
    write_image(tmp_path / "two/b.png", 101)
    row = {"prompt": "q", "chosen": "a.png", "rejected": "b.png", "weight": 0.25}
    imported(write_jsonl(tmp_path / "two/a.jsonl", [row]), tmp_path / "pairs")
    weights = {pair.prompt: pair.weight for pair in pairs_in(tmp_path / "pairs")}
    assert weights == {"p0": 1, "p1": 2, "q": 0.25}
    pairs = pairs_in(tmp_path / "pairs")
    assert {each.pair.prompt: each.weight for each in unscored(pairs)} == weights
    # Also where the costs turn the order of a pair.
    costs = CostScore(9.0, {}, "s", "h"), CostScore(-9.0, {}, "s", "h")
    relabelled, report = relabel([ScoredPair(pair, *costs) for pair in pairs])
    assert {each.pair.prompt: each.weight for each in relabelled} == weights and len(report.swapped) == 3


def test_a_table_of_weights_is_checked(tmp_path: Path) -> None:
    imported(table(tmp_path / "one", 2), tmp_path / "pairs")
    file = tmp_path / "pairs/weights.csv"
    good = file.read_text()
    file.write_text(good + "nobody,3\n")
    pairs, problems = read_folder(tmp_path / "pairs")
    assert len(pairs) == 2 and ["1 of its lines name no pair" in each.what for each in problems] == [True]
    for bad in ("name,weight\n", "pair,weight\nx,-1\n", "pair,weight\nx,nan\n", "pair,weight\nx\n", "\0"):
        file.write_text(bad)
        assert [each.path for each in read_folder(tmp_path / "pairs")[1] if each.fatal] == [file], bad


def run_door(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "trainer/import_pairs.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_line(tmp_path: Path) -> None:
    source = table(tmp_path / "set", 2)
    common = [str(source), "--output", str(tmp_path / "my pairs")]
    looked = run_door(*common, "--dry-run")
    assert looked.returncode == 0 and "would be imported" in looked.stdout, looked.stderr
    assert not (tmp_path / "my pairs").exists()
    done = run_door(*common)
    assert done.returncode == 0 and "2  pairs imported" in done.stdout and "Report: " in done.stdout
    assert f"--pairs '{tmp_path / 'my pairs'}'" in done.stdout and "an image is missing" in done.stdout
    refused = run_door(*common, "--format", "hpd")
    assert refused.returncode == 2 and refused.stderr.startswith("Error: ")
    written = run_door("--help").stdout
    assert all(name in written for name in (*FORMATS, *ALIASES))


@pytest.mark.slow
def test_the_embedded_model_trains_on_what_was_imported(tmp_path: Path) -> None:
    source = table(tmp_path / "set", 2)
    imported(source, tmp_path / "pairs")
    command = [sys.executable, "trainer/train_lora.py", "--pairs", str(tmp_path / "pairs"), "--base", "micro"]
    command += ["--output", str(tmp_path / "run"), "--max-train-steps", "2", "--samples", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/run.safetensors").is_file()
