"""What FLUX and SD3 fuse: splitting and joining, exact where it is promised, a sentence where it is not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from scdpo_core.lora.formats.convert import from_file, to_file
from scdpo_core.lora.formats.fused_qkv import join_rows, split_rows, swap_halves
from scdpo_core.lora.weights import delta
from scdpo_core.types import ScdpoError

QKV = ("q", "k", "v")
LINEAR1 = ("q", "k", "v", "proj_mlp")


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def plain(seed: int, rank: int, rows: int, inputs: int, alpha: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "down": random(generator, rank, inputs),
        "up": random(generator, rows, rank),
        "alpha": torch.tensor(alpha),
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[part], b[part]) for part in a)


def test_by_hand() -> None:
    # Two inputs, two rows a member. q: up (1,2), down (3,4); v: up (5,6), down (7,8); k untouched.
    shares = {
        "q": {"down": torch.tensor([[3.0, 4.0]]), "up": torch.tensor([[1.0], [2.0]])},
        "v": {"down": torch.tensor([[7.0, 8.0]]), "up": torch.tensor([[5.0], [6.0]])},
    }
    joined = join_rows(shares, QKV)
    assert joined["down"].tolist() == [[3, 4], [7, 8]]
    assert joined["up"].tolist() == [[1, 0], [2, 0], [0, 0], [0, 0], [0, 5], [0, 6]]
    assert "alpha" not in joined
    split = split_rows(joined, QKV)
    assert split.keys() == {"q", "v"}
    assert all(same(split[member], share) for member, share in shares.items())


def test_a_shared_down_is_kept_once() -> None:
    fused = plain(0, 2, 12, 4, 2.0)
    split = split_rows(fused, QKV)
    assert [share["up"].shape for share in split.values()] == [(4, 2)] * 3
    assert all(share["down"] is fused["down"] for share in split.values())
    assert same(join_rows(split, QKV), fused)


def test_an_alpha_that_only_some_members_have_is_no_shared_one() -> None:
    down = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    shares = {member: {"down": down, "up": torch.ones(2, 2)} for member in QKV}
    # Alpha 1 at rank 2 halves; q has none and counts whole.
    shares["k"]["alpha"] = torch.tensor(1.0)
    joined = join_rows(shares, QKV)
    scale = float(joined["alpha"]) / len(joined["down"]) if "alpha" in joined else 1.0
    whole = scale * joined["up"] @ joined["down"]
    assert whole.tolist() == [[4, 6]] * 2 + [[2, 3]] * 2 + [[4, 6]] * 2


def test_flux_mlp_takes_what_is_left() -> None:
    fused = plain(1, 2, 3 * 4 + 16, 4, 2.0)
    split = split_rows(fused, LINEAR1)
    assert [share["up"].shape[0] for share in split.values()] == [4, 4, 4, 16]
    assert same(join_rows(split, LINEAR1), fused)
    # An MLP alone is four times as wide as its input; the others' rows are found without them.
    alone = join_rows({"proj_mlp": split["proj_mlp"]}, LINEAR1)
    assert alone["up"].shape == (28, 2)
    assert not alone["up"][:12].any()


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(any),
    alphas=st.lists(st.sampled_from([0.5, 1.0, 3.0, 4.0]), min_size=3, max_size=3),
    scale_with_rank=st.booleans(),
)
def test_independent_members_join_and_split_again(
    ranks: list[int], alphas: list[float], scale_with_rank: bool
) -> None:
    shares = {
        member: plain(number, rank, 5, 5, rank * alphas[0] if scale_with_rank else alphas[number])
        for number, (member, rank) in enumerate(zip(QKV, ranks, strict=True))
        if rank
    }
    joined = join_rows(shares, QKV)
    change = delta(joined)
    for number, member in enumerate(QKV):
        rows = change[5 * number : 5 * number + 5]
        expected = delta(shares[member]) if member in shares else torch.zeros(5, 5)
        assert_close(rows, expected, rtol=1e-5, atol=1e-6)
    split = split_rows(joined, QKV)
    assert split.keys() == shares.keys()
    if scale_with_rank:  # one alpha / rank: exact to the last bit
        assert all(same(split[member], share) for member, share in shares.items())
    assert same(join_rows(split, QKV), joined)


def test_untrained_ones_keep_their_ranks() -> None:
    shares = {member: plain(number, 2, 3, 3, 2.0) for number, member in enumerate(QKV)}
    shares["k"]["up"] = torch.zeros(3, 2)
    split = split_rows(join_rows(shares, QKV), QKV)
    # k changes nothing, so nothing tells that its ranks are its own; the sum is what counts.
    assert {member: share["down"].shape[0] for member, share in split.items()} == {"q": 3, "v": 3}
    assert_close(delta(join_rows(split, QKV)), delta(join_rows(shares, QKV)))
    for share in shares.values():
        share["up"] = torch.zeros(3, 2)
    joined = join_rows(shares, QKV)
    assert same(join_rows(split_rows(joined, QKV), QKV), joined)


def loha(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hada_w1_a": random(generator, 12, 2),
        "hada_w1_b": random(generator, 2, 4),
        "hada_w2_a": random(generator, 12, 2),
        "hada_w2_b": random(generator, 2, 4),
        "alpha": torch.tensor(1.0),
    }


def lokr(seed: int, first_rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "lokr_w1": random(generator, first_rows, 2),
        "lokr_w2_a": random(generator, 12 // first_rows, 2),
        "lokr_w2_b": random(generator, 2, 2),
        "alpha": torch.tensor(1.0),
    }


@pytest.mark.parametrize("fused", [loha(0), lokr(0, 3), lokr(0, 6)])
def test_loha_and_lokr_split_by_their_rows(fused: dict[str, Tensor]) -> None:
    split = split_rows(fused, QKV)
    assert_close(torch.cat([delta(share) for share in split.values()]), delta(fused))
    assert same(join_rows(split, QKV), fused)


def test_what_cannot_be_exact_says_so() -> None:
    with pytest.raises(ScdpoError, match="LoKr whose blocks of 3 rows do not fit"):
        split_rows(lokr(0, 4), QKV)
    columns = {**plain(0, 2, 12, 4, 2.0), "dora_scale": torch.ones(1, 4)}
    with pytest.raises(ScdpoError, match="magnitudes of columns"):
        split_rows(columns, QKV)
    with pytest.raises(ScdpoError, match="share their other factors"):
        join_rows({"q": split_rows(loha(0), QKV)["q"], "k": split_rows(loha(1), QKV)["k"]}, QKV)
    with pytest.raises(ScdpoError, match="different kinds"):
        join_rows({"q": plain(0, 1, 4, 4, 1.0), "k": split_rows(loha(1), QKV)["k"]}, QKV)
    rows = {**plain(0, 2, 12, 4, 2.0), "dora_scale": torch.ones(12, 1)}
    split = split_rows(rows, QKV)
    assert same(join_rows(split, QKV), rows)
    with pytest.raises(ScdpoError, match="only some of its members"):
        join_rows({"q": split["q"]}, QKV)
    with pytest.raises(ScdpoError, match="10 rows are not those of 3"):
        split_rows(plain(0, 2, 10, 4, 2.0), QKV)
    with pytest.raises(ScdpoError, match="kernel"):
        split_rows({**plain(0, 2, 12, 4, 2.0), "mid": torch.ones(2, 2, 3, 3)}, QKV)


def test_halves_swap_and_swap_back() -> None:
    parts = plain(0, 1, 4, 2, 1.0)
    swapped = swap_halves(parts)
    assert torch.equal(swapped["up"], parts["up"][[2, 3, 0, 1]])
    assert same(swap_halves(swapped), parts)
    with pytest.raises(ScdpoError, match="halves"):
        swap_halves(plain(0, 1, 3, 2, 1.0))


def test_shift_and_scale_are_where_each_layout_has_them() -> None:
    # FLUX's last normalisation has 2 * 3 rows of 3 inputs: diffusers scale then shift, else the reverse.
    up = torch.arange(6.0).reshape(6, 1)
    state = {"norm_out.linear.down": torch.ones(1, 3), "norm_out.linear.up": up}
    for dialect in ("kohya", "comfyui"):
        tensors = to_file(state, dialect, "flux").tensors  # type: ignore[arg-type]
        key = next(key for key in tensors if key.endswith("lora_up.weight"))
        assert tensors[key].flatten().tolist() == [3, 4, 5, 0, 1, 2]
        assert torch.equal(from_file(tensors, {})["norm_out.linear.up"], up)
    assert torch.equal(
        to_file(state, "peft", "flux").tensors["transformer.norm_out.linear.lora_B.weight"], up
    )
    # SD3 normalises the text that way in its last block only: there it has twice as many rows as inputs.
    for rows, first in ((6, 3), (18, 0)):
        name = "transformer_blocks.1.norm1_context.linear"
        state = {f"{name}.down": torch.ones(1, 3), f"{name}.up": torch.arange(float(rows)).reshape(rows, 1)}
        tensors = to_file(state, "kohya", "sd3").tensors
        key = "lora_unet_joint_blocks_1_context_block_adaLN_modulation_1.lora_up.weight"
        assert tensors[key][0].item() == first


def test_a_fused_weight_that_cannot_be_read_is_named() -> None:
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    with pytest.raises(ScdpoError, match=rf"'{key}\.lora_up\.weight' cannot be read: is incomplete.*no down"):
        from_file({f"{key}.lora_up.weight": torch.ones(12, 1)}, {})
    kernel = {"down": torch.ones(1, 4), "up": torch.ones(4, 1), "mid": torch.ones(1, 1, 3, 3)}
    state = {f"transformer_blocks.0.attn.to_q.{part}": tensor for part, tensor in kernel.items()}
    with pytest.raises(ScdpoError, match=rf"'{key}' cannot be written in 'kohya': a convolution's kernel"):
        to_file(state, "kohya", "flux")


def test_members_that_cannot_be_fused_keep_their_own_names() -> None:
    block = "transformer_blocks.0.attn"
    columns = {**plain(2, 1, 4, 4, 1.0), "dora_scale": torch.ones(1, 4)}
    shares = {
        "to_q": plain(0, 1, 4, 4, 1.0),
        "to_k": split_rows(loha(1), QKV)["k"],
        "to_v": columns,
        "to_out.0": plain(3, 1, 4, 4, 1.0),
    }
    state = {
        f"{block}.{member}.{part}": tensor
        for member, share in shares.items()
        for part, tensor in share.items()
    }
    stems = {
        "kohya": ("lycoris_transformer_blocks_0_attn_to_k", "lora_unet_double_blocks_0_img_attn_proj"),
        "comfyui": (
            "transformer.transformer_blocks.0.attn.to_k",
            "diffusion_model.double_blocks.0.img_attn.proj",
        ),
    }
    for dialect, (apart, alone) in stems.items():
        tensors = to_file(state, dialect, "flux").tensors  # type: ignore[arg-type]
        assert {
            f"{apart}.hada_w1_a",
            f"{apart[:-1]}v.dora_scale",
            f"{alone}.lora_up.weight",
        } <= tensors.keys()
        assert same(from_file(tensors, {}), state)
