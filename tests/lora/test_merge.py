"""Changes, their decomposition and their merging: by hand, and as properties."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from scdpo_core.lora.merge import common_family, merge, strongest
from scdpo_core.lora.resize import resize
from scdpo_core.lora.summary import describe, squared_norm
from scdpo_core.lora.weights import by_module, check, delta, kind_of, rank_of, scale_of, shape_of
from scdpo_core.types import LoraFile, ScdpoError

NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
CONV = "mid_block.resnets.0.conv1"


def lora(
    seed: int, rank: int, *, module: str = NAME, rows: int = 6, inputs: int = 5, alpha: float | None = None
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kernel = (3, 3) if module == CONV else ()
    return {
        f"{module}.down": torch.randn(rank, inputs, *kernel, generator=generator),
        f"{module}.up": torch.randn(rows, rank, *[1] * len(kernel), generator=generator),
        f"{module}.alpha": torch.tensor(float(rank if alpha is None else alpha)),
    }


def loha(module: str = NAME) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    shapes = {"hada_w1_a": (6, 2), "hada_w1_b": (2, 5), "hada_w2_a": (6, 2), "hada_w2_b": (2, 5)}
    parts = {part: torch.randn(shape, generator=generator) for part, shape in shapes.items()}
    return {f"{module}.{part}": tensor for part, tensor in {**parts, "alpha": torch.tensor(1.0)}.items()}


def change(state: dict[str, Tensor], module: str = NAME) -> Tensor:
    return delta(by_module(state)[module])


def test_changes_by_hand() -> None:
    # up (1, 2) times down (3, 4), alpha / rank = 2 / 1.
    one = {"down": torch.tensor([[3.0, 4.0]]), "up": torch.tensor([[1.0], [2.0]]), "alpha": torch.tensor(2.0)}
    assert delta(one).tolist() == [[6, 8], [12, 16]]
    # (1 2)^T (1 1) = (1 1; 2 2), times (1 -1)^T (2 3) = (2 3; -2 -3), entry by entry, alpha / rank = 1 / 2 of
    # rank 1 twice: rank 1, alpha 0.5.
    two = {
        "hada_w1_a": torch.tensor([[1.0], [2.0]]),
        "hada_w1_b": torch.tensor([[1.0, 1.0]]),
        "hada_w2_a": torch.tensor([[1.0], [-1.0]]),
        "hada_w2_b": torch.tensor([[2.0, 3.0]]),
        "alpha": torch.tensor(0.5),
    }
    assert delta(two).tolist() == [[1, 1.5], [-2, -3]]
    # Kronecker: (1 2) with (3; 4): 1 * (3; 4) beside 2 * (3; 4). Two full factors know no alpha.
    three = {
        "lokr_w1": torch.tensor([[1.0, 2.0]]),
        "lokr_w2": torch.tensor([[3.0], [4.0]]),
        "alpha": torch.tensor(100.0),
    }
    assert delta(three).tolist() == [[3, 6], [4, 8]]
    assert [kind_of(parts) for parts in (one, two, three)] == ["lora", "loha", "lokr"]
    assert [rank_of(parts) for parts in (one, two, three)] == [1, 1, None]
    assert [scale_of(parts) for parts in (one, two, three)] == [2, 0.5, 1]


def test_kernels_by_hand() -> None:
    # One input, one output, a 1x2 kernel (2, 5): down 3, mid (2, 5), up 7 give 21 * (2, 5).
    tucker = {
        "down": torch.full((1, 1, 1, 1), 3.0),
        "mid": torch.tensor([2.0, 5.0]).reshape(1, 1, 1, 2),
        "up": torch.full((1, 1, 1, 1), 7.0),
    }
    assert delta(tucker).flatten().tolist() == [42, 105]
    assert shape_of(tucker) == (1, 1, 1, 2)
    # LoHa: t1 (1, 2) * 2 * 3 = (6, 12), t2 (1, 1) * 1 * 4 = (4, 4): product (24, 48).
    core = {
        "hada_t1": torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2),
        "hada_w1_a": torch.tensor([[2.0]]),
        "hada_w1_b": torch.tensor([[3.0]]),
        "hada_t2": torch.ones(1, 1, 1, 2),
        "hada_w2_a": torch.tensor([[1.0]]),
        "hada_w2_b": torch.tensor([[4.0]]),
    }
    assert delta(core).flatten().tolist() == [24, 48]


def test_incomplete_and_unfitting_weights_are_named() -> None:
    parts = by_module(lora(0, 2))[NAME]
    check(NAME, parts)
    with pytest.raises(ScdpoError, match=f"incomplete: '{NAME}' has no up"):
        check(NAME, {"down": parts["down"]})
    with pytest.raises(ScdpoError, match=f"damaged: the weights of '{NAME}' do not fit"):
        check(NAME, {**parts, "up": torch.ones(6, 3)})
    with pytest.raises(ScdpoError, match="has a loha and a down at once"):
        check(NAME, {**parts, **by_module(loha())[NAME]})
    with pytest.raises(ScdpoError, match="has no lokr_w2_b"):
        check(NAME, {"lokr_w1": torch.ones(2, 2), "lokr_w2_a": torch.ones(2, 2)})


def test_resizing_by_hand() -> None:
    # A diagonal change 4, 2, 1: squares 16, 4, 1 of 21.
    state = {f"{NAME}.down": torch.eye(3), f"{NAME}.up": torch.diag(torch.tensor([2.0, 4.0, 1.0]))}
    halved = resize(state, rank=2)
    assert_close(change(halved.state), torch.diag(torch.tensor([2.0, 4.0, 0.0])))
    assert halved.kept[NAME] == pytest.approx(20 / 21)
    for energy, rank in ((0.76, 1), (0.77, 2), (20 / 21, 2), (0.96, 3), (1.0, 3)):
        assert by_module(resize(state, energy=energy).state)[NAME]["down"].shape[0] == rank
    # Never less than rank 1, even of nothing.
    nothing = resize({**state, f"{NAME}.up": torch.zeros(3, 3)}, energy=0.5)
    assert by_module(nothing.state)[NAME]["down"].shape == (1, 3)
    assert not change(nothing.state).any()


def test_resizing_keeps_what_needs_no_change() -> None:
    state = {**lora(0, 3), **lora(1, 5, module=OTHER)}
    same = resize(state, rank=5)
    assert set(same.state) == set(state)
    assert all(torch.equal(same.state[name], tensor) for name, tensor in state.items())
    mixed = resize(state, rank=4)
    assert torch.equal(mixed.state[f"{NAME}.up"], state[f"{NAME}.up"])
    assert mixed.kept[NAME] == 1 > mixed.kept[OTHER]
    half = resize({name: tensor.half() for name, tensor in state.items()}, rank=2)
    assert half.state[f"{NAME}.up"].dtype == torch.float16


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rank=st.integers(1, 5),
    alpha=st.floats(0.125, 8),
    module=st.sampled_from([NAME, CONV]),
)
def test_resizing_at_full_rank_is_exact(seed: int, rank: int, alpha: float, module: str) -> None:
    state = lora(seed, rank, module=module, alpha=alpha)
    whole = resize(state, energy=1.0)
    assert_close(change(whole.state, module), change(state, module), rtol=1e-4, atol=1e-5)
    assert whole.state[f"{module}.down"].shape[1:] == state[f"{module}.down"].shape[1:]
    assert whole.kept[module] == pytest.approx(1)
    cut = resize(state, rank=1)
    lost = change(cut.state, module) - change(state, module)
    share = float(lost.square().sum() / change(state, module).square().sum())
    assert cut.kept[module] == pytest.approx(1 - share, abs=1e-4)


def test_loha_becomes_a_lora() -> None:
    plain = resize(loha(), rank=5)
    assert kind_of(by_module(plain.state)[NAME]) == "lora"
    assert_close(change(plain.state), change(loha()), rtol=1e-4, atol=1e-5)
    # A convolution's may be flattened; the module's name knows its kernel.
    wide = {name: tensor for name, tensor in loha(CONV).items() if not name.endswith("_b")}
    wide |= {f"{CONV}.hada_w{n}_b": torch.randn(2, 9 * 2) for n in (1, 2)}
    assert resize(wide, rank=2).state[f"{CONV}.down"].shape == (2, 2, 3, 3)


def test_targets_that_make_no_sense() -> None:
    for options in ({}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.5}):
        with pytest.raises(ValueError, match=r"rank|share"):
            resize(lora(0, 2), **options)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**16), min_size=1, max_size=3),
    weights=st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    alpha=st.floats(0.25, 4),
    module=st.sampled_from([NAME, CONV]),
)
def test_a_merge_is_the_weighted_sum(
    seeds: list[int], weights: list[float], alpha: float, module: str
) -> None:
    loras = [lora(seed, 1 + number, module=module, alpha=alpha) for number, seed in enumerate(seeds)]
    weights = weights[: len(loras)]
    expected = sum(
        (change(state, module) * weight for state, weight in zip(loras, weights, strict=True)),
        torch.zeros(()),
    )
    merged = merge(loras, weights)
    assert_close(change(merged.state, module), expected, rtol=1e-4, atol=1e-4)
    assert merged.state[f"{module}.down"].shape[0] == sum(range(1, len(loras) + 1))
    assert_close(change(merge(loras, weights, energy=1.0).state, module), expected, rtol=1e-4, atol=1e-4)


def test_modules_that_only_one_has_are_kept() -> None:
    merged = merge([lora(0, 2), lora(1, 3, module=OTHER)], [1.0, 0.5])
    assert_close(change(merged.state), change(lora(0, 2)))
    assert_close(change(merged.state, OTHER), 0.5 * change(lora(1, 3, module=OTHER), OTHER))


def test_loha_merges_with_lora() -> None:
    merged = merge([lora(0, 2), loha()], [1.0, -1.0], rank=5)
    assert_close(change(merged.state), change(lora(0, 2)) - change(loha()), rtol=1e-4, atol=1e-5)


def test_the_strongest_by_hand() -> None:
    a, b = torch.tensor([[1.0, -5.0], [0.0, 2.0]]), torch.tensor([[-3.0, 4.0], [0.0, -2.0]])
    assert strongest([a, b]).tolist() == [[-3, -5], [0, 2]]
    states = [{f"{NAME}.down": torch.eye(2), f"{NAME}.up": change} for change in (a, b)]
    assert_close(change(merge(states, [1.0, 1.0], method="strongest").state), strongest([a, b]))
    # Weights count before the comparison: of b / 4 nothing wins but the first row's zero.
    weighted = merge(states, [1.0, 0.25], method="strongest").state
    assert_close(change(weighted), strongest([a, b / 4]))


def test_experts_that_change_different_places_become_one() -> None:
    # Each expert changes rows of its own; the merged one has both in full, where the mean would halve them.
    first, second = lora(0, 2), lora(1, 2)
    first[f"{NAME}.up"][3:] = 0
    second[f"{NAME}.up"][:3] = 0
    merged = merge([first, second], [1.0, 1.0], method="strongest")
    assert_close(change(merged.state), change(first) + change(second), rtol=1e-4, atol=1e-5)
    assert merged.kept[NAME] == pytest.approx(1)


def test_what_cannot_be_merged_says_so() -> None:
    dora = {**lora(0, 2), f"{NAME}.dora_scale": torch.ones(6, 1)}
    with pytest.raises(ScdpoError, match=f"'{NAME}' is a DoRA"):
        merge([dora, lora(1, 2)], [1.0, 1.0])
    with pytest.raises(ScdpoError, match=rf"'{NAME}' in different sizes .*\(6, 5\) and \(6, 7\)"):
        merge([lora(0, 2), lora(1, 2, inputs=7)], [1.0, 1.0])
    with pytest.raises(ValueError, match="1 LoRAs and 2 weights"):
        merge([lora(0, 2)], [1.0, 1.0])
    with pytest.raises(ValueError, match="'mean'"):
        merge([lora(0, 2)], [1.0], method="mean")  # type: ignore[arg-type]


def test_families_must_agree() -> None:
    files = [LoraFile(Path(f"{name}.safetensors"), name, 1, 1) for name in ("sd1", "", "sdxl")]
    assert common_family(files[:2]) == "sd1"
    assert common_family(files[1:2]) == ""
    with pytest.raises(ScdpoError, match=r"sd1\.safetensors is for sd1 and sdxl\.safetensors is for sdxl"):
        common_family(files)


@pytest.mark.parametrize("state", [lora(3, 2, alpha=0.5), lora(3, 2, module=CONV), loha()])
def test_norms_are_those_of_the_change(state: dict[str, Tensor]) -> None:
    parts = next(iter(by_module(state).values()))
    assert squared_norm(parts) == pytest.approx(float(delta(parts).square().sum()), rel=1e-5)


def test_a_description_by_hand() -> None:
    # Module one: 3 * 4 = 12 in one place; module two: 5 with alpha / rank 1 / 2 of rank 2.
    state = {
        f"{NAME}.down": torch.tensor([[3.0]]),
        f"{NAME}.up": torch.tensor([[4.0]]),
        f"{NAME}.alpha": torch.tensor(1.0),
        f"{CONV.replace('mid_block', 'down_blocks.1')}.down": torch.tensor([[1.0], [0.0]]).reshape(
            2, 1, 1, 1
        ),
        f"{CONV.replace('mid_block', 'down_blocks.1')}.up": torch.tensor([[10.0, 0.0]]).reshape(1, 2, 1, 1),
        f"{CONV.replace('mid_block', 'down_blocks.1')}.alpha": torch.tensor(1.0),
    }
    found = describe(state, LoraFile(Path("x.safetensors"), "sd1", 2, 6, {"a": "b"}))
    assert [(b.block, b.modules, list(b.ranks)) for b in found.blocks] == [
        ("down_blocks.1", 1, [2]),
        ("mid_block", 1, [1]),
    ]
    assert [b.norm for b in found.blocks] == pytest.approx([5, 12])
    assert [b.share for b in found.blocks] == pytest.approx([25 / 169, 144 / 169])
    assert found.norm == pytest.approx(13)
    assert (found.ranks, found.alphas, found.kinds, found.dtypes) == ([1, 2], [1.0], ["lora"], ["float32"])
    assert (found.family, found.keys, found.modules, found.metadata) == ("sd1", 6, 2, {"a": "b"})
