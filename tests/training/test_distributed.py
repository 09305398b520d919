"""Several processes: the gradient of one with the whole batch, and memory that runs out in one of them."""

from __future__ import annotations

import json
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from scdpo_core.families.sd1 import SD1, SD1Model
from scdpo_core.io.tensor_tree import load_tree, save_tree
from scdpo_core.lora.adapter import attach
from scdpo_core.preferences.batches import BatchStream
from scdpo_core.run_store.events import Event, Warned
from scdpo_core.training.batches import FreshNoise, timestep_law
from scdpo_core.training.distributed import (
    DistributedGroup,
    ProcessGroup,
    SingleProcess,
    init_group,
    share_of,
)
from scdpo_core.training.labels import deserialize_labels, serialize_labels
from scdpo_core.training.loop import Trainer
from scdpo_core.training.microbatch import MicroBatcher
from scdpo_core.types import CachedPair, LabelledPair, PreferencePair, ScdpoError
from tests.support.tiny import LATENT_CHANNELS, TOKENS, WIDTH, tiny_sd_folder, tiny_settings

CPU = torch.device("cpu")
CASES: dict[str, dict[str, Any]] = {
    "focus and margin": {"objective": "sc_dpo", "margin": 1.0, "dfm_warmup": 0.0, "loser_mu": 0.5},
    "prior": {"objective": "duo"},
    "batch statistics": {"objective": "diffusion_kto"},
    "nothing is compared": {"objective": "sc_dpo", "margin": 1.0, "dfm_gamma": 0.0},
}


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


def gradients(
    base: Path, folder: Path, batch_size: int, team: ProcessGroup, case: str, tight: Tight | None = None
) -> list[torch.Tensor]:
    """Of two accumulated batches; difficulties are remembered from the first to the second."""
    options = {"batch_size": batch_size, "accumulation": 2, "max_grad_norm": 0.0, "seed": 3} | CASES[case]
    settings = tiny_settings(base, folder, folder, **options)
    model = SD1().load(base, CPU, torch.float32)
    adapter = attach(model.denoiser, rank=2, alpha=2.0, targets="attention", seed=0)
    with torch.no_grad():
        for number, weight in enumerate(adapter.parameters()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    generator = torch.Generator().manual_seed(11)
    cached, labelled = [], []
    for number in range(6):
        latents = torch.randn((2, LATENT_CHANNELS, 8, 8), generator=generator)
        words = torch.randn((TOKENS, WIDTH), generator=generator)
        cached.append(CachedPair(latents, words, None, str(number)))
        pair = PreferencePair(str(number), f"prompt {number}", Path("a"), Path("b"))
        costs = (-1.0, 0.5 * number) if number % 2 else (None, None)
        labelled.append(LabelledPair(pair, *costs, False, 1.0 + number, 0.9, ""))
    stream = BatchStream(
        cached, labelled, batch_size, 3, CPU, torch.float32, share=(team.rank, team.size)
    )  # fmt: skip
    feed = FreshNoise(stream, model, timestep_law(settings), 3, team)
    trainer = Trainer(
        model,
        adapter,
        feed,
        settings,
        folder,
        emit=lambda event: None if tight is None else tight.said.append(event),
        team=team,
    )
    if tight is not None:
        tight.squeeze(model)
    seen: list[torch.Tensor] = []
    trainer._optimizer.step = lambda *_: seen.extend(  # type: ignore[method-assign]
        weight.grad.clone() for weight in adapter.parameters() if weight.grad is not None
    )
    trainer._one_step()
    return seen


class Tight:
    """A device that runs out of memory once, on the way there or on the way back."""

    def __init__(self, forwards: int, backwards: int = -1) -> None:
        """Fail at the policy's forward pass of that number, or at its way back; negative ones never do."""
        self._forwards, self._backwards = forwards, backwards
        self.seen: list[int] = []
        self.said: list[Event] = []

    def squeeze(self, model: SD1Model) -> None:
        """Let the model feel it."""
        real = model.predict

        def predict(noisy: torch.Tensor, *rest: Any) -> torch.Tensor:
            if not torch.is_grad_enabled():
                return real(noisy, *rest)
            number = len(self.seen)
            self.seen.append(len(noisy) // 2)
            if number == self._forwards:
                raise torch.OutOfMemoryError("CUDA out of memory")
            found = real(noisy, *rest)
            if number == self._backwards:
                found.register_hook(self._fail)
            return found

        model.predict = predict  # type: ignore[method-assign,assignment]

    def _fail(self, gradient: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")


# What of the four policy passes of two batches in two processes fails: in one process, or in both.
SHORTAGES: dict[str, tuple[Tight, Tight]] = {
    "none": (Tight(-1), Tight(-1)),
    "forward, others wait": (Tight(-1), Tight(1)),
    "first of all": (Tight(0), Tight(-1)),
    "way back, others are further": (Tight(-1, 0), Tight(-1)),
    "last way back, others are done": (Tight(-1), Tight(-1, 1)),
    "both, at different places": (Tight(-1, 0), Tight(1)),
    "both, at the same place": (Tight(0), Tight(0)),
    "twice": (Tight(1), Tight(-1, 3)),
}


def as_short_process(rank: int, port: int, base: Path, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    team = DistributedGroup(CPU)
    for name, tights in SHORTAGES.items():
        tight = tights[rank]
        found = gradients(base, folder, 4, team, "nothing is compared", tight)
        save_tree(folder / f"{name} {rank}.safetensors", found)
        said = [event.message for event in tight.said if isinstance(event, Warned)]
        (folder / f"{name} {rank}.json").write_text(json.dumps([tight.seen, said]), "utf-8")
    # Where not even one pair fits, all end with the same sentence.
    none = Tight(0)
    none.squeeze = lambda model: setattr(model, "predict", _never)  # type: ignore[method-assign]
    with pytest.raises(ScdpoError, match="even for one pair"):
        gradients(base, folder, 4, team, "nothing is compared", none if rank else Tight(-1))
    dist.destroy_process_group()


def _never(*_: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def as_process(rank: int, port: int, base: Path, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    team = DistributedGroup(CPU)
    for case in CASES:
        save_tree(folder / f"{case} {rank}.safetensors", gradients(base, folder, 2, team, case))
    assert [team.any(rank == 1), team.any(False)] == [True, False]
    assert team.broadcast({"who": rank, "what": [0.1, None]}) == {"who": 0, "what": [0.1, None]}
    team.assert_equal("same", "It")
    with pytest.raises(ScdpoError, match="The folder differs between the processes"):
        team.assert_equal(rank, "The folder")
    assert share_of("abcde", team) == list("abcde"[rank::2])
    team.barrier()
    dist.destroy_process_group()


def test_two_processes_have_the_gradient_of_one_with_the_double_batch(base: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(as_process, (port, base, tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    for case in CASES:
        whole = gradients(base, tmp_path, 4, SingleProcess(), case)
        assert any(bool(gradient.abs().max() > 0) for gradient in whole)
        for rank in (0, 1):
            shared = load_tree(tmp_path / f"{case} {rank}.safetensors")
            for got, expected in zip(shared, whole, strict=True):
                # Sums in another order; beta times the errors' own rounding, which differs from run to run.
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_a_team_halves_its_batches_together_when_one_of_it_runs_out_of_memory(
    base: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(as_short_process, (port, base, tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    whole = gradients(base, tmp_path, 8, SingleProcess(), "nothing is compared")
    for name in SHORTAGES:
        halvings = {"none": 0, "twice": 2}.get(name, 1)
        for rank in (0, 1):
            shared = load_tree(tmp_path / f"{name} {rank}.safetensors")
            for got, expected in zip(shared, whole, strict=True):
                # Passes of other sizes round otherwise.
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
            seen, said = json.loads((tmp_path / f"{name} {rank}.json").read_text("utf-8"))
            size = 4 >> halvings
            assert seen[-8 // size :] == [size] * (8 // size)
            assert len(said) == halvings


def test_where_every_pass_needs_all_processes_the_error_says_what_to_do(tmp_path: Path) -> None:
    class Sharded(SingleProcess):
        size = 2
        sharded = True

        def any(self, yes: bool) -> bool:
            raise AssertionError("the others are inside the network and would never answer")

    settings = tiny_settings("x", tmp_path, tmp_path, batch_size=4)
    for together in (True, False):
        portions = MicroBatcher(settings, CPU, lambda event: None, Sharded(), together=together)
        assert portions.attempt(lambda: 7) == 7
        with pytest.raises(ScdpoError, match=r"With FSDP.*begin a new run.*smaller --batch-size"):
            portions.attempt(_never)


def test_deepspeed_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(init_group(), SingleProcess)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ScdpoError, match="choose FSDP"):
        init_group()


def test_labels_travel_as_plain_values() -> None:
    first, second = (PreferencePair(name, "p", Path(f"{name}1"), Path(f"{name}2")) for name in "ab")
    turned = PreferencePair("b", "p", Path("b2"), Path("b1"))
    labelled = [
        LabelledPair(turned, -1.0, None, True, 0.5, 0.75, "turned round"),
        LabelledPair(first, None, None, False, 1.0, 1.0, ""),
    ]
    assert deserialize_labels(serialize_labels(labelled, [first, second]), [first, second]) == labelled
