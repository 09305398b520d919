"""LoRA files in odd formats, with odd names, with shared memory: read right, or told in a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from scdpo_core.devices import is_out_of_memory
from scdpo_core.io.files import read_tensors, write_tensors
from scdpo_core.io.printable import printable
from scdpo_core.lora.file import load_lora, read_lora_info, write_lora
from scdpo_core.lora.summary import card_of
from scdpo_core.lora.weights import by_module, delta
from scdpo_core.types import ScdpoError
from tests.support.lora_script import SCRIPT, tool

__all__ = ["tool"]


FLUX_QKV = "lora_unet_double_blocks_0_img_attn_qkv"
MODULE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
STEM = "lora_unet_" + MODULE.replace(".", "_")


def plain(stem: str, rows: int, inputs: int, rank: int = 4, alpha: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{stem}.lora_down.weight": torch.randn(rank, inputs, generator=generator),
        f"{stem}.lora_up.weight": torch.randn(rows, rank, generator=generator),
        f"{stem}.alpha": torch.tensor(alpha),
    }


def saved(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata or None)
    return path


FUSED = {
    "qkv": plain(FLUX_QKV, 144, 48),
    "alpha is rank": plain(FLUX_QKV, 144, 48, alpha=4),
    "linear1": plain("lora_unet_single_blocks_0_linear1", 144 + 192, 48),
    "sd3": plain("lora_unet_joint_blocks_0_x_block_attn_qkv", 144, 48),
    "comfyui": plain("diffusion_model.double_blocks.0.img_attn.qkv", 144, 48),
    "loha": {
        f"{FLUX_QKV}.hada_w1_a": torch.randn(144, 2),
        f"{FLUX_QKV}.hada_w1_b": torch.randn(2, 48),
        f"{FLUX_QKV}.hada_w2_a": torch.randn(144, 2),
        f"{FLUX_QKV}.hada_w2_b": torch.randn(2, 48),
        f"{FLUX_QKV}.alpha": torch.tensor(2.0),
    },
    "lokr": {
        f"{FLUX_QKV}.lokr_w1": torch.randn(12, 4),
        f"{FLUX_QKV}.lokr_w2": torch.randn(12, 12),
    },
    "dora": {**plain(FLUX_QKV, 144, 48, alpha=4), f"{FLUX_QKV}.dora_scale": torch.rand(144, 1)},
}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("work", ["convert", "resize"])
def test_fused_matrices_go_to_peft(tool: ModuleType, tmp_path: Path, name: str, work: str) -> None:
    source, out = saved(tmp_path / "fused.safetensors", FUSED[name]), tmp_path / "out.safetensors"
    options = ["--rank", "64"] if work == "resize" else []
    assert tool.main([work, str(source), *options, "--to", "peft", "--output", str(out)]) == 0
    state, written = by_module(load_lora(source)[0]), by_module(load_lora(out)[0])
    assert state.keys() == written.keys() and len(state) == (4 if name == "linear1" else 3)
    for module, parts in state.items():
        torch.testing.assert_close(delta(written[module]), delta(parts), rtol=1e-3, atol=1e-4)


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": whole, "b": whole, "c": whole[1:], "d": whole.T, "e": whole[:1], "f": torch.zeros(0)}
    write_tensors(tmp_path / "x.safetensors", tensors, {})
    found, _ = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"])
@pytest.mark.parametrize("work", ["inspect", "convert", "resize", "merge"])
def test_8_bit_floats_are_read_as_float32(
    tool: ModuleType, tmp_path: Path, dtype: str, work: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Every second one of these numbers is exact in 8 bits, alpha included.
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in FUSED["qkv"].items()}
    path, out = saved(tmp_path / "narrow.safetensors", tensors), tmp_path / "out.safetensors"
    options = {
        "inspect": [],
        "convert": ["--to", "peft"],
        "resize": ["--rank", "2"],
        "merge": [str(path), "--rank", "2"],
    }[work]
    writes = [] if work == "inspect" else ["--output", str(out)]
    assert tool.main([work, str(path), *options, *writes]) == 0
    assert f"Its weights are 8-bit floats ({dtype}), read as float32." in capsys.readouterr().err
    state, file = load_lora(path)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    wide = saved(tmp_path / "wide.safetensors", {name: tensor.float() for name, tensor in tensors.items()})
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_lora(wide)[0].items())
    assert card_of(file).endswith("read as float32.")


@pytest.mark.parametrize(
    "alpha",
    [
        torch.tensor([2.0]), torch.full((1, 1, 1), 2.0), torch.full((4,), 2.0), torch.tensor(2),
        torch.tensor([2], dtype=torch.uint16), torch.tensor(2, dtype=torch.uint8), torch.tensor(2.0).double(),
        torch.tensor([2.0]).to(torch.float8_e4m3fn),
    ],
    ids=lambda alpha: f"{alpha.dtype} {list(alpha.shape)}",
)  # fmt: skip
@pytest.mark.parametrize("stem", [STEM, FLUX_QKV])
def test_an_alpha_of_any_shape_and_format_is_a_number(tmp_path: Path, alpha: Tensor, stem: str) -> None:
    path = saved(tmp_path / "x.safetensors", {**plain(stem, 144, 48), f"{stem}.alpha": alpha})
    state, _ = load_lora(path)
    alphas = [tensor for name, tensor in state.items() if name.endswith(".alpha")]
    assert alphas and all(tensor.shape == () and float(tensor) == 2 for tensor in alphas)
    write_lora(tmp_path / "y.safetensors", state, dialect="peft", family="flux", metadata={})


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("alpha", torch.tensor([1.0, 2.0]), "must be one number, and it holds 2"),
        ("alpha", torch.zeros(0), "must be one number, and it holds 0"),
        ("alpha", torch.tensor(1j), "must be one number"),
        ("alpha", torch.tensor(torch.nan), "not finite"),
        ("lora_up.weight", torch.ones(144, 4, dtype=torch.int8), "codes of a compressed LoRA"),
        ("lora_up.weight", torch.ones(144, 4, dtype=torch.complex64), "format complex64"),
        ("lora_up.weight", torch.ones(144, 4, dtype=torch.bool), "format bool"),
        ("lora_up.weight", torch.zeros(0), "is empty"),
        ("lora_up.weight", torch.zeros(144, 0), "is empty"),
        ("lora_down.weight", torch.zeros(0, 48), "is empty"),
        ("lora_down.weight", torch.tensor(1.0), "do not fit each other"),
        ("lora_up.weight", torch.ones(144, 1, 4, 1), "do not fit each other"),
        ("lora_down.weight", torch.ones(4, 48, 1), "do not fit each other"),
        ("dora_scale", torch.ones(7, 1), "do not fit each other"),
        ("dora_scale", torch.tensor(1.0), "do not fit each other"),
        ("dora_scale", torch.zeros(0), "is empty"),
    ],
)
@pytest.mark.parametrize("stem", [STEM, FLUX_QKV, f"base_model.model.{MODULE}"])
def test_what_cannot_be_read_is_told(
    tmp_path: Path, part: str, tensor: Tensor, message: str, stem: str
) -> None:
    path = saved(tmp_path / "odd.safetensors", {**plain(stem, 144, 48), f"{stem}.{part}": tensor})
    with pytest.raises(ScdpoError, match=message) as caught:
        load_lora(path)
    assert "odd.safetensors" in str(caught.value)
    read_lora_info(path)  # looks at no weight, and must not stumble over one


def test_a_name_beyond_all_measure_is_told(tmp_path: Path) -> None:
    for stem in ("lora_unet_down_blocks_" + "9" * 5000 + "_attentions_0_proj_in", "x" * 100_000):
        path = saved(tmp_path / "x.safetensors", plain(stem, 8, 8))
        for read in (load_lora, read_lora_info):
            with pytest.raises(ScdpoError, match="no weight's name has so many") as caught:
                read(path)
            assert len(str(caught.value)) < 500


def test_the_tool_says_what_is_wrong_with_names(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = saved(tmp_path / "good.safetensors", plain(STEM, 8, 8))
    long = tmp_path / ("n" * 300 + ".safetensors")
    for words in (
        ["inspect", long],
        ["convert", long, "--to", "peft", "--output", tmp_path / "x.safetensors"],
        ["convert", good, "--to", "peft", "--output", long],
        ["resize", good, "--rank", "1", "--output", long],
        ["merge", good, good, "--output", long],
        ["merge", good, long, "--output", tmp_path / "x.safetensors"],
        ["inspect", "a\0b.safetensors"],
    ):
        assert tool.main([str(word) for word in words]) == 2
        assert capsys.readouterr().err.startswith("Error: ")
    assert [file.name for file in tmp_path.iterdir()] == ["good.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_the_tool_reads_and_writes_names_that_are_not_utf_8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.safetensors"))
    saved(tmp_path / "x.safetensors", plain(STEM, 8, 8)).rename(path)
    out = path.with_name(path.stem + "-2.safetensors")
    for words in (
        ["inspect", path],
        ["inspect", path, "--json"],
        ["resize", path, "--rank", "1", "--output", out],
        ["convert", path, "--to", "peft", "--output", out, "--overwrite"],
        ["merge", path, path, "--output", out, "--overwrite"],
    ):
        result = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True)
        assert result.returncode == 0, result.stderr


def test_what_a_stranger_wrote_does_not_reach_the_terminal(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07\x1b[31m\u202e\x9b2J"
    path = saved(tmp_path / "x.safetensors", plain(STEM, 8, 8), **{f"k{evil}": f"v{evil}"})
    assert tool.main(["inspect", str(path)]) == 0
    assert tool.main(["inspect", str(path), "--json"]) == 0
    saved(path, {f"x{evil}": torch.ones(1)})
    assert tool.main(["inspect", str(path)]) == 2
    shown = "".join(capsys.readouterr())
    assert not any(sign in shown for sign in "\x1b\x07\x9b\u202e")
    assert "\\x1b]0;owned\\x07" in shown
    assert printable("a\tb\n\udce9 é 女", lines=True) == "a\tb\n\\udce9 é 女"


def test_the_tool_says_that_memory_ran_out(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    path = saved(tmp_path / "x.safetensors", plain(STEM, 8, 8))
    for error in (MemoryError(), caught.value):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(tool, "load_lora", fail)
        assert tool.main(["inspect", str(path)]) == 2
        assert f"not enough memory for {path}" in capsys.readouterr().err


def test_metadata_that_is_nested_or_huge_is_no_obstacle(tmp_path: Path) -> None:
    deep, large = "[" * 100_000, '{"a": 1' + "0" * 400 + "}"
    for text in (deep, large):
        path = saved(
            tmp_path / "x.safetensors",
            plain(STEM, 8, 8),
            scdpo_alpha=text,
            scdpo_categories=text,
            scdpo_evaluation=text,
        )
        assert card_of(read_lora_info(path)) and load_lora(path)
    assert json.loads(large)
