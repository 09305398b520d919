"""A step never waits for the GPU: what it copies there is pinned, and nothing is read back."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scdpo_core import devices
from scdpo_core.families.sd1 import SD1
from scdpo_core.families.timesteps import TimestepLaw
from scdpo_core.families.unet import uncropped
from scdpo_core.objectives import dfm
from scdpo_core.preferences.batches import Room
from scdpo_core.training.batch_sources import FixedNoise
from scdpo_core.training.batches import Prefetcher
from scdpo_core.training.reference_cache import NoiseSeeds
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_sd_folder
from tests.training.test_loop import CPU, Bench, stream

# Torch's device without contents stands in for a GPU: what is computed there cannot be read back, and what
# comes from the CPU is a copy that a GPU would have to be sent.
THERE = torch.device("meta")


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


class Copies(TorchDispatchMode):
    """Counts copies to the device, and finds those that a caller would wait for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen, self.slow = 0, list[str]()
        self._pinned: list[Tensor] = []
        self._on = False
        monkeypatch.setattr(devices, "_ASYNCHRONOUS", ("meta",))

        def pin(values: Tensor) -> Tensor:
            self._pinned.append(values.clone())
            return self._pinned[-1]

        real = torch.tensor

        def tensor(data: Any, *, device: torch.device | None = None, **rest: Any) -> Tensor:
            # The dispatcher does not see this copy.
            if device == THERE and self._on:
                self.slow.append("tensor")
            return real(data, device=device, **rest)

        monkeypatch.setattr(Tensor, "pin_memory", pin)
        monkeypatch.setattr(torch, "tensor", tensor)

    def __enter__(self) -> Copies:
        self._on = True
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._on = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        sources = [leaf for leaf in leaves if leaf.device.type == "cpu" and leaf.dim()]
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if sources and any(leaf.device == THERE for leaf in (*results, *leaves)):
            self.seen += 1
            asked = (kwargs or {}).get("non_blocking", False) or (len(args) > 2 and args[2] is True)
            if not asked or not any(sources[0] is pinned for pinned in self._pinned):
                self.slow.append(str(func))
        return result


@pytest.fixture(name="copies")
def _copies(monkeypatch: pytest.MonkeyPatch) -> Copies:
    monkeypatch.setattr(
        dfm, "one_hot", lambda index, count: index[:, None] == torch.arange(count, device=THERE)
    )
    return Copies(monkeypatch)


def test_the_stand_in_finds_what_would_wait(copies: Copies) -> None:
    values = torch.ones(3)
    with copies:
        assert devices.sent(values, THERE).device == THERE
        assert (copies.seen, copies.slow) == (1, [])
        values.to(THERE)
        torch.tensor([1.0, 2.0]).to(THERE, non_blocking=True)
        torch.tensor([1.0, 2.0], device=THERE)
        torch.ones(3, device=THERE)[torch.tensor([1])]
        with pytest.raises(RuntimeError):
            torch.ones((), device=THERE).item()
    assert copies.slow == ["aten._to_copy.default", "aten._to_copy.default", "tensor", "aten.index.Tensor"]


@pytest.mark.parametrize(
    ("objective", "fixed", "limit"),
    [
        ("sc_dpo", False, 0),
        ("sc_dpo", True, 2**30),
        ("duo", True, 0),
        ("safedpo", False, 2**30),
    ],
)
def test_a_step_waits_for_no_copy_and_reads_nothing_back(
    base: Path, tmp_path: Path, copies: Copies, limit: int, fixed: bool, objective: str
) -> None:
    options: dict[str, Any] = {"margin": 1.0, "loser_mu": 0.5} if objective == "sc_dpo" else {}
    bench = Bench(base, tmp_path, objective=objective, ema=0.9, dfm_warmup=0.0, dropout=0.1, **options)
    bench.move(THERE)
    batches = stream(bench.settings, device=THERE, room=Room(limit))
    feed: Any = bench.feed(batches)
    if fixed:
        dice = NoiseSeeds(7, TimestepLaw(), bench.model.timesteps)
        feed = FixedNoise(batches, [str(number) for number in range(5)], dice, 2, 6, THERE)
        feed._errors = feed._errors.to(THERE)
    trainer = bench.trainer(feed=feed)
    with copies:
        for _ in range(3):
            trainer.advance()
    assert trainer.step == 3
    assert copies.slow == []
    assert copies.seen >= 3 * 3


def test_what_is_told_of_sizes_and_words_waits_for_no_copy(copies: Copies, base: Path) -> None:
    text = SD1().load(base, CPU, torch.float32)._get_encoders().texts[0]
    assert text is not None
    text.model.to(THERE)
    uncropped.cache_clear()
    with copies:
        assert uncropped(512, 384, THERE).device == THERE
        text.states(["a thing"])
    uncropped.cache_clear()
    assert copies.seen == 2
    assert copies.slow == []


@pytest.mark.parametrize("method", ["run", "rehearse"])
@pytest.mark.parametrize("error", [ScdpoError("broken"), KeyboardInterrupt()])
def test_the_thread_that_works_ahead_ends_with_an_error(
    base: Path, tmp_path: Path, method: str, error: BaseException
) -> None:
    def threads() -> int:
        return sum(thread.name.startswith("batches") for thread in threading.enumerate())

    trainer, alive = Bench(base, tmp_path).trainer(), []
    trainer._ahead = trainer._measure._feed = Prefetcher(trainer._measure._feed, 4)  # as on a GPU

    def fail(name: str, value: torch.Tensor) -> None:
        alive.append(threads())
        raise error

    trainer._meter.add = fail  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        getattr(trainer, method)()
    assert alive == [1]
    assert threads() == 0


def test_a_forward_pass_never_waits_for_the_device(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_hot(index: torch.Tensor, count: int) -> torch.Tensor:
        return index[:, None] == torch.arange(count)

    # Torch's own looks at the largest index, but only on a CPU.
    monkeypatch.setattr(dfm, "one_hot", one_hot)

    class Fetches(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen += "_local_scalar_dense" in str(func)
            return func(*args, **(kwargs or {}))

    for objective in ("sc_dpo", "duo"):
        trainer = Bench(base, tmp_path, objective=objective, margin=1.0, loser_mu=0.5).trainer()
        with Fetches() as fetches:
            trainer._forward(0).backward()
        assert fetches.seen == 0
        with Fetches() as fetches:
            torch.ones(()).item()
        assert fetches.seen == 1
