"""AdamW with moments in 8 bits, on a processor: bitsandbytes itself, nothing in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scdpo_core.config.settings import OptimSettings
from scdpo_core.training.optimizers import build_optimizer, set_rate
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_sd_folder
from tests.training.test_loop import Bench

bitsandbytes = pytest.importorskip("bitsandbytes", reason="only the extra adam8bit has it")

CPU = torch.device("cpu")
LARGE = 256  # a rank that makes every weight of the tiny LoRA large enough to be kept in 8 bits


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


def test_moments_are_bytes_and_steps_those_of_adamw(base: Path, tmp_path: Path) -> None:
    """Two optimisers, the same gradients: after five steps the weights differ by a few percent of the way."""
    sizes, ways = [], []
    for name in ("adamw", "adamw8bit"):
        bench = Bench(base, tmp_path / name, rank=LARGE)
        weights = bench.adapter.parameters()
        before = [weight.detach().clone() for weight in weights]
        optimizer = build_optimizer(bench.adapter, OptimSettings(optimizer=name, weight_decay=0.0), CPU)
        set_rate(optimizer, 1e-2)
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            for weight in weights:
                weight.grad = 1 + torch.randn(weight.shape, generator=generator)
            optimizer.step()
        states = [value for state in optimizer.state.values() for value in state.values()]
        held = [value for value in states if isinstance(value, torch.Tensor) and value.numel() >= 4096]
        assert {value.dtype for value in held} == {torch.uint8 if name == "adamw8bit" else torch.float32}
        sizes.append(sum(value.nbytes for value in held))
        ways.append(torch.cat([(w - b).flatten() for w, b in zip(weights, before, strict=True)]).detach())
    exact, close = ways
    assert sizes[1] * 4 == sizes[0]
    # The first step goes the rate's whole length, so five of them have gone well beyond it.
    assert exact.abs().mean() > 0.02
    assert (close - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(("device", "version"), [("cpu", "0.49.2"), ("mps", "0.50.2")])
def test_where_it_cannot_compute_it_says_so(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, version: str
) -> None:
    monkeypatch.setattr(bitsandbytes, "__version__", version)
    adapter = Bench(base, tmp_path).adapter
    with pytest.raises(ScdpoError, match=rf"'{device}'.*{version}.*adafactor"):
        build_optimizer(adapter, OptimSettings(optimizer="adamw8bit"), torch.device(device))
