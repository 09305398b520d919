from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scdpo_core.family_info import FAMILY_INFO, PairCost
from scdpo_core.run_store.events import EventLog, Progress, Started
from scdpo_core.runs import benchmark
from scdpo_core.runs.estimate import Estimate, estimate, in_words, weight_bytes
from scdpo_core.runs.jobs import LoraJob

# 320 * 4 * 9 + 320 * 768 + 128 weights of the network, in 16 bits.
BYTES = 2 * (11_520 + 245_760 + 128)
GIB = 2**30
SLOW = "[optim]\nmax_train_steps = 20\nbatch_size = 2\naccumulation = 1\n"


def checkpoint(folder: Path, name: str = "base") -> Path:
    """As much of a Stable Diffusion 1 file as its kind is told by."""
    path = folder / f"{name}.safetensors"
    tensors = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
        "model.diffusion_model.a.attn2.to_k.weight": torch.zeros(320, 768),
        "model.diffusion_model.b": torch.zeros(128),
        "first_stage_model.c": torch.zeros(100),
    }
    save_file(tensors, str(path))
    return path


def trained(root: Path, base: str, rate: float, batch: int = 8, data: str = "") -> None:
    """An earlier run that did so many steps a second."""
    run = root / "runs" / "earlier"
    run.mkdir(parents=True)
    (run / "job.toml").write_text(
        f'[model]\nbase = "{base}"\n[optim]\nbatch_size = {batch}\naccumulation = 1\n[data]\n{data}', "utf-8"
    )
    log = EventLog(run / "events.jsonl")
    log(Started("earlier", 1, 0, 10, 4, "cpu", "0"))
    log(Progress("train", 10, 10, {"loss": 0.1}, rate, 0.0))


def job(root: Path, base: str | Path, overrides: str = "") -> LoraJob:
    return LoraJob(root, str(base), root / "runs", "new", overrides=overrides)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> PairCost:
    """Round figures for a model exactly as large as `checkpoint`."""
    needs = PairCost(512, BYTES / GIB, 1.0, (2.0, 0.5), (4.0, 6.0), (8, 4, 1), 0.5)
    monkeypatch.setitem(FAMILY_INFO, "sd1", replace(FAMILY_INFO["sd1"], cost=needs))
    return needs


def never(*_: int) -> float:
    raise AssertionError("the machine was timed where a run tells")


def test_time_is_that_of_an_earlier_run_in_proportion(tmp_path: Path) -> None:
    trained(tmp_path, "micro", rate=2.0, batch=8)
    wanted = replace(job(tmp_path, "micro"), quality="fast")
    found = estimate(wanted, tmp_path / "runs", never)
    # 75 steps of 8 pairs, at two steps of 8 pairs a second.
    assert (found.steps, found.seconds, found.source_run) == (75, 37.5, "earlier")
    assert "about 1 minute, judging by the run 'earlier'" in in_words(found)
    fewer = estimate(replace(wanted, overrides="[optim]\nmax_train_steps = 20"), tmp_path / "runs", never)
    assert fewer.seconds == 10.0


def test_a_run_of_another_model_of_the_kind_tells_too(tmp_path: Path) -> None:
    other = checkpoint(tmp_path, "other")
    trained(tmp_path, str(other), rate=0.5, batch=4, data="width = 256\nheight = 256\n")
    found = estimate(job(tmp_path, checkpoint(tmp_path), SLOW), tmp_path / "runs", never)
    # 20 steps of 2 pairs at 512; it did half a step of 4 pairs with a quarter of the pixels a second.
    assert (found.seconds, found.source_run) == (20 * 2 / (0.5 * 4 * 0.25), "earlier")


def test_without_a_run_that_tells_the_machine_is_timed(tmp_path: Path, plain: PairCost) -> None:
    trained(tmp_path, "micro", rate=2.0)
    asked = []

    def timed(*probe: int) -> float:
        asked.append(probe)
        return 1e12

    base = checkpoint(tmp_path)
    found = estimate(job(tmp_path, base, SLOW), tmp_path / "runs", timed)
    # 20 steps of 2 pairs of 4e12 operations, at half of 1e12 a second.
    assert (found.seconds, found.source_run, asked) == (320.0, "", [plain.probe])
    assert "very roughly 6 minutes, perhaps half or twice that" in in_words(found)
    saves = f"{SLOW}[model]\ngradient_checkpointing = true\n"
    assert estimate(job(tmp_path, base, saves), tmp_path / "runs", timed).seconds == 480.0
    small = f"{SLOW}[data]\nwidth = 256\nheight = 512\n"
    assert estimate(job(tmp_path, base, small), tmp_path / "runs", timed).seconds == 160.0


def test_nothing_is_made_up(tmp_path: Path) -> None:
    for base in ("somebody/model", "", str(tmp_path / "gone.safetensors")):
        found = estimate(job(tmp_path, base), tmp_path / "runs", never)
        assert (found.steps, found.seconds, found.memory) == (700, None, None)
        assert "no earlier run" in in_words(found) and "GB" not in in_words(found)
    assert estimate(job(tmp_path, "micro"), tmp_path / "runs").seconds is None


def test_memory_is_that_of_the_kind_and_the_settings(tmp_path: Path, plain: PairCost) -> None:
    base = checkpoint(tmp_path)
    assert weight_bytes(str(base)) == BYTES
    found = estimate(job(tmp_path, base), tmp_path / "runs")
    # The settings of the kind: 4 pairs at once; a LoRA of rank 16.
    assert found.memory == BYTES + 1 * GIB + 4 * 2 * GIB
    words = in_words(found)
    assert "needs about 9.0 GB" in words and "gradient_checkpointing = true or a smaller batch_size" in words
    less = "[optim]\nbatch_size = 1\n[lora]\nrank = 32\n[model]\ngradient_checkpointing = true\n"
    spared = estimate(job(tmp_path, base, less), tmp_path / "runs")
    assert spared.memory == BYTES + 2 * GIB + GIB // 2 and "too much" not in in_words(spared)
    assert estimate(job(tmp_path, base, '[model]\nquantize = "nf4"'), tmp_path / "runs").memory is None


def test_blocks_that_wait_in_main_memory_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 12 blocks with 6 GiB, two are on the device whatever waits.
    needs = PairCost(512, 8.0, 1.0, (2.0, 0.5), (4.0, 6.0), blocks=(12, 6.0))
    monkeypatch.setitem(FAMILY_INFO, "sd1", replace(FAMILY_INFO["sd1"], cost=needs))
    monkeypatch.setattr("scdpo_core.runs.estimate.weight_bytes", lambda base: 8 * GIB)
    base = checkpoint(tmp_path)
    memory = {}
    for asked in ("0", "1", "4", "12", "99", '"auto"', '"some"'):
        settings = f"[optim]\nbatch_size = 1\n[model]\noffload_blocks = {asked}\n"
        found = estimate(job(tmp_path, base, settings), tmp_path / "runs")
        memory[asked] = (found.memory or 0) / GIB
        assert ("at least" in in_words(found)) == (asked == '"auto"')
        assert ('offload_blocks = "auto"' in in_words(found)) == (asked in ("0", '"some"'))
    assert memory == {"0": 11, "1": 11, "4": 10, "12": 6, "99": 6, '"auto"': 6, '"some"': 11}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(1, "1 minute,"), (61, "2 minutes,"), (7140, "119 minutes,"), (7200, "2 hours,"), (200_000, "2 days,")],
)
def test_times_in_words(seconds: float, said: str, tmp_path: Path) -> None:
    guess = estimate(job(tmp_path, "micro"), tmp_path / "runs")
    assert f"about {said}" in in_words(replace(guess, seconds=seconds, source_run="earlier"))


def test_the_machine_is_timed_once() -> None:
    first = benchmark.speed(16, 16, 2)
    assert 1e6 < first < 1e15
    assert benchmark.speed(16, 16, 2) == first


def test_memory_that_nobody_lacks_is_not_spoken_of() -> None:
    assert "memory" not in in_words(Estimate(300, 60.0, "", 2**24, ("gradient_checkpointing = true",)))
    assert "about 2.0 GB of graphics memory. If" in in_words(Estimate(300, 60.0, "", 2 * GIB, ("a",)))
