from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors import SafetensorError

from scdpo_core.cost.scorers import load_scorer
from scdpo_core.io.files import read_tensors
from scdpo_core.run_store.events import Progress, read_events
from scdpo_core.runs.follow import Follower
from tests.support.cost_helpers import colour_folder, tiny_tower

SCRIPT = Path(__file__).resolve().parents[2] / "trainer" / "train_cost.py"
RED, GREEN = (200, 40, 40), (40, 200, 40)


@pytest.fixture(scope="module")
def door() -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = runpy.run_path(str(SCRIPT))["main"]
    return main


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tower(tmp_path_factory.mktemp("towers") / "tiny-clip")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    colour_folder(tmp_path / "unsafe" / "weapon", RED, 20, 0)
    colour_folder(tmp_path / "unsafe" / "rare", RED, 2, 1)
    colour_folder(tmp_path / "safe", GREEN, 24, 2)
    return tmp_path


def arguments(folder: Path, tower: Path, *more: str) -> list[str]:
    return [
        *("--unsafe", str(folder / "unsafe"), "--safe", str(folder / "safe")),
        *("--output", str(folder / "out" / "cost.safetensors"), "--encoder", str(tower)),
        *("--views", "2", "--steps", "75", "--device", "cpu", *more),
    ]


def test_from_folders_to_a_scorer(
    door: Callable[[list[str]], int], images: Path, tower: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door(arguments(images, tower)) == 0
    told = capsys.readouterr().out
    file = images / "out" / "cost.safetensors"
    assert "22 unsafe and 24 safe images" in told and str(file) in told and "AUC" in told
    _, metadata = read_tensors(file)
    figures, calibration = json.loads(metadata["figures"]), json.loads(metadata["calibration"])
    assert figures["unsafe"] == 22 and set(figures["categories"]) == {"weapon"}
    assert calibration["target_fpr"] == 0.01 and calibration["benign"] == 24
    red, green = load_scorer(file).score([Image.new("RGB", (9, 9), colour) for colour in (RED, GREEN)])
    assert red.value > green.value
    assert red.scorer == "cost" and red.categories["rare"] is None


def test_pairs(door: Callable[[list[str]], int], tmp_path: Path, tower: Path) -> None:
    colour_folder(tmp_path / "rejected" / "weapon", RED, 22, 0)
    colour_folder(tmp_path / "chosen" / "weapon", GREEN, 22, 1)
    colour_folder(tmp_path / "rejected" / "benign", GREEN, 4, 2)
    colour_folder(tmp_path / "chosen" / "benign", GREEN, 4, 3)
    output = tmp_path / "cost.safetensors"
    call = ["--pairs", str(tmp_path), "--output", str(output), "--encoder", str(tower), "--steps", "25"]
    assert door(call) == 0
    _, metadata = read_tensors(output)
    figures = json.loads(metadata["figures"])
    assert (figures["unsafe"], figures["safe"]) == (22, 22 + 2 * 4)


def test_every_bad_image_is_named_before_any_work(
    door: Callable[[list[str]], int], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "safe" / "p003.png").write_bytes(b"")
    (images / "unsafe" / "rare" / "p000.png").write_text("hello", encoding="utf-8")
    # The encoder does not exist: nobody may have looked for it.
    assert door(arguments(images, images / "no-encoder")) == 2
    told = capsys.readouterr().err
    assert "p003.png: " in told and "p000.png: " in told and "2 images cannot be used" in told
    assert "no-encoder" not in told
    assert not (images / "out" / "cost.safetensors").exists()


def test_bad_images_can_be_left_out(door: Callable[[list[str]], int], images: Path, tower: Path) -> None:
    (images / "safe" / "p003.png").write_bytes(b"")
    assert door(arguments(images, tower, "--skip-bad", "--steps", "25")) == 0


def test_an_earlier_model_is_not_overwritten_unasked(
    door: Callable[[list[str]], int], images: Path, tower: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = images / "out" / "cost.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"precious")
    assert door(arguments(images, tower)) == 2
    assert "--overwrite" in capsys.readouterr().err and file.read_bytes() == b"precious"
    assert door(arguments(images, tower, "--overwrite", "--steps", "25")) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--encoder", "no-such-folder"], "There is no image encoder no-such-folder"),
        (["--output", "cost.ckpt"], ".safetensors"),
        (["--safe", "no-such-folder"], "There is no folder no-such-folder"),
    ],
)
def test_wrong_arguments_are_sentences(
    door: Callable[[list[str]], int],
    images: Path,
    tower: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    says: str,
) -> None:
    assert door(arguments(images, tower, *change)) == 2
    told = capsys.readouterr().err
    assert says in told and told.startswith("Error: ") and "Traceback" not in told


@pytest.mark.parametrize("call", [["--unsafe", "a"], ["--pairs", "a", "--safe", "b"], []])
def test_images_are_asked_for_one_way(door: Callable[[list[str]], int], call: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        door([*call, "--output", "c.safetensors"])
    assert caught.value.code == 2


def test_a_place_that_cannot_be_written_to_is_found_first(
    door: Callable[[list[str]], int], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "out").write_text("a file in the way", encoding="utf-8")
    assert door(arguments(images, images / "no-encoder")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_found_first(
    door: Callable[[list[str]], int], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "way").write_text("a file in the way", encoding="utf-8")
    report = str(images / "way" / "report.html")
    assert door(arguments(images, images / "no-encoder", "--report", report)) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    door: Callable[[list[str]], int],
    images: Path,
    tower: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("scdpo_core.io.files.save_file", full)
    assert door(arguments(images, tower)) == 2
    told = capsys.readouterr().err
    assert "No space left" in told and told.startswith("Error: ")
    assert [path for path in (images / "out").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("flag", "value"), [("--lr", "nan"), ("--lr", "0"), ("--eta", "-1"), ("--eta", "inf")]
)
def test_numbers_that_make_no_sense_are_refused(
    door: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit):
        door(["--unsafe", "a", "--safe", "b", "--output", "c.safetensors", f"{flag}={value}"])
    assert f"argument {flag}: must be a number" in capsys.readouterr().err


def test_it_runs_from_anywhere(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0 and "--false-positive-rate" in run.stdout


def job(folder: Path, tower: Path, **more: object) -> list[str]:
    """The same as `arguments`, in a run folder."""
    run = folder / "run"
    run.mkdir(exist_ok=True)
    values = {
        "unsafe": str(folder / "unsafe"),
        "safe": str(folder / "safe"),
        "output": str(run / "run.safetensors"),
        "report": str(run / "report.html"),
        "encoder": str(tower),
        "views": 2,
        "steps": 75,
        "device": "cpu",
        **more,
    }
    (run / "job.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return ["--config", str(run / "job.toml"), "--run", str(run)]


def test_a_run_folder_can_be_followed(door: Callable[[list[str]], int], images: Path, tower: Path) -> None:
    # The command line wins: 50 steps.
    assert door([*job(images, tower), "--steps", "50"]) == 0
    log = images / "run" / "events.jsonl"
    phases = [record.event.phase for record in read_events(log) if isinstance(record.event, Progress)]
    assert list(dict.fromkeys(phases)) == ["check", "cache", "train"]
    text = log.read_text("utf-8")
    assert '"steps": 50, "pairs": 46, "device": "cpu"' in text
    assert '"path": "run.safetensors", "what": "cost"' in text and '"reason": "finished"' in text
    assert '"path": "report.html", "what": "report"' in text


def test_a_file_named_stop_ends_it(door: Callable[[list[str]], int], images: Path, tower: Path) -> None:
    call = job(images, tower)
    (images / "run" / "stop").touch()
    assert door(call) == 0
    assert '"reason": "stopped"' in (images / "run" / "events.jsonl").read_text("utf-8")
    assert not (images / "run" / "stop").exists() and not (images / "run" / "run.safetensors").exists()


def test_what_is_wrong_goes_into_the_log(
    door: Callable[[list[str]], int], images: Path, tower: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door(job(images, tower, stepps=3)) == 2
    said = capsys.readouterr().err
    assert "there is no setting 'stepps'" in said and "steps" in said
    view = Follower(images / "run").view()
    assert (view.state, view.message) == ("failed", said.strip().removeprefix("Error: "))
    (images / "safe" / "p003.png").write_bytes(b"")
    assert door(job(images, tower)) == 2
    message = Follower(images / "run").view().message
    assert "1 images cannot be used" in message and "p003.png: the file is empty" in message
    (images / "run" / "job.toml").write_text("steps =")
    assert door(["--config", str(images / "run" / "job.toml")]) == 2
    assert "not valid TOML" in capsys.readouterr().err
