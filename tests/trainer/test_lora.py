"""The LoRA tool, as an artist runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from scdpo_core.lora.file import load_lora, read_lora_info, save_lora, write_lora
from scdpo_core.lora.formats.keys import DIALECTS
from scdpo_core.lora.metadata import EVALUATION, add_facts
from scdpo_core.lora.weights import by_module, delta
from scdpo_core.types import ScdpoError
from tests.support.lora_script import SCRIPT, tool

__all__ = ["tool"]


SHAPES = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (8, 6),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (8, 768),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (8, 768),
    "text_encoder.text_model.encoder.layers.3.mlp.fc1": (8, 6),
}
FLUX = {
    "transformer_blocks.0.attn.to_q": (6, 6),
    "transformer_blocks.0.attn.to_k": (6, 6),
    "single_transformer_blocks.1.proj_mlp": (24, 6),
    "norm_out.linear": (12, 6),
}


def lora_file(
    path: Path,
    seed: int = 0,
    *,
    shapes: dict[str, tuple[int, int]] = SHAPES,
    rank: int = 4,
    family: str = "sd1",
) -> Path:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for module, (rows, inputs) in shapes.items():
        state[f"{module}.down"] = torch.randn(rank, inputs, generator=generator)
        state[f"{module}.up"] = torch.randn(rows, rank, generator=generator)
        state[f"{module}.alpha"] = torch.tensor(float(rank))
    return save_lora(path, state, family=family, rank=rank, alpha=rank, facts={"objective": "sc_dpo"}).path


def test_inspect_for_people_and_programs(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lora_file(tmp_path / "calm.safetensors")
    assert tool.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "Stable Diffusion 1" in shown and "scdpo_objective: sc_dpo" in shown
    assert [
        line.split()[:3] for line in shown.splitlines() if line.startswith(("text_enc", "down_b", "mid_b"))
    ] == [
        ["text_encoder", "1", "4"],
        ["down_blocks.1", "2", "4"],
        ["mid_block", "1", "4"],
    ]
    assert tool.main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["family"], found["ranks"], found["alphas"], found["keys"]) == ("sd1", [4], [4.0], 12)
    state, _ = load_lora(path)
    total = sum(float(delta(parts).square().sum()) for parts in by_module(state).values())
    assert found["norm"] == pytest.approx(total**0.5, rel=1e-4)


@pytest.mark.parametrize("dialect", [dialect for dialect in DIALECTS if dialect != "kohya"])
@pytest.mark.parametrize(("family", "shapes"), [("sd1", SHAPES), ("flux", FLUX)])
def test_converting_there_and_back_gives_the_same_bytes(
    tool: ModuleType, tmp_path: Path, dialect: str, family: str, shapes: dict[str, tuple[int, int]]
) -> None:
    path = lora_file(tmp_path / "calm.safetensors", shapes=shapes, family=family)
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    assert tool.main(["convert", str(path), "--to", dialect, "--output", str(there)]) == 0
    assert tool.main(["convert", str(there), "--to", "kohya", "--output", str(back)]) == 0
    assert back.read_bytes() == path.read_bytes()
    if family == "flux" and dialect == "kohya-ldm":
        assert there.read_bytes() == path.read_bytes()  # FLUX has one kohya form
    else:
        assert there.read_bytes() != path.read_bytes()
    assert read_lora_info(there).family == family


def test_resize(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = lora_file(tmp_path / "calm.safetensors"), tmp_path / "small.safetensors"
    assert tool.main(["resize", str(path), "--rank", "2", "--output", str(out)]) == 0
    assert "highest rank 2, 4 modules" in capsys.readouterr().out
    info = read_lora_info(out)
    assert (info.rank, info.family) == (2, "sd1")
    said = info.metadata
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["ss_output_name"]) == ("2", "2.0", "small")
    assert (said["scdpo_resized_from"], said["scdpo_objective"]) == ("calm.safetensors", "sc_dpo")
    assert tool.main(["resize", str(path), "--energy", "1", "--output", str(out), "--overwrite"]) == 0
    assert read_lora_info(out).rank == 4


def test_what_was_measured_of_a_lora_is_not_said_of_its_resized_or_merged_copy(
    tool: ModuleType, tmp_path: Path
) -> None:
    path, out = lora_file(tmp_path / "calm.safetensors"), tmp_path / "other.safetensors"
    add_facts(path, {"evaluation": {"harmful_rate": {"before": 0.9, "after": 0.1}}})
    for words in (["resize", str(path), "--rank", "2"], ["merge", str(path), str(path)]):
        assert tool.main([*words, "--output", str(out), "--overwrite"]) == 0
        assert EVALUATION not in read_lora_info(out).metadata
    # The same weights under other names are still what was measured.
    assert tool.main(["convert", str(path), "--to", "peft", "--output", str(out), "--overwrite"]) == 0
    assert json.loads(read_lora_info(out).metadata[EVALUATION])["harmful_rate"]["after"] == 0.1


def test_merge(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(lora_file(tmp_path / f"{name}.safetensors", seed)) for seed, name in enumerate("ab")]
    out = tmp_path / "both.safetensors"
    assert tool.main(["merge", *paths, "--weights", "1", "0.5", "--output", str(out)]) == 0
    merged, (first, _), (second, _) = load_lora(out), load_lora(Path(paths[0])), load_lora(Path(paths[1]))
    for module, parts in by_module(merged[0]).items():
        expected = delta(by_module(first)[module]) + 0.5 * delta(by_module(second)[module])
        torch.testing.assert_close(delta(parts), expected, rtol=1e-4, atol=1e-4)
    sources = json.loads(merged[1].metadata["scdpo_merged_from"])
    assert [(source["file"], source["weight"]) for source in sources] == [
        ("a.safetensors", 1.0),
        ("b.safetensors", 0.5),
    ]
    options = ["--method", "strongest", "--rank", "3", "--dtype", "fp16", "--to", "comfyui", "--overwrite"]
    assert tool.main(["merge", *paths, *options, "--output", str(out)]) == 0
    state, info = load_lora(out)
    assert (info.rank, info.family) == (3, "sd1")
    assert {str(t.dtype) for name, t in state.items() if not name.endswith("alpha")} == {"torch.float16"}
    assert "kept of the change" in capsys.readouterr().out


def test_mistakes_get_a_sentence_and_write_nothing(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sd1 = lora_file(tmp_path / "sd1.safetensors")
    flux = lora_file(tmp_path / "flux.safetensors", shapes=FLUX, family="flux")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(sd1.read_bytes()[:500])
    out = tmp_path / "out.safetensors"
    before = sd1.read_bytes()
    cases = {
        "can run code": ["convert", tmp_path / "pickle.safetensors", "--to", "peft", "--output", out],
        "damaged": ["inspect", tmp_path / "cut.safetensors"],
        "There is no file": ["inspect", tmp_path / "nowhere.safetensors"],
        "different base models": ["merge", sd1, flux, "--output", out],
        "is an input": ["resize", sd1, "--rank", "1", "--output", sd1, "--overwrite"],
        "already": ["convert", sd1, "--to", "peft", "--output", flux],
        "2 LoRAs and 1 weights": ["merge", sd1, sd1, "--weights", "1", "--output", out],
        "ends in .safetensors": ["convert", sd1, "--to", "peft", "--output", tmp_path / "out.pt"],
    }
    for sentence, arguments in cases.items():
        assert tool.main([str(argument) for argument in arguments]) == 2
        assert sentence in capsys.readouterr().err
    assert sd1.read_bytes() == before
    assert not out.exists()
    for arguments in (["resize", sd1, "--output", out], ["resize", sd1, "--rank", "0", "--output", out]):
        with pytest.raises(SystemExit):
            tool.main([str(argument) for argument in arguments])


def test_files_that_contradict_themselves(tmp_path: Path) -> None:
    path = lora_file(tmp_path / "calm.safetensors")
    state, info = load_lora(path)
    lying = {**info.metadata, "scdpo_family": "sdxl"}
    write_lora(tmp_path / "lying.safetensors", state, dialect="kohya", family="sd1", metadata=lying)
    for read in (load_lora, read_lora_info):
        with pytest.raises(ScdpoError, match=r"for Stable Diffusion XL, but .* Stable Diffusion 1"):
            read(tmp_path / "lying.safetensors")
    mixed = {
        "unet.mid_block.resnets.0.conv1.lora_A.weight": torch.ones(1, 2, 3, 3),
        "unet.mid_block.resnets.0.conv1.lora_B.weight": torch.ones(2, 1, 1, 1),
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(1, 2),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(2, 1),
    }
    save_file(mixed, tmp_path / "mixed.safetensors")
    with pytest.raises(ScdpoError, match="mixes models: 'mid_block"):
        load_lora(tmp_path / "mixed.safetensors")


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        (["lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"], "sdxl"),
        (["lora_unet_output_blocks_2_1_conv"], ""),  # Stable Diffusion 1 or 2
        (["lora_te2_text_model_encoder_layers_0_mlp_fc1", "lora_unet_mid_block_resnets_0_conv1"], "sdxl"),
        (["lora_unet_joint_blocks_0_x_block_mlp_fc1"], "sd3"),
        (["lora_unet_double_blocks_0_img_mlp_0"], "flux"),
        (["transformer.single_transformer_blocks.0.proj_out"], "flux"),
        (["lora_unet_distilled_guidance_layer_layers_0_in_layer"], "chroma"),
        (["transformer.transformer_blocks.0.attn2.to_out.0"], "sd3"),
        (["unet.mid_block.resnets.0.conv1"], ""),
    ],
)
def test_the_base_model_is_told_from_the_keys(tmp_path: Path, keys: list[str], family: str) -> None:
    tensors = {f"{key}.lora_down.weight": torch.ones(1, 4) for key in keys}
    tensors |= {f"{key}.lora_up.weight": torch.ones(4, 1) for key in keys}
    save_file(tensors, tmp_path / "bare.safetensors")
    assert load_lora(tmp_path / "bare.safetensors")[1].family == family
    assert read_lora_info(tmp_path / "bare.safetensors").family == family


def test_as_a_command() -> None:
    result = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert all(command in result.stdout for command in ("inspect", "convert", "resize", "merge"))
