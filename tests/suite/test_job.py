"""Settings, the run folder and its tables: what is wrong is said at once, what is there is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scdpo_core.suite.attack_names import ATTACKS, attack_problem, split_spec
from scdpo_core.suite.defaults import complete
from scdpo_core.suite.folder import DrawnWith, EvalFolder, Table
from scdpo_core.suite.job import EvalJob, job_in, problems, write_job
from scdpo_core.suite.judging import Opinion
from scdpo_core.types import ScdpoError


@pytest.fixture(name="job")
def _job(tmp_path: Path) -> EvalJob:
    for name in ("harm.txt", "benign.txt", "calm.safetensors", "other.safetensors"):
        (tmp_path / name).write_text("a thing\n")
    (tmp_path / "images").mkdir()
    return EvalJob(
        "micro",
        tmp_path / "eval",
        (tmp_path / "calm.safetensors",),
        (tmp_path / "harm.txt",),
        benign=(tmp_path / "benign.txt",),
        scorers=("micro-judge", "micro"),
        attacks=("img2img=0.8", "inversion"),
        reference=tmp_path / "images",
    )


def test_a_job_goes_to_the_disk_and_back(job: EvalJob) -> None:
    assert list(problems(job)) == []
    write_job(job)
    assert job_in(job.output) == job
    moved = job.output.rename(job.output.with_name("moved"))
    assert job_in(moved) == replace(job, output=moved)  # nothing is written where it was
    (moved / "job.toml").write_text("base = 3", "utf-8")
    with pytest.raises(ScdpoError, match="missing or damaged"):
        job_in(moved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base": " "}, "Choose a base model"),
        ({"prompts": (), "benign": (), "attacks": (), "reference": None}, "Name the prompts"),
        ({"prompts": (Path("/nowhere.csv"),)}, "There is no prompt file /nowhere.csv"),
        ({"loras": (Path("/no.safetensors"),)}, "There is no LoRA"),
        ({"weights": (1.0, 0.0)}, "are not 0"),
        ({"weights": (9.0,)}, "lie between -4 and 4"),
        ({"weights": tuple(range(1, 10))}, "Give 1 to 8 weights"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"steps": 5000}, "--steps is 5000"),
        ({"width": 512}, "both --width and --height"),
        ({"width": 100, "height": 64}, "multiples of 8"),
        ({"scorers": ()}, "Somebody has to judge"),
        ({"scorers": ("nobody",)}, "no scorer and no cost model file 'nobody'.*micro-judge"),
        ({"scorers": ("micro", "micro")}, "named twice"),
        ({"attacks": ("sorcery",)}, "no attack 'sorcery'.*img2img"),
        ({"attacks": ("img2img=2",)}, "at most 1"),
        ({"attacks": ("stacked=/no",)}, "There is no LoRA '/no'"),
        ({"attacks": ("relearn",), "benign": (), "reference": None}, "give --benign"),
        ({"loras": ()}, "Attacks are tried on a LoRA"),
        ({"base": "model", "attacks": ("search",)}, "--attack-words knife"),
        ({"attacks": (), "attack_words": ("x",)}, "no effect without --attack inversion"),
        ({"benign": (), "attacks": ()}, "--reference is compared with benign"),
        ({"reference": None, "encoder": "micro"}, "no effect without --reference"),
        ({"clip": Path("/no")}, "--clip: there is no folder"),
        ({"base": "/models/caf\udce9"}, "not valid Unicode"),
    ],
)
def test_what_is_wrong_is_said(job: EvalJob, change: dict[str, object], said: str) -> None:
    import re

    found = "\n".join(problems(replace(job, **change)))  # type: ignore[arg-type]
    assert re.search(said, found), found


def test_two_loras_are_two_files(job: EvalJob, tmp_path: Path) -> None:
    both = replace(job, loras=(tmp_path / "calm.safetensors", tmp_path / "other.safetensors"))
    assert list(problems(both)) == []
    assert "same file" in "".join(problems(replace(job, loras=job.loras * 2)))
    assert "there are 3" in "".join(problems(replace(job, loras=(*both.loras, tmp_path / "harm.txt"))))


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_a_default_that_it_takes(name: str) -> None:
    if name != "stacked":  # which needs a file
        assert attack_problem(name) == ""
    assert attack_problem(f"{name}=%") and split_spec(f"{name}=3x4") == (name, "3x4")


def test_what_nobody_says_comes_from_the_run_or_the_embedded_world(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("x")
    job = complete({"base": "micro", "prompts": [tmp_path / "p.txt"], "output": tmp_path / "e"})
    assert (job.scorers, job.batch, job.guidance) == (("micro-judge",), 32, 3.0)
    other = complete({"base": "models/x.safetensors", "output": tmp_path / "e", "scorer": ["micro"]})
    assert Path(other.base).is_absolute() and other.scorers == ("micro",) and other.guidance == 5.0
    with pytest.raises(ScdpoError, match="--base"):
        complete({"output": tmp_path / "e", "lora": [tmp_path / "calm.safetensors"]})


def test_images_drawn_with_something_else_are_not_mixed(tmp_path: Path) -> None:
    folder = EvalFolder(tmp_path)
    first = DrawnWith(20, 3.0, "", loras={"calm": "aa"}, prompts={"i2p": "11"})
    folder.remember(first)
    folder.remember(replace(first, model="base1", prompts={"mma": "22"}))  # more of the same only adds
    for change, said in (
        ({"steps": 30}, "number of steps .20, now 30"),
        ({"guidance": 4.0}, "guidance"),
        ({"size": "64x64"}, "the model's own, now 64x64"),
        ({"model": "base2"}, "base model"),
        ({"loras": {"calm": "bb"}}, "LoRA 'calm'"),
        ({"prompts": {"mma": "33"}}, "prompt file 'mma'"),
    ):
        with pytest.raises(ScdpoError, match=said):
            folder.remember(replace(first, **change))  # type: ignore[arg-type]
    (tmp_path / "drawn_with.json").write_text("{", "utf-8")
    with pytest.raises(ScdpoError, match="damaged"):
        folder.remember(first)


def test_a_table_loses_nothing_but_a_line_that_was_cut_off(tmp_path: Path) -> None:
    folder = EvalFolder(tmp_path)
    one = Table(folder, "judge", Opinion, "1-of-2")
    one.add(Opinion("base/a.png", True, 1.5))
    one.close()
    path = tmp_path / "judged" / "judge.1-of-2.jsonl"
    path.write_text(path.read_text() + '{"image": "base/b.png", "harm', "utf-8")  # killed in the middle
    again = Table(folder, "judge", Opinion, "1-of-2")
    assert list(again.rows) == ["base/a.png"]
    again.add(Opinion("base/b.png", False, -1.0))
    again.close()
    other = Table(folder, "judge", Opinion, "2-of-2")
    other.add(Opinion("base/c.png", None, error="broken"))
    other.close()
    # Whoever reads knows the rows of every share.
    rows = Table(folder, "judge", Opinion, "all").rows
    assert {name: row.harmful for name, row in rows.items()} == {
        "base/a.png": True,
        "base/b.png": False,
        "base/c.png": None,
    }
