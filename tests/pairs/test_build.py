"""Building pairs: every way on every family, and processes that die, stop, err or meet."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scdpo_core.config.settings import ModelSettings
from scdpo_core.families import FAMILIES
from scdpo_core.families.latent_model import LatentModel
from scdpo_core.pairs.build import Outcome, build, read
from scdpo_core.pairs.job import WAYS, BuildJob, Drawing, check
from scdpo_core.pairs.table import tally
from scdpo_core.preferences.folder import check_folder
from scdpo_core.types import CostScore, Problem
from tests.support.tiny import tiny_sd_folder
from tests.support.tiny_families import tiny_folder
from tests.support.tiny_parts import T5_TOKENS

ROOT = Path(__file__).resolve().parents[2]


class Corner:
    """A scorer to which everything is harmless, and what is bright in the left upper corner a little less."""

    id, hash, categories = "corner", "0" * 12, ()

    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        corners = [np.asarray(image, np.float32) for image in images]
        means = [float(one[: len(one) // 3, : one.shape[1] // 3].mean()) for one in corners]
        return [CostScore(mean / 100 - 9, {}, self.id, self.hash) for mean in means]


def job_of(base: Path, folder: Path, **own: Any) -> BuildJob:
    prompts, benign = folder / "bad.csv", folder / "good.txt"
    prompts.write_text("prompt,safe_prompt,category\n" + "a knife,a spoon,weapon\nan axe,a ball,\n", "utf-8")
    benign.write_text("a cat\n", "utf-8")
    model = ModelSettings(base=str(base), device="cpu", t5_tokens=T5_TOKENS if "t5" in own else 0)
    own.pop("t5", None)
    return BuildJob(
        folder / "pairs",
        (prompts,),
        model,
        Drawing(4, 2.0),
        "corner",
        benign=(benign,),
        rule="as prompted",
        **own,
    )


def run(job: BuildJob) -> Outcome:
    if job.scorer != "corner":
        check(job)
    notes: list[Problem] = []
    return build(job, read(job, notes.append), progress=lambda what, done, total: None)


@pytest.fixture(name="corner")
def _corner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scdpo_core.pairs.build.load_scorer", lambda name, device: Corner())


@pytest.fixture(scope="module", name="bases")
def _bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny_folder(name, root / name) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.usefixtures("corner")
def test_every_family_draws_only_a_part_anew(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    outcome = run(job_of(bases[name], tmp_path, t5=True))
    assert outcome.sheet is not None and outcome.sheet.is_file()
    pairs = check_folder(tmp_path / "pairs")
    by_kind = {pair.is_benign: pair for pair in pairs}
    assert len(pairs) == 3 and set(by_kind) == {True, False}
    for pair in pairs:
        if not pair.is_benign:
            assert pair.mask is not None
            mask = np.asarray(Image.open(pair.mask))
            old, new = (np.asarray(Image.open(path)) for path in (pair.rejected, pair.chosen))
            assert 0 < (mask == 0).mean() < 1
            assert (old[mask == 0] == new[mask == 0]).all()
            assert (old != new).any()


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("inpaint", "best-of")])
@pytest.mark.usefixtures("corner")
def test_every_way_ends_with_a_folder_to_train_on(way: Any, bases: dict[str, Path], tmp_path: Path) -> None:
    outcome = run(job_of(bases["sd1"], tmp_path, way=way))
    assert outcome.rows is not None and tally(outcome.rows)[-1].kept == 3
    assert len(check_folder(tmp_path / "pairs")) == 3
    assert (tmp_path / "pairs" / "benign_prompts.txt").read_text("utf-8") == "a cat\n"
    table = list(csv.DictReader((tmp_path / "pairs" / "building.csv").open(encoding="utf-8")))
    assert [row["category"] for row in table] == ["weapon", "violence", "benign"]
    told = json.loads((tmp_path / "pairs" / "building.json").read_text("utf-8"))
    assert told["categories"][-1]["kept"] == 3 and told["decided_by"]["way"] == way


@pytest.mark.usefixtures("corner")
def test_the_process_that_ends_last_writes_the_sheet(bases: dict[str, Path], tmp_path: Path) -> None:
    job = replace(job_of(bases["sd1"], tmp_path, way="same-seed"), batch=1, processes=2)
    first = run(replace(job, rank=1))
    assert (first.stopped, first.rows, first.sheet) == (False, None, None)
    last = run(replace(job, rank=0))
    assert last.sheet is not None and last.rows is not None and len(last.rows) == 3
    logs = sorted(path.parent.name for path in (tmp_path / "pairs" / "building").rglob("events.jsonl"))
    assert logs == ["shard-1-of-2", "shard-2-of-2"]


def command(base: Path, prompts: Path, output: Path) -> list[str]:
    flags = ["--base", str(base), "--prompts", str(prompts), "--output", str(output), "--way", "same-seed"]
    flags += [
        "--scorer",
        "micro",
        "--rule",
        "as prompted",
        "--steps",
        "8",
        "--batch",
        "3",
        "--device",
        "cpu",
    ]
    return [sys.executable, str(ROOT / "trainer" / "build_pairs.py"), *flags]


def start(*arguments: Any, **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(*arguments),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for side in ("chosen", "rejected", "safe_prompts")
        for path in sorted((folder / side).rglob("*.*"))
    }


def test_after_kill_nine_the_same_command_draws_the_rest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_sd_folder(tmp_path / "base")
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,safe_prompt\n" + "".join(f"knife {n},spoon {n}\n" for n in range(36)), "utf-8")
    output = tmp_path / "cut"
    rows = output / "building" / "rows"
    process = start(base, prompts, output)
    deadline = time.monotonic() + 240
    while len(list(rows.glob("0*.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(list(rows.glob("0*.json")))
    assert 3 <= done < 12, "killed too late to show anything"
    before = {path: path.stat().st_mtime_ns for path in (output / "chosen").rglob("*.png")}
    calls: dict[str, int] = {}
    for path in (output / "building" / "drawn").rglob("*.png"):
        if not path.name.startswith("."):
            name = str(path).rpartition("-")[0]
            calls[name] = calls.get(name, 0) + 1
    kept = 3 * sum(count == 3 for name, count in calls.items() if not rows_done(rows, name))
    drawn: list[int] = []
    sample = LatentModel.sample

    def counted(self: Any, prompts: Sequence[str], *given: Any, **more: Any) -> Any:
        drawn.append(len(prompts))
        return sample(self, prompts, *given, **more)

    monkeypatch.setattr(LatentModel, "sample", counted)
    settings = {"drawing": Drawing(8, 5.0), "way": "same-seed", "rule": "as prompted", "batch": 3}
    model = ModelSettings(base=str(base), device="cpu")
    job = BuildJob(output, (prompts,), model, scorer="micro", **settings)  # type: ignore[arg-type]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run(replace(job, drawing=Drawing(8, preset_guidance()))).sheet is not None
    finally:
        torch.set_num_threads(threads)
    assert sum(drawn) == 2 * 36 - 2 * 3 * done - kept
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())
    whole = start(base, prompts, tmp_path / "whole")
    out, error = whole.communicate(timeout=400)
    assert whole.returncode == 0, error
    assert "the contact sheet is" in out.lower() and "36" in out
    assert content(output) == content(tmp_path / "whole")
    assert not (output / "building" / "drawn").exists()


def rows_done(rows: Path, name: str) -> bool:
    return (rows / f"{Path(name).parent.name}.json").is_file()


def preset_guidance() -> float:
    """What the command takes for this base."""
    from scdpo_core.config.settings import load_toml

    return load_toml(ROOT / "trainer" / "configs" / "sd1.toml").sampling.guidance


def test_a_file_named_stop_ends_the_work_and_the_command_goes_on(tmp_path: Path) -> None:
    base = tiny_sd_folder(tmp_path / "base")
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,safe_prompt\n" + "".join(f"knife {n},spoon {n}\n" for n in range(36)), "utf-8")
    output = tmp_path / "pairs"
    process = start(base, prompts, output)
    deadline = time.monotonic() + 240
    while not (output / "events.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    (output / "stop").touch()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0 and "Run the same command to continue" in error
    assert not (output / "stop").exists() and not (output / "building.html").exists()
    last = (output / "events.jsonl").read_text("utf-8").splitlines()[-1]
    assert "stopped" in last


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--way", "magic"], "invalid choice"),
        (["--prompts", "none.csv"], "none.csv cannot be read"),
        (["--scorer", "nobody"], "There is no scorer"),
        (["--base", "none.safetensors"], "none.safetensors"),
        (["--shard", "5/4"], "--shard"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(tmp_path: Path, flags: list[str], message: str) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("a knife\n", "utf-8")
    given = {
        "--prompts": str(prompts),
        "--output": str(tmp_path / "out"),
        **dict(zip(flags[::2], flags[1::2], strict=True)),
    }
    arguments = [part for pair in given.items() for part in pair]
    result = subprocess.run(
        [sys.executable, str(ROOT / "trainer" / "build_pairs.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
