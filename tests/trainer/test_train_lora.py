"""The command line, as a process of its own: what artists and doors really call."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from scdpo_core.config.convert import to_dict
from scdpo_core.config.settings import ModelSettings, TrainSettings, load_toml
from scdpo_core.run_store.events import Done, Progress, read_events
from scdpo_core.training.job import run_job
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_pairs, tiny_sd_folder, tiny_settings

PROGRAM = Path(__file__).resolve().parents[2] / "trainer" / "train_lora.py"


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny model")


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "my pairs")


@pytest.fixture(scope="module", name="door")
def _door() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_lora_under_test", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object, cwd: Path) -> tuple[int, str, str]:
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def flags(settings: TrainSettings, tmp_path: Path) -> list[object]:
    """The same settings through a TOML file."""
    from scdpo_core.config.settings import to_toml

    path = tmp_path / "job from test.toml"
    path.write_text(to_toml(settings), "utf-8")
    return ["--config", path]


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        seen = [record.event for record in read_events(folder / "events.jsonl")]
        if any(
            isinstance(event, Progress) and event.phase == "train" and event.step >= step for event in seen
        ):
            return
        time.sleep(0.01)
    raise AssertionError(f"never came to step {step}: {process.communicate()}")


def test_several_faults_are_one_message_each_and_code_2(tmp_path: Path) -> None:
    (tmp_path / "chosen").mkdir()
    (tmp_path / "rejected").mkdir()
    code, out, err = run("--pairs", tmp_path, "--base", tmp_path / "no.ckpt", "--output", "run", cwd=tmp_path)
    assert code == 2
    assert "Traceback" not in err
    assert err.startswith("Error: ")
    assert "no.ckpt" in err
    assert "hold no images" in err
    assert "Run run" not in out
    assert not (tmp_path / "run").exists()


def test_a_missing_twin_is_named(base: Path, tmp_path: Path) -> None:
    pairs = tiny_pairs(tmp_path / "pairs", 3)
    (pairs / "rejected" / "weapon" / "pair2.png").unlink()
    (pairs / "chosen" / "benign" / "pair1.txt").write_bytes(b"\xff\xfe\xff")
    code, _, err = run("--pairs", pairs, "--base", base, "--output", tmp_path / "run", cwd=tmp_path)
    assert code == 2
    assert "pair2.png" in err
    assert "pair1.txt" in err
    assert not (tmp_path / "run").exists()


def test_a_run_from_anywhere_with_a_file_and_flags_on_top(base: Path, pairs: Path, tmp_path: Path) -> None:
    settings = tiny_settings(base, pairs, tmp_path / "ignored", samples=2, lr=0.5)
    options = flags(settings, tmp_path)
    code, out, err = run(*options, "--output", "my runs/first", "--lr", "0.002", "--seed", 3, cwd=tmp_path)
    assert code == 0, err
    folder = tmp_path / "my runs" / "first"
    assert str(folder / "first.safetensors") in out
    assert "training 6/6" in out
    assert "Preference: its loss is 0." in out.split("training 6/6")[1]
    assert "\r" not in out + err
    effective = load_toml(folder / "job.toml")
    assert (effective.optim.lr, effective.optim.seed, effective.lora.rank) == (0.002, 3, 2)
    assert effective.output.output == folder
    lines = (folder / "events.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["event"] for line in (lines[0], lines[-1])] == ["started", "done"]

    code, _, err = run(*options, "--output", folder, cwd=tmp_path)
    assert code == 2
    assert "ever overwritten" in err
    assert (folder / "events.jsonl").read_text("utf-8").splitlines() == lines


def test_a_killed_run_resumes_to_the_same_bytes(base: Path, pairs: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    changes: dict[str, Any] = {"max_train_steps": 40, "checkpoint_every": 3, "log_every": 1, "dropout": 0.1}
    whole = run_job(tiny_settings(base, pairs, tmp_path / "whole" / "lora", **changes))

    settings = tiny_settings(base, pairs, tmp_path / "killed" / "lora", **changes)
    process = start(*flags(settings, tmp_path), cwd=tmp_path)
    folder = tmp_path / "killed" / "lora"
    wait_for_step(folder, random.randint(3, 30), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "lora.safetensors").exists()

    resumed = run_job(settings, resume=True)
    assert resumed.outcome.step == 40
    assert (folder / "lora.safetensors").read_bytes() == (whole.folder / "lora.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [(2,), (7, 19)])
def test_runs_killed_and_resumed_as_processes_end_with_the_same_bytes(
    base: Path, pairs: Path, tmp_path: Path, kill_at: tuple[int, ...]
) -> None:
    changes: dict[str, Any] = {"max_train_steps": 60, "checkpoint_every": 2, "log_every": 1, "samples": 1}
    folder = tmp_path / "killed" / "lora"
    for step in kill_at:
        options = flags(tiny_settings(base, pairs, folder, **changes), tmp_path)
        process = start(*options, *(["--resume"] if step != kill_at[0] else []), cwd=tmp_path)
        wait_for_step(folder, step, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # --resume alone: the settings are those of the run folder.
    assert run("--output", folder, "--resume", cwd=tmp_path)[0] == 0
    whole = tmp_path / "whole" / "lora"
    assert run(*flags(tiny_settings(base, pairs, whole, **changes), tmp_path), cwd=tmp_path)[0] == 0
    assert (folder / "lora.safetensors").read_bytes() == (whole / "lora.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_with_code_0(
    base: Path, pairs: Path, tmp_path: Path, number: signal.Signals
) -> None:
    settings = tiny_settings(base, pairs, tmp_path / "lora", max_train_steps=100_000, log_every=1)
    process = start(*flags(settings, tmp_path), cwd=tmp_path)
    wait_for_step(tmp_path / "lora", 2, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "go on with --resume" in out
    last = [record.event for record in read_events(tmp_path / "lora" / "events.jsonl")][-1]
    assert isinstance(last, Done)
    assert last.reason == "stopped"
    assert (tmp_path / "lora" / "lora.safetensors").is_file()


def test_a_mistyped_flag_is_named_before_torch_is_loaded(tmp_path: Path) -> None:
    code, _, err = run("--pears", "x", cwd=tmp_path)
    assert code == 2
    assert "--pears" in err
    assert "--pairs" in err


def test_every_setting_is_a_flag_with_help(door: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        door.parse(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for section in to_dict(TrainSettings()).values():
        for key in section:
            assert f"--{key.replace('_', '-')}" in text
    for flag in ("--pairs", "--output", "--config", "--resume", "--debug", "--beta", "--soft-tau"):
        assert flag in text


def test_flags_go_on_top_of_the_file_and_the_file_on_top_of_the_preset(
    door: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[optim]\nlr = 0.25\nseed = 4\n[lora]\nrank = 7\n", "utf-8")

    def parsed(*arguments: str) -> TrainSettings:
        settings: TrainSettings = door.parse(list(arguments)).settings
        return settings

    micro = load_toml(PROGRAM.parent / "configs" / "micro.toml")
    large = load_toml(PROGRAM.parent / "configs" / "sd1.toml")
    flow = load_toml(PROGRAM.parent / "configs" / "flux.toml")
    assert parsed() == parsed("--base", "micro") == micro
    assert parsed("--base", "/x/model").optim == large.optim
    assert parsed("--base", "/x/model", "--family", "flux").objective == flow.objective
    assert dataclasses.replace(flow.objective, objective="sc_dpo").effective_beta == 1000
    # A preset scales each objective's own beta; where beta is no scale of errors it stays.
    assert dataclasses.replace(flow.objective, objective="mapo").effective_beta == 0.1
    both = parsed("--config", str(path), "--rank=9")
    assert (both.optim.lr, both.optim.seed, both.lora.rank) == (0.25, 4, 9)
    assert both.optim.batch_size == micro.optim.batch_size
    found = tmp_path / "model.safetensors"
    save_file({"model.diffusion_model.joint_blocks.0.x": torch.zeros(1)}, str(found))
    assert (
        parsed("--base", str(found)).objective == load_toml(PROGRAM.parent / "configs" / "sd3.toml").objective
    )
    path.write_text("[model]\nbase = '/x/model'\n", "utf-8")
    assert parsed("--config", str(path)).optim == large.optim
    with pytest.raises(ScdpoError, match="no settings file"):
        parsed("--config", str(tmp_path / "none.toml"))


def test_relative_paths_become_whole(
    door: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = door.parse(["--pairs", "a/../b", "--output", "c", "--cache", "d", "--base", "e"]).settings
    assert settings.data.pairs == tmp_path / "b"
    assert settings.output.output == tmp_path / "c"
    assert settings.data.cache == tmp_path / "d"
    assert settings.model.base == str(tmp_path / "e")
    assert settings.data.cost_model == "none"
    settings = door.parse(["--family", "sdxl", "--vae", "v", "--text-encoders", "t"]).settings
    assert (settings.model.vae, settings.model.text_encoders) == (tmp_path / "v", tmp_path / "t")
    # What reads like a name on the hub and is nothing here is left as it is.
    model = door.with_full_paths(TrainSettings(ModelSettings(base="someone/a-model"))).model
    assert model.base == "someone/a-model"
    (tmp_path / "someone" / "a-model").mkdir(parents=True)
    model = door.with_full_paths(TrainSettings(ModelSettings(base="someone/a-model"))).model
    assert model.base == str(tmp_path / "someone" / "a-model")


def test_a_wrong_key_in_a_file_is_a_sentence(
    door: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[optim]\nsedd = 1\n", "utf-8")
    assert door.main(["--config", str(path)]) == 2
    captured = capsys.readouterr()
    assert "Did you mean 'optim.seed'?" in captured.err
    assert "Traceback" not in captured.err


def test_tracebacks_are_shown_only_when_asked_for(
    door: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(_: object) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(door, "train", bug)
    assert door.main([]) == 2
    assert capsys.readouterr().err.startswith("Unexpected error: ZeroDivisionError: oops.")
    assert door.main(["--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "Stopped; nothing was begun."),
        (
            PermissionError(13, "Permission denied", "my_model"),
            2,
            "Error: A file could not be read or written (my",
        ),
    ],
)
def test_what_goes_wrong_before_the_run_is_a_sentence(
    door: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(door, "parse", fail)
    assert door.main([]) == code
    assert capsys.readouterr().err.startswith(words)


def test_training_outlives_whoever_watches_it(
    door: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def gone(*values: object, **_: object) -> None:
        calls.append(values)
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=gone, flush=gone))
    screen = door.Screen()
    for step in (1, 2):
        screen.show(Progress("train", step, 2, {"loss": 0.5}))
    screen.say("more")
    screen.close()
    assert len(calls) == 1


def test_a_terminal_gets_bars(door: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    screen = door.Screen()
    screen.show(Progress("cache", 1, 4))
    screen.show(Progress("cache", 4, 4))
    screen.show(Progress("train", 2, 4, {"loss": 0.5, "u": None}))
    screen.close()
    err = capsys.readouterr().err
    assert "encoding" in err
    assert "loss 0.5" in err
