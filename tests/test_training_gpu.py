"""Training on a GPU, where there is one: the embedded model learns there as it does on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

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
