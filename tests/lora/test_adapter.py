"""The adapter in a network: what it trains, that it can be switched off to the last bit, and its state."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.testing import assert_close

from scdpo_core.lora.adapter import LoraAdapter, attach, target_modules
from scdpo_core.lora.formats.keys import KeyNameError
from scdpo_core.types import ScdpoError
from tests.support.tiny import LATENT_CHANNELS, WIDTH, tiny_unet

PRESETS = ("attention", "attention+ff", "all-linear")


def unet_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return tiny_unet().eval()


def answer(unet: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, LATENT_CHANNELS, 8, 8, generator=generator).to(dtype)
    prompt = torch.randn(2, 3, WIDTH, generator=generator).to(dtype)
    return unet(latents, torch.tensor([10, 700]), prompt).sample


def as_if_trained(adapter: LoraAdapter, seed: int = 3) -> None:
    """Random weights of a size that shows in the network's answer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))


def adapter_in(unet: nn.Module, **changes: object) -> LoraAdapter:
    return attach(unet, **{"rank": 4, "alpha": 8.0, "targets": "attention", "seed": 1, **changes})  # type: ignore[arg-type]


def test_presets_by_hand() -> None:
    # tiny_unet has 2 down + 4 up + 1 middle = 7 transformers of one block: 2 attentions of 4 layers
    # and 2 feed-forward layers each. Around them 2 projections each. Residual blocks: 2 + 4 + 2 = 8.
    unet = unet_of()
    counts = {preset: len(target_modules(unet, preset)) for preset in PRESETS}  # type: ignore[arg-type]
    assert counts == {"attention": 7 * 8, "attention+ff": 7 * 10, "all-linear": 7 * 12 + 8 + 2}
    assert all(".attn1." in name or ".attn2." in name for name in target_modules(unet, "attention"))
    # One of the two attentions of each transformer sees the image alone.
    alone = target_modules(unet, "self-attention")
    assert len(alone) == 7 * 4
    assert all(".attn1." in name for name in alone)


def test_targets_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"'everything'.*attention\+ff"):
        target_modules(unet_of(), "everything")  # type: ignore[arg-type]
    with pytest.raises(ScdpoError, match="no modules"):
        attach(nn.Linear(2, 2), rank=1, alpha=1.0, targets="attention", seed=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_exactly_the_chosen_modules_are_trained_and_the_base_is_frozen(preset: str) -> None:
    unet = unet_of()
    adapter = adapter_in(unet, targets=preset)
    wrapped = {name for name, module in unet.named_modules() if isinstance(module, BaseTunerLayer)}
    assert wrapped == set(adapter.modules)
    trainable = {id(weight) for weight in unet.parameters() if weight.requires_grad}
    assert trainable == {id(weight) for weight in adapter.parameters()}
    assert len(adapter.parameters()) == 2 * len(adapter.modules)


def test_modules_can_be_named_one_by_one() -> None:
    names = target_modules(unet_of(), "attention")[3:5]
    assert adapter_in(unet_of(), targets=names).modules == tuple(names)


def test_untrained_it_changes_no_bit() -> None:
    unet = unet_of()
    before = answer(unet)
    adapter_in(unet, targets="all-linear")
    assert torch.equal(answer(unet), before)


def test_the_seed_alone_decides_the_first_weights() -> None:
    torch.manual_seed(11)
    first = adapter_in(unet_of()).state()
    torch.manual_seed(12)
    unet = unet_of()
    torch.manual_seed(12)
    expected_next = torch.rand(3)
    torch.manual_seed(12)
    second = adapter_in(unet).state()
    assert torch.equal(torch.rand(3), expected_next)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = adapter_in(unet_of(), seed=2).state()
    down = f"{adapter_in(unet_of()).modules[0]}.down"
    assert not torch.equal(first[down], other[down])
    # Uniform within 1 / sqrt(16 inputs): the largest of 4 * 16 draws lies close below.
    assert 0.2 < first[down].abs().max().item() <= 0.25


def test_weights_are_float32_on_a_16_bit_base() -> None:
    unet = unet_of().to(torch.bfloat16)
    adapter = adapter_in(unet, targets="all-linear")
    before = answer(unet, torch.bfloat16)
    assert {weight.dtype for weight in adapter.parameters()} == {torch.float32}
    as_if_trained(adapter)
    after = answer(unet, torch.bfloat16)
    assert after.dtype == torch.bfloat16
    assert not torch.equal(after, before)
    after.float().square().mean().backward()
    gradients = [weight.grad for weight in adapter.parameters()]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)


def test_the_change_is_up_times_down_times_alpha_over_rank() -> None:
    # x = (1, 2), down = (3, 4): 11; up = (1, -1): (11, -11); alpha / rank = 2: (22, -22); base: identity.
    network = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(2))
    adapter = attach(network, rank=1, alpha=2.0, targets=["0"], seed=0)
    adapter.load_state(
        {
            "0.down": torch.tensor([[3.0, 4.0]]),
            "0.up": torch.tensor([[1.0], [-1.0]]),
            "0.alpha": torch.tensor(2.0),
        }
    )
    x = torch.tensor([[1.0, 2.0]])
    assert network(x).tolist() == [[23.0, -20.0]]
    with adapter.scale(0.5):
        assert network(x).tolist() == [[12.0, -9.0]]
        with adapter.scale(-1.0):
            assert network(x).tolist() == [[-21.0, 24.0]]
        assert network(x).tolist() == [[12.0, -9.0]]
    assert network(x).tolist() == [[23.0, -20.0]]


@pytest.mark.parametrize("preset", PRESETS)
def test_off_and_strength_0_are_the_base_to_the_last_bit(preset: str) -> None:
    unet = unet_of()
    before = answer(unet)
    adapter = adapter_in(unet, targets=preset)
    as_if_trained(adapter)
    on = answer(unet)
    assert (on - before).abs().max() > 1e-3
    with adapter.disabled():
        assert torch.equal(answer(unet), before)
        with adapter.disabled(), adapter.scale(0.5):
            assert torch.equal(answer(unet), before)
        assert torch.equal(answer(unet), before)
    with adapter.scale(0.0):
        assert torch.equal(answer(unet), before)
    assert torch.equal(answer(unet), on)


def test_not_even_a_broken_lora_shows_at_strength_0() -> None:
    unet = unet_of()
    before = answer(unet)
    adapter = adapter_in(unet)
    with torch.no_grad():
        adapter.parameters()[1].fill_(torch.nan)
    with adapter.scale(0):
        assert torch.equal(answer(unet), before)


def test_it_comes_back_on_after_an_exception() -> None:
    unet = unet_of()
    adapter = adapter_in(unet)
    as_if_trained(adapter)
    on = answer(unet)
    for switch in (adapter.disabled, lambda: adapter.scale(0.3), lambda: adapter.scale(0)):
        with pytest.raises(RuntimeError, match="on purpose"), switch():
            raise RuntimeError("on purpose")
        assert torch.equal(answer(unet), on)
        assert all(weight.requires_grad for weight in adapter.parameters())


def test_frozen_weights_stay_frozen() -> None:
    adapter = adapter_in(unet_of())
    for weight in adapter.parameters()[::2]:
        weight.requires_grad_(False)
    with adapter.disabled():
        pass
    assert [weight.requires_grad for weight in adapter.parameters()[:4]] == [False, True, False, True]


def test_a_reference_pass_between_policy_and_backward_leaves_the_gradients_alone() -> None:
    def gradients(with_reference: bool) -> list[Tensor]:
        unet = unet_of()
        adapter = adapter_in(unet)
        as_if_trained(adapter)
        policy = answer(unet)
        if with_reference:
            with torch.no_grad(), adapter.disabled():
                answer(unet)
        policy.square().mean().backward()
        return [weight.grad for weight in adapter.parameters() if weight.grad is not None]

    plain, switched = gradients(False), gradients(True)
    assert len(plain) == len(switched) == 2 * 56
    assert all(torch.equal(a, b) for a, b in zip(plain, switched, strict=True))


def test_dropout_follows_the_networks_mode() -> None:
    unet = unet_of()
    adapter = adapter_in(unet, dropout=0.5)
    as_if_trained(adapter)
    assert torch.equal(answer(unet), answer(unet))
    unet.train()
    assert not torch.equal(answer(unet), answer(unet))


def test_training_moves_the_lora_and_never_the_base() -> None:
    unet = unet_of()
    base = {name: weight.clone() for name, weight in unet.named_parameters()}
    before = answer(unet)
    adapter = adapter_in(unet)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = answer(unet).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    with adapter.disabled():
        assert torch.equal(answer(unet), before)
    now = {name.replace(".base_layer", ""): weight for name, weight in unet.named_parameters()}
    assert all(torch.equal(now[name], weight) for name, weight in base.items())


def test_state_is_a_copy_and_comes_back() -> None:
    unet = unet_of()
    adapter = adapter_in(unet)
    as_if_trained(adapter)
    on, state = answer(unet), adapter.state()
    assert len(state) == 3 * len(adapter.modules)
    as_if_trained(adapter, seed=4)
    assert not torch.equal(answer(unet), on)
    adapter.load_state(state)
    assert torch.equal(answer(unet), on)


def test_state_brings_its_alpha_along() -> None:
    unet, other = unet_of(), unet_of()
    adapter, receiver = adapter_in(unet, alpha=8.0), adapter_in(other, alpha=1.0)
    as_if_trained(adapter)
    receiver.load_state(adapter.state())
    assert receiver.alpha == 8.0
    assert torch.equal(answer(other), answer(unet))
    with receiver.scale(0.5), adapter.scale(0.5):
        assert torch.equal(answer(other), answer(unet))


def test_a_matrix_fits_a_1x1_convolution() -> None:
    unet, other = unet_of(), unet_of()
    adapter, receiver = (adapter_in(network, targets="all-linear") for network in (unet, other))
    as_if_trained(adapter)
    state = adapter.state()
    flat = {name: weight.flatten(1) if weight.ndim == 4 else weight for name, weight in state.items()}
    assert any(weight.ndim == 4 for weight in state.values())
    receiver.load_state(flat)
    assert torch.equal(answer(other), answer(unet))


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    unet = unet_of()
    adapter = adapter_in(unet)
    as_if_trained(adapter)
    on, state = answer(unet), adapter.state()
    last = adapter.modules[-1]
    with pytest.raises(KeyNameError, match=r"'elsewhere\.down'"):
        adapter.load_state({**state, "elsewhere.down": torch.zeros(4, 4)})
    with pytest.raises(ScdpoError, match=rf"'{last}\.up' is missing"):
        adapter.load_state({name: weight for name, weight in state.items() if name != f"{last}.up"})
    with pytest.raises(ScdpoError, match=r"shape \(4, 9\).*another base model"):
        wrong = {name: weight + 1 for name, weight in state.items()}
        adapter.load_state({**wrong, f"{last}.down": torch.zeros(4, 9)})
    with pytest.raises(ScdpoError, match="another rank"):
        adapter.load_state(adapter_in(unet_of(), rank=8).state())
    assert torch.equal(answer(unet), on)


def test_a_second_lora_in_one_network_is_refused() -> None:
    unet = unet_of()
    adapter_in(unet)
    with pytest.raises(ValueError, match="already"):
        adapter_in(unet)


def test_half_strength_lies_between() -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(network, rank=2, alpha=2.0, targets=["0"], seed=0)
    as_if_trained(adapter)
    x = torch.ones(1, 4)
    with adapter.disabled():
        off = network(x)
    with adapter.scale(0.5):
        half = network(x)
    assert_close(half, (off + network(x)) / 2)
