"""LoRAs of impossible sizes and weights: refused, or measured without the matrix that they stand for."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scdpo_core.lora.file import load_lora, read_lora_info
from scdpo_core.lora.resize import decompose
from scdpo_core.lora.summary import squared_norm
from scdpo_core.lora.weights import MAX_ENTRIES, TooLargeError, by_module, delta, kronecker, low_rank
from scdpo_core.types import ScdpoError
from tests.support.lora_script import tool

__all__ = ["tool"]


MODULE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
STEM = "lora_unet_" + MODULE.replace(".", "_")


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
    return path


def small_file_of_a_large_change(folder: Path, kind: str) -> Path:
    long = torch.full((1, 100_000), 0.01, dtype=torch.float16)
    parts = {
        "lora": {"lora_down.weight": long, "lora_up.weight": long.T},
        "rank": {"lora_down.weight": long.T.repeat(1, 2), "lora_up.weight": long.repeat(3, 1)},
        "lokr": {"lokr_w1": torch.ones(150, 150), "lokr_w2": torch.ones(150, 150)},  # 506 million numbers
        "lokr of factors": {"lokr_w1": torch.ones(1, 1), "lokr_w2_a": long.T, "lokr_w2_b": long},
        "loha": {"hada_w1_a": long.T, "hada_w1_b": long, "hada_w2_a": long.T, "hada_w2_b": long},
        # The change is small, a product on the way to it is not.
        "tucker": {
            "hada_t1": torch.ones(100_000, 1, 1, 1),
            "hada_w1_a": torch.ones(100_000, 1),
            "hada_w1_b": long,
            "hada_t2": torch.ones(1, 1, 1, 1),
            "hada_w2_a": torch.ones(1, 1),
            "hada_w2_b": long,
        },
    }[kind]
    return saved(folder / "large.safetensors", {f"{STEM}.{part}": tensor for part, tensor in parts.items()})


@pytest.mark.parametrize("kind", ["lora", "lokr", "lokr of factors", "loha", "tucker"])
def test_a_change_larger_than_any_layer_is_refused_before_it_is_made(tmp_path: Path, kind: str) -> None:
    path = small_file_of_a_large_change(tmp_path, kind)
    with pytest.raises(ScdpoError, match=rf"'{MODULE}' claims [\d,]+ numbers, and no layer"):
        load_lora(path)
    assert read_lora_info(path).keys == len(load_file(path))


def test_a_rank_above_both_sides_costs_no_more_than_the_change(tmp_path: Path) -> None:
    state, _ = load_lora(small_file_of_a_large_change(tmp_path, "rank"))
    parts = by_module(state)[MODULE]
    assert delta(parts).shape == (3, 2)
    assert squared_norm(parts) == pytest.approx(float(delta(parts).square().sum()), rel=1e-5)
    assert decompose(MODULE, parts).s[0] == pytest.approx(squared_norm(parts) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("layer", [(3072, 21504), (18432, 3072), (1280, 2560 * 9)])
def test_the_largest_layers_of_the_known_models_are_within_the_bound(layer: tuple[int, int]) -> None:
    assert layer[0] * layer[1] <= MAX_ENTRIES


def test_no_product_is_made_beyond_the_bound() -> None:
    side = torch.ones(1, 1).expand(1 << 14, 1)
    with pytest.raises(TooLargeError):
        delta({"up": side, "down": side.T})
    with pytest.raises(TooLargeError):
        kronecker({"lokr_w1_a": side, "lokr_w1_b": side.T, "lokr_w2": torch.ones(1, 1)})


@pytest.mark.parametrize(
    "parts",
    [
        {"lokr_w1": (3, 4), "lokr_w2": (5, 6)},
        {"lokr_w1": (3, 4), "lokr_w2_a": (5, 2), "lokr_w2_b": (2, 6)},
        {"lokr_w1_a": (3, 2), "lokr_w1_b": (2, 4), "lokr_w2": (5, 6, 3, 3)},
        {"lokr_w1": (3, 4), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 5), "lokr_w2_b": (2, 6)},
        {"hada_w1_a": (9, 2), "hada_w1_b": (2, 8), "hada_w2_a": (9, 3), "hada_w2_b": (3, 8)},
        {"hada_w1_a": (9, 4), "hada_w1_b": (4, 8), "hada_w2_a": (9, 3), "hada_w2_b": (3, 8)},
        {"down": (20, 8), "up": (9, 20)},
    ],
)
def test_norms_and_decompositions_without_the_matrix_are_those_of_the_matrix(
    parts: dict[str, tuple[int, ...]],
) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {part: torch.randn(shape, generator=generator) for part, shape in parts.items()}
    weights["alpha"] = torch.tensor(3.0)
    matrix = delta(weights).double()
    assert squared_norm(weights) == pytest.approx(float(matrix.square().sum()), rel=1e-5)
    exact = torch.linalg.svdvals(matrix.flatten(1))
    for most in (None, 4):
        u, s, vh = decompose(MODULE, weights, most)
        torch.testing.assert_close(s[: len(exact)], exact[: len(s)], rtol=1e-4, atol=1e-4)
        best = torch.linalg.svd(matrix.flatten(1), full_matrices=False)
        wanted = (best.U[:, :4] * best.S[:4]) @ best.Vh[:4]
        torch.testing.assert_close((u[:, :4] * s[:4]) @ vh[:4], wanted, rtol=1e-4, atol=1e-4)
    factors = low_rank(weights)
    if factors is not None:
        torch.testing.assert_close(factors[0] @ factors[1], matrix.flatten(1), rtol=1e-4, atol=1e-4)


def test_a_change_beyond_all_measure_is_told(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every weight is finite, their product is not."""
    large = torch.full((8, 8), 1e38)
    out = tmp_path / "x" / "out.safetensors"
    for parts in (
        {f"hada_{side}": large.clone() for side in ("w1_a", "w1_b", "w2_a", "w2_b")},
        {"lokr_w1": large, "lokr_w2_a": 1e200 * large.double(), "lokr_w2_b": 1e200 * large.double()},
        {"lora_down.weight": 1e200 * large.double(), "lora_up.weight": 1e200 * large.double()},
    ):
        path = saved(tmp_path / "x.safetensors", {f"{STEM}.{part}": tensor for part, tensor in parts.items()})
        for words in (["inspect", path], ["resize", path, "--rank", "2", "--output", out]):
            assert tool.main([str(word) for word in words]) == 2
            assert "beyond all measure" in capsys.readouterr().err
    assert not out.exists()


def test_a_lokr_is_measured_and_resized_without_its_matrix(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 65 kB claims 65.6 million numbers, half a gigabyte, for one module."""
    weights = {f"{STEM}.lokr_w1": torch.rand(90, 90), f"{STEM}.lokr_w2": torch.rand(90, 90)}
    path = saved(tmp_path / "x.safetensors", weights)

    def kron(one: Tensor, other: Tensor) -> Tensor:
        assert one.is_meta and other.is_meta
        return one.new_empty([a * b for a, b in zip(one.shape, other.shape, strict=True)])

    monkeypatch.setattr(torch, "kron", kron)
    assert tool.main(["inspect", str(path)]) == 0
    assert tool.main(["resize", str(path), "--rank", "2", "--output", str(tmp_path / "y.safetensors")]) == 0
