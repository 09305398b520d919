"""Jobs from a door's few values."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scdpo_core.config import toml
from scdpo_core.config.settings import TrainSettings, load_toml
from scdpo_core.run_store.folder import kind_of
from scdpo_core.run_store.state import state_of
from scdpo_core.runs import jobs
from scdpo_core.runs.jobs import COST_QUALITIES, QUALITIES, CostJob, LoraJob, problems, write
from scdpo_core.types import ScdpoError
from tests.support.runs_helpers import ROOT

PAIRS = ROOT / "examples" / "preferences"


def lora(tmp_path: Path, **changes: Any) -> LoraJob:
    return dataclasses.replace(LoraJob(PAIRS, "micro", tmp_path / "runs", "my lora"), **changes)


def test_a_lora_job_says_what_was_chosen_and_no_more(tmp_path: Path) -> None:
    folder = write(lora(tmp_path, quality="fast", overrides="[optim]\nlr = 3e-4\n[lora]\nrank = 4\n"))
    assert folder == tmp_path / "runs" / "my lora"
    assert toml.loads((folder / "job.toml").read_text("utf-8")) == {
        "model": {"base": "micro"},
        "data": {"pairs": str(PAIRS)},
        "output": {"output": str(folder)},
        "optim": {"max_train_steps": 75, "lr": 3e-4},
        "lora": {"rank": 4},
    }
    # The trainer reads it over the settings for that kind of model.
    settings = load_toml(folder / "job.toml", load_toml(ROOT / "trainer" / "configs" / "micro.toml"))
    assert (settings.optim.lr, settings.optim.batch_size, settings.objective.beta_scale) == (3e-4, 8, 0.1)
    assert state_of(folder) == "queued" and kind_of(folder) == "lora"


def test_a_lora_that_is_continued_keeps_its_rank_whatever_the_quality(tmp_path: Path) -> None:
    more = '[lora]\ninit_lora = "calm.safetensors"\n[data]\nmore_pairs = ["others:2"]\n'
    job = lora(tmp_path, quality="fast", overrides=more)
    assert problems(job) == []
    tree = toml.loads((write(job) / "job.toml").read_text("utf-8"))
    assert tree["lora"] == {"init_lora": "calm.safetensors"} and tree["optim"]["max_train_steps"] == 75
    (sentence,) = problems(dataclasses.replace(job, name="other", choices={"lora": {"rank": 8}}))
    assert sentence.startswith("lora.rank has no effect here, for it needs a new LoRA")


def test_paths_are_made_good_for_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").touch()
    job = lora(tmp_path, base=" model.safetensors ", output=Path("out"), cost_model="micro")
    tree = toml.loads((write(job) / "job.toml").read_text("utf-8"))
    assert tree["model"]["base"] == str(tmp_path / "model.safetensors")
    assert tree["data"]["cost_model"] == "micro"
    assert tree["output"]["output"] == str(tmp_path / "out" / "my lora")
    assert toml.loads((write(lora(tmp_path, base="owner/model")) / "job.toml").read_text())["model"] == {
        "base": "owner/model"
    }


@pytest.mark.parametrize("quality", list(QUALITIES))
def test_qualities_are_sound(tmp_path: Path, quality: jobs.Quality) -> None:
    assert problems(lora(tmp_path, quality=quality)) == []
    assert set(COST_QUALITIES[quality]) <= set(jobs.COST_KEYS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": ""}, "'' cannot be a file name"),
        ({"name": "a/b"}, "'a/b' cannot be a file name"),
        ({"name": ".."}, "cannot be a file name"),
        ({"name": "NUL"}, "'NUL' cannot be a file name"),
        ({"name": "x" * 81}, "Use up to 80 letters"),
        ({"name": "mine.safetensors"}, "Call it mine."),
        ({"base": ""}, "Choose a base model."),
        ({"base": "/no/such.safetensors"}, "There is no base model /no/such.safetensors."),
        ({"pairs": Path("/no/pairs")}, "/no/pairs"),
        ({"quality": "superb"}, "There is no quality 'superb'. Choose one of: fast, normal, best."),
        ({"overrides": "lr ="}, "Advanced settings: this is not valid TOML"),
        ({"overrides": "[optim]\nlrr = 1"}, "Did you mean 'optim.lr'?"),
        ({"overrides": "[optim]\nlr = 'a'"}, "'optim.lr' must be a number"),
        ({"overrides": "[optim]\nlr = -1.0"}, "optim.lr must be above 0, not -1."),
        ({"overrides": "optim = 3"}, "'optim' is a section"),
        ({"overrides": "[model]\nbase = 'x'"}, "'model.base' is chosen above; leave it out."),
    ],
)
def test_what_is_wrong_is_a_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    job = lora(tmp_path, **changes)
    assert any(sentence in problem for problem in problems(job)), problems(job)
    with pytest.raises(ScdpoError):
        write(job)
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    job = lora(tmp_path, name="", base="", pairs=tmp_path, overrides="[optim]\nlr = 0.0\nwarmup = 2.0")
    assert len(problems(job)) == 5


@pytest.mark.parametrize(
    "left", ["my lora.safetensors", "checkpoints/step-000001.state.safetensors", "queued"]
)
def test_nothing_is_overwritten(tmp_path: Path, left: str) -> None:
    folder = write(lora(tmp_path))
    assert write(lora(tmp_path)) == folder, "a job that did not run yet may be changed"
    (folder / left).parent.mkdir(exist_ok=True)
    (folder / left).touch()
    (problem,) = problems(lora(tmp_path))
    assert "'my lora'" in problem and "choose another name" in problem


def test_a_cost_job(tmp_path: Path) -> None:
    examples = ROOT / "examples" / "cost_pictures"
    job = CostJob(
        tmp_path,
        "mine",
        unsafe=examples / "unsafe",
        safe=examples / "safe",
        quality="fast",
        overrides="seed = 3\nlr = 1",
    )
    folder = write(job)
    assert kind_of(folder) == "cost"
    assert toml.loads((folder / "job.toml").read_text("utf-8")) == {
        "unsafe": str(examples / "unsafe"),
        "safe": str(examples / "safe"),
        "encoder": "embedded",
        "output": str(folder / "mine.safetensors"),
        "report": str(folder / "report.html"),
        "steps": 250,
        "views": 1,
        "seed": 3,
        "lr": 1,
    }
    nothing = dataclasses.replace(job, name="b", safe=None)
    assert problems(nothing) == [
        "Give a folder of harmful and one of harmless images, or a preference folder."
    ]
    assert problems(dataclasses.replace(nothing, safe=job.safe, pairs=PAIRS)) != []
    assert problems(CostJob(tmp_path, "b", pairs=PAIRS)) == []
    wrong = dataclasses.replace(
        job, name="b", benign=tmp_path / "no", overrides="a = 1\nseed = 1.5\nlr = true"
    )
    assert [problem.split("'")[-2] if "'" in problem else problem for problem in problems(wrong)] == [
        f"There is no folder {tmp_path / 'no'}.",
        "a",
        "seed",
        "lr",
    ]


def test_writing_a_job_loads_no_training_package(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom scdpo_core.runs.jobs import LoraJob, write\n"
        f"write(LoraJob(Path({str(PAIRS)!r}), 'micro', Path({str(tmp_path)!r}), 'a'))\n"
        "print({'diffusers', 'transformers', 'peft', 'accelerate', 'matplotlib'} & set(sys.modules))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert told.stdout == "set()\n", told.stderr
    assert isinstance(load_toml(tmp_path / "a" / "job.toml"), TrainSettings)
