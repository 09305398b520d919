"""Blocks that wait in main memory: the bits of every result, what a device holds, and when blocks come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scdpo_core.families import FAMILIES, LoadOptions
from scdpo_core.families.block_offload import (
    BlockOffload,
    blocks_of,
    bring_all,
    bytes_saved,
    fewest_blocks,
    offload_of,
    readable,
    spaced,
    start_offload,
)
from scdpo_core.families.fingerprint import sampled_fingerprint, weights_fingerprint
from scdpo_core.families.offload import DENOISER, TEXTS, VAE
from scdpo_core.families.quantization import quantize
from scdpo_core.families.waiting_block import Transfer, WaitingBlock
from scdpo_core.lora.adapter import attach
from tests.support.tiny_families import tiny_folder
from tests.support.tiny_parts import T5_TOKENS

CPU = torch.device("cpu")
WIDTH = 8


class Block(nn.Module):
    """Two matrices and a residual path; keeps what it is given for the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("scale", torch.rand(WIDTH))

    def forward(self, states: Tensor, *, words: Tensor) -> tuple[Tensor, Tensor]:
        return states + self.to_k(torch.tanh(self.to_q(states + words)) * self.scale), words


class Stack(nn.Module):
    """Blocks in a row, with or without gradient checkpointing."""

    def __init__(self, count: int = 5, checkpointing: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.checkpointing = checkpointing
        self.start = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(count))

    def forward(self, states: Tensor) -> Tensor:
        states, words = self.start(states), states
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                states, words = checkpoint(block, states, words=words, use_reentrant=False)
            else:
                states, words = block(states, words=words)
        return states


def stack(checkpointing: bool = False, count: int = 5) -> tuple[Stack, list[nn.Parameter]]:
    """A frozen stack with a LoRA on one matrix of every block, which already changes the answer."""
    network = Stack(count, checkpointing).requires_grad_(False)
    targets = [f"blocks.{number}.to_q" for number in range(count)]
    return network, with_lora(network, targets)


def with_lora(network: nn.Module, targets: list[str]) -> list[nn.Parameter]:
    weights = attach(network, rank=2, alpha=2, targets=targets, seed=0).parameters()
    generator = torch.Generator().manual_seed(1)
    for weight in weights:
        weight.data = torch.randn(weight.shape, generator=generator) / 4
    return weights


def loss_and_gradients(network: nn.Module, weights: list[nn.Parameter]) -> list[Tensor]:
    states = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(2))
    loss = network(states).square().mean()
    return [loss.detach(), *torch.autograd.grad(loss, weights)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_loss_and_gradients_have_the_same_bits(count: int, checkpointing: bool) -> None:
    network, weights = stack(checkpointing)
    expected = loss_and_gradients(network, weights)
    network, weights = stack(checkpointing)
    offload = BlockOffload(network, CPU, count).to(CPU)
    assert offload.count == count
    with torch.no_grad():  # as the reference's pass, which comes first
        network(torch.ones(1, WIDTH))
    for _ in range(2):
        assert same(loss_and_gradients(network, weights), expected)


def held(network: nn.Module) -> int:
    """How many waiting weights have contents."""
    matrices = [block.to_k.weight for block in network.blocks]  # type: ignore[union-attr]
    return sum(matrix.untyped_storage().nbytes() > 0 for matrix in matrices)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_at_most_two_blocks_are_there_at_once(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network, weights = stack(checkpointing, count=6)
    BlockOffload(network, CPU, 6)
    assert held(network) == 0
    most = 0
    come = WaitingBlock.come

    def counted(self: WaitingBlock) -> None:
        nonlocal most
        come(self)
        most = max(most, held(network))

    monkeypatch.setattr(WaitingBlock, "come", counted)
    for _ in range(2):
        loss_and_gradients(network, weights)
    assert most == 2


def test_every_block_travels_once_forward_and_once_back(monkeypatch: pytest.MonkeyPatch) -> None:
    network, weights = stack(checkpointing=True)
    offload = BlockOffload(network, CPU, 5)
    loss_and_gradients(network, weights)
    copies = 0
    copy = WaitingBlock._copy

    def counted(self: WaitingBlock) -> None:
        nonlocal copies
        copies += 1
        copy(self)

    monkeypatch.setattr(WaitingBlock, "_copy", counted)
    loss_and_gradients(network, weights)
    # Of 5 forward the first is there still from the pass before, of 5 on the way back the last.
    assert copies == 8
    offload.to(CPU)
    assert held(network) == 0


def test_a_block_that_is_not_fetched_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above would see it: without its weights a block answers something else, or not at all."""
    network, weights = stack()
    expected = loss_and_gradients(network, weights)
    network, weights = stack()
    BlockOffload(network, CPU, 2)
    # Room for the weights, but nothing in it.
    monkeypatch.setattr(WaitingBlock, "_copy", lambda self: [shell.fill_(9.0) for shell in self._shells])
    assert not same(loss_and_gradients(network, weights), expected)


def test_frozen_weights_leave_and_trained_ones_stay() -> None:
    network, weights = stack()
    BlockOffload(network, CPU, 5)
    assert all(weight.untyped_storage().nbytes() for weight in weights)
    frozen = [part for part in network.blocks.parameters() if not part.requires_grad]
    assert not any(weight.untyped_storage().nbytes() for weight in (*frozen, *network.blocks.buffers()))


def test_which_blocks_wait_is_spread_evenly() -> None:
    assert spaced(6, 6) == [0, 1, 2, 3, 4, 5]
    assert spaced(6, 3) == [1, 3, 5]
    assert spaced(57, 2) == [14, 42]
    assert spaced(6, 0) == []


def test_how_many_blocks_wait_follows_from_the_room_there_is() -> None:
    network = Stack(5).requires_grad_(False)
    block = 4 * (2 * (WIDTH * WIDTH + WIDTH) + WIDTH)  # two matrices with a bias and a buffer, in float32
    # Two are on the device at once: the first that saves anything is the third.
    assert [bytes_saved(network, count) for count in range(6)] == [0, 0, 0, block, 2 * block, 3 * block]
    assert fewest_blocks(network, needed=1000, room=1000) == 0
    assert fewest_blocks(network, needed=1000, room=999) == 3
    assert fewest_blocks(network, needed=1000 + block, room=999) == 4
    assert fewest_blocks(network, needed=10**9, room=0) == 5


def test_auto_asks_how_much_is_free() -> None:
    network = Stack(5).requires_grad_(False)
    large: Callable[[torch.device], int] = lambda _: 80 * 2**30  # noqa: E731
    assert isinstance(start_offload(network, CPU, 0), Stack)
    roomy = start_offload(network, CPU, "auto", large)
    assert isinstance(roomy, BlockOffload) and roomy.count == 0
    for free, count in ((lambda _: 2**30, 5), (lambda _: None, 0)):
        offload = start_offload(Stack(5).requires_grad_(False), CPU, "auto", free)
        assert isinstance(offload, BlockOffload) and offload.count == count


def test_another_number_of_blocks_gives_the_same_bits() -> None:
    network, weights = stack()
    expected = loss_and_gradients(network, weights)
    network, weights = stack()
    offload = BlockOffload(network, CPU, 1).to(CPU)
    for count in (4, 5, 2, 0):
        offload.resize(count)
        assert offload.count == count
        assert same(loss_and_gradients(network, weights), expected)
    assert held(network) == 5


def test_all_blocks_come_for_work_on_the_weights_themselves() -> None:
    network, _ = stack()
    bring_all(network)
    BlockOffload(network, CPU, 5)
    bring_all(network)
    assert held(network) == 5


def test_weights_can_be_read_while_they_wait() -> None:
    network = Stack(5).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    sampled, whole = sampled_fingerprint(network), weights_fingerprint(network, [])
    BlockOffload(network, CPU, 3)
    with readable(network):
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert (sampled_fingerprint(network), weights_fingerprint(network, [])) == (sampled, whole)
    assert held(network) == 2


def test_memory_that_runs_out_on_the_way_leaves_nothing_half_there(monkeypatch: pytest.MonkeyPatch) -> None:
    network, weights = stack()
    expected = loss_and_gradients(network, weights)
    network, weights = stack()
    BlockOffload(network, CPU, 5)
    start = Transfer.start
    calls = 0

    def short(self: Transfer, copy: Callable[[], None]) -> Callable[[], None]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return start(self, copy)

    monkeypatch.setattr(Transfer, "start", short)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        loss_and_gradients(network, weights)
    assert same(loss_and_gradients(network, weights), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_every_family_are_found(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family].load(
        tiny_folder(family, tmp_path / "base"), CPU, torch.float32, LoadOptions(t5_tokens=T5_TOKENS)
    )
    blocks = blocks_of(model.denoiser)
    assert {type(block).__name__.removesuffix("TransformerBlock") for block in blocks} <= {
        "Basic", "Joint", "Flux", "FluxSingle", "Flux2", "Flux2Single", "Chroma", "ChromaSingle", "ZImage",
        "QwenImage",
    }  # fmt: skip
    assert len(blocks) >= 2 and offload_of(model.denoiser) is None


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_coded_matrices_wait_as_well(kind: Any) -> None:
    def made() -> tuple[Stack, list[nn.Parameter]]:
        network = Stack(3).requires_grad_(False)
        assert quantize(network, kind) == 6
        return network, with_lora(network, [f"blocks.{number}.to_q" for number in range(3)])

    network, weights = made()
    expected = loss_and_gradients(network, weights)
    network, weights = made()
    BlockOffload(network, CPU, 3)
    assert held(network) == 0
    assert same(loss_and_gradients(network, weights), expected)


def test_no_text_encoder_is_there_while_a_model_trains(tmp_path: Path) -> None:
    for count in (0, 1):
        base = tiny_folder("sd1", tmp_path / f"base{count}")
        model: Any = FAMILIES["sd1"].load(base, CPU, torch.float32, LoadOptions(offload_blocks=count))
        model.encode_prompts(["a"])
        model.release_encoders()
        assert model._encoders is None and model._offload._loaded == [DENOISER]
        assert TEXTS not in model._offload._components and VAE not in model._offload._components
