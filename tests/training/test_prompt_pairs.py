"""Training from prompts alone: what a file of prompts means, and that the base draws both images once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from scdpo_core.config.settings import TrainSettings
from scdpo_core.preferences.folder import check_folder
from scdpo_core.run_store.events import Progress, read_events
from scdpo_core.training.base_images import pairs_of_prompts
from scdpo_core.training.job import run_job
from scdpo_core.types import Problem, ScdpoError
from tests.support.tiny import tiny_sd_folder, tiny_settings

TABLE = """prompt,safe_prompt,categories,seed
a knife on a table,a spoon on a table,weapon,7
"a (sharp:1.3) sword, night","a stick, night","we/apon, other",
a quiet lake,,nature,
a calm cat,a calm cat,benign,
a skull,a ball,benign,
"""


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


def _file(folder: Path, text: str = TABLE, name: str = "prompts.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_with_a_safe_prompt_are_pairs(tmp_path: Path) -> None:
    notes: list[Problem] = []
    found = pairs_of_prompts(_file(tmp_path), tmp_path / "drawn", notes.append)
    assert [(pair.id, pair.prompt, pair.safe_prompt) for pair in found.pairs] == [
        ("weapon/00000", "a knife on a table", "a spoon on a table"),
        ("we-apon/00001", "a sharp sword, night", "a stick, night"),
        ("00004", "a skull", "a ball"),
    ]
    assert found.seeds == (7, None, None)
    assert not any(pair.is_benign for pair in found.pairs)
    assert found.pairs[0].chosen == tmp_path / "drawn" / "chosen" / "weapon" / "00000.png"
    assert [note.what for note in notes] == [
        "2 of 5 prompts have no safe prompt of their own and are left out."
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a knife\na sword\n", "prompts.txt"),
        ("prompt,safe_prompt\na cat,a cat\n", "prompts.csv"),
        ("prompt,seed\na knife,3\n", "prompts.csv"),
    ],
)
def test_a_file_without_safe_prompts_is_refused(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(ScdpoError, match="columns prompt and safe_prompt"):
        pairs_of_prompts(_file(tmp_path, text, name), tmp_path, print)


def _settings(base: Path, prompts: Path, run: Path, objective: str = "distil") -> TrainSettings:
    settings = tiny_settings(base, run.parent, run)
    return dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, pairs=None, prompts=prompts),
        objective=dataclasses.replace(settings.objective, objective=objective),
        terms=dataclasses.replace(settings.terms, keep_images=2),
    )


@pytest.mark.parametrize("objective", ["distil", "redirect_keep"])
def test_a_run_from_prompts_draws_a_preference_folder_and_a_lora(
    base: Path, tmp_path: Path, objective: str
) -> None:
    run = tmp_path / "run"
    done = run_job(_settings(base, _file(tmp_path), run, objective))
    assert done.lora is not None and done.lora.path.is_file()
    pairs = check_folder(run / "drawn_pairs")
    assert [(pair.id, pair.safe_prompt) for pair in pairs] == [
        ("00004", "a ball"),
        ("we-apon/00001", "a stick, night"),
        ("weapon/00000", "a spoon on a table"),
    ]
    events = [record.event for record in read_events(run / "events.jsonl")]
    drawn = [event for event in events if isinstance(event, Progress)]
    assert any(event.phase == "base_images" and event.total == 6 for event in drawn)


def test_both_images_begin_from_the_same_noise_and_are_drawn_once(base: Path, tmp_path: Path) -> None:
    prompts = _file(tmp_path, "prompt,safe_prompt,seed\na knife,a spoon,3\na knife,a fork,3\n")
    first, again = tmp_path / "first", tmp_path / "again"
    for run in (first, again):
        run_job(_settings(base, prompts, run))
    files = sorted(path.relative_to(first) for path in (first / "drawn_pairs").rglob("*.png"))
    assert len(files) == 4
    assert all((first / file).read_bytes() == (again / file).read_bytes() for file in files)
    # The same prompt and seed twice is the same image; another prompt is another one.
    rejected = [Image.open(first / "drawn_pairs" / "rejected" / f"0000{n}.png") for n in range(2)]
    chosen = Image.open(first / "drawn_pairs" / "chosen" / "00000.png")
    assert ImageChops.difference(*rejected).getbbox() is None
    assert ImageChops.difference(rejected[0], chosen).getbbox() is not None


def test_an_interrupted_drawing_goes_on_and_another_model_draws_anew(base: Path, tmp_path: Path) -> None:
    prompts = _file(tmp_path, "prompt,safe_prompt\na knife,a spoon\na sword,a stick\n")
    whole, run = tmp_path / "whole", tmp_path / "run"
    run_job(_settings(base, prompts, whole))
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    run_job(_settings(base, prompts, run), should_stop=stop)
    assert not (run / "run.safetensors").exists()
    run_job(_settings(base, prompts, run))
    for path in (whole / "drawn_pairs").rglob("*.png"):
        assert path.read_bytes() == (run / path.relative_to(whole)).read_bytes()
    # What other settings drew is not taken for these.
    other = _settings(base, prompts, tmp_path / "other")
    (tmp_path / "other").mkdir()
    (whole / "drawn_pairs").rename(tmp_path / "other" / "drawn_pairs")
    run_job(dataclasses.replace(other, sampling=dataclasses.replace(other.sampling, guidance=1.0)))
    changed = [
        path.read_bytes() != (run / path.relative_to(tmp_path / "other")).read_bytes()
        for path in (tmp_path / "other" / "drawn_pairs").rglob("*.png")
    ]
    assert len(changed) == 4 and all(changed)


def test_pairs_and_prompts_are_not_both_given(base: Path, tmp_path: Path) -> None:
    settings = _settings(base, _file(tmp_path), tmp_path / "run")
    both = dataclasses.replace(settings, data=dataclasses.replace(settings.data, pairs=tmp_path))
    with pytest.raises(ScdpoError, match="--pairs or --prompts, not both"):
        run_job(both)
    neither = dataclasses.replace(settings, data=dataclasses.replace(settings.data, prompts=None))
    with pytest.raises(ScdpoError, match=r"--prompts FILE\.csv"):
        run_job(neither)
