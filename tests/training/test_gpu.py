"""Training on a GPU, where there is one: the embedded model learns there as it does on a CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from scdpo_core.families.timesteps import TimestepLaw
from scdpo_core.preferences.batches import Room
from scdpo_core.training.batch_sources import FixedNoise
from scdpo_core.training.reference_cache import NoiseSeeds
from tests.support.tiny import tiny_sd_folder
from tests.training.test_loop import Bench, stream

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("draws", [0, 2])
def test_a_run_on_a_gpu_ends_with_a_lora(tmp_path: Path, precision: str, draws: int) -> None:
    words = [
        *(sys.executable, str(ROOT / "trainer" / "train_lora.py")),
        *("--pairs", str(ROOT / "examples" / "preferences"), "--base", "micro"),
        *("--output", str(tmp_path / "gpu"), "--device", "cuda", "--precision", precision),
        *("--max-train-steps", "20", "--reference-draws", str(draws)),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "gpu" / "gpu.safetensors").is_file()


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Whoever waits for the GPU raises, in every thread."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("limit", "fixed"), [(0, False), (2**30, True)])
def test_no_thread_waits_for_the_gpu_in_a_step(
    tmp_path: Path, dtype: torch.dtype, limit: int, fixed: bool
) -> None:
    there = torch.device("cuda", torch.cuda.current_device())
    options: dict[str, Any] = {"margin": 1.0, "dfm_warmup": 0.0, "ema": 0.9, "max_train_steps": 20}
    bench = Bench(tiny_sd_folder(tmp_path / "base"), tmp_path, dtype, **options)
    bench.move(there)
    batches = stream(bench.settings, device=there, room=Room(limit))
    feed: Any = bench.feed(batches)
    if fixed:
        dice = NoiseSeeds(7, TimestepLaw(), bench.model.timesteps)
        feed = FixedNoise(batches, [str(number) for number in range(5)], dice, 2, 20, there)
        feed._errors = torch.ones_like(feed._errors, device=there)
    trainer = bench.trainer(feed=feed)
    # Libraries set themselves up in the first steps, and the optimizer makes its state.
    for _ in range(3):
        trainer.advance()
    with _no_waiting():
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones((), device=there).item()
        for _ in range(8):
            trainer.advance()
    torch.cuda.synchronize()
    assert trainer.step == 11
    trainer.close()
