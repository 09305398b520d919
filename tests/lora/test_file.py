"""A LoRA's file: round trips, what hosts read in it, and diffusers as a judge of its keys."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from scdpo_core.io.files import read_tensors
from scdpo_core.lora.adapter import attach, attach_file, load_into
from scdpo_core.lora.file import load_lora, read_lora_info, save_lora
from tests.support.tiny import tiny_pipeline, tiny_unet
from tests.support.trained_lora import answer, save, to_kohya, to_peft, trained, unet_of


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A file with a LoRA on attention, and what the network answers with it."""
    unet = unet_of()
    adapter = trained(unet)
    path = tmp_path_factory.mktemp("lora") / "calm.safetensors"
    save(path, adapter, description="Draws calm images.", notes="No trigger word.", preferred_weight=0.8)
    return path, answer(unet)


def test_a_saved_lora_answers_the_same_in_a_fresh_model(example: tuple[Path, Tensor]) -> None:
    path, expected = example
    unet = unet_of()
    base = answer(unet)
    adapter = attach(unet, rank=4, alpha=99.0, targets="attention", seed=7)
    info = load_into(adapter, path)
    assert (info.family, info.rank, info.keys) == ("sd1", 4, 3 * 56)
    assert torch.equal(answer(unet), expected)
    with adapter.scale(0):
        assert torch.equal(answer(unet), base)
    assert not torch.equal(base, expected)


def test_a_file_says_which_modules_it_needs(example: tuple[Path, Tensor]) -> None:
    path, expected = example
    unet = unet_of()
    adapter, info = attach_file(unet, path)
    assert (adapter.rank, adapter.alpha, len(adapter.modules)) == (4, 2.0, 56)
    assert info == read_lora_info(path)
    assert torch.equal(answer(unet), expected)


def test_metadata_and_card(example: tuple[Path, Tensor]) -> None:
    path, _ = example
    tensors, metadata = read_tensors(path)
    whole = path.read_bytes()
    digest = hashlib.sha256(whole[8 + int.from_bytes(whole[:8], "little") :]).hexdigest()
    assert metadata == {
        "ss_output_name": "calm",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_learning_rate": "0.001",
        "sshs_model_hash": digest,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "calm",
        "modelspec.description": "Draws calm images.",
        "modelspec.hash_sha256": f"0x{digest}",
        "scdpo_family": "sd1",
        "scdpo_objective": "sc_dpo",
        "scdpo_cost_model_hash": "0123456789ab",
        "scdpo_evaluation": '{"benign_accuracy": 0.9, "harmful_rate": 0.05}',
    }
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == {
        "description": "Draws calm images.",
        "sd version": "SD1",
        "activation text": "",
        "preferred weight": 0.8,
        "notes": "No trigger word.",
    }
    assert all(key.startswith("lora_unet_") for key in tensors)
    alphas = {tensor.dtype for key, tensor in tensors.items() if key.endswith(".alpha")}
    weights = {tensor.dtype for key, tensor in tensors.items() if not key.endswith(".alpha")}
    assert (alphas, weights) == ({torch.float32}, {torch.float16})


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    adapter = trained(unet_of())
    image = Image.new("RGB", (8, 8), "teal")
    for folder in ("a", "b"):
        save(tmp_path / folder / "calm.safetensors", adapter, preview=image, date="2026-01-02T03:04:05")
    names = ["calm.json", "calm.png", "calm.safetensors"]
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    info = read_lora_info(tmp_path / "a" / "calm.safetensors")
    assert info.metadata["modelspec.date"] == "2026-01-02T03:04:05"
    with Image.open(tmp_path / "a" / "calm.png") as preview:
        assert (preview.format, preview.size) == ("PNG", (8, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "calm.safetensors"
    adapter = trained(unet_of())
    save(path, adapter, dtype=dtype)
    state, _ = load_lora(path)
    assert {weight.dtype for name, weight in state.items() if not name.endswith(".alpha")} == {dtype}
    for name, weight in adapter.state().items():
        assert_close(state[name].float(), weight, rtol=0 if dtype == torch.float32 else 2**-7, atol=0)


@pytest.mark.parametrize("targets", ["attention", "attention+ff", "all-linear"])
def test_diffusers_reads_our_file_and_draws_the_same(tmp_path: Path, targets: str) -> None:
    pipeline: StableDiffusionPipeline = tiny_pipeline(tmp_path / "tokenizer")
    pipeline.unet.eval()
    own = tiny_unet().eval()
    own.load_state_dict(pipeline.unet.state_dict())
    base = answer(own)
    save(tmp_path / "calm.safetensors", trained(own, targets, rank=4, alpha=2.0))
    expected = answer(own)

    pipeline.load_lora_weights(str(tmp_path), weight_name="calm.safetensors", local_files_only=True)
    assert (expected - base).abs().max() > 1e-2
    assert_close(answer(pipeline.unet), expected, rtol=1e-5, atol=1e-5)
    pipeline.unload_lora_weights()
    assert torch.equal(answer(pipeline.unet), base)


def test_we_read_what_diffusers_writes(tmp_path: Path) -> None:
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = unet_of()
    unet.add_adapter(LoraConfig(r=4, lora_alpha=12, target_modules=["to_q", "to_v"], init_lora_weights=False))
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    alpha = {"unet.r": 4, "unet.lora_alpha": 12}
    StableDiffusionPipeline.save_lora_weights(
        str(tmp_path), unet_lora_layers=weights, unet_lora_adapter_metadata={"r": 4, "lora_alpha": 12}
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert json.loads(read_lora_info(path).metadata["lora_adapter_metadata"]) == alpha

    fresh = unet_of()
    adapter, _ = attach_file(fresh, path)
    assert adapter.alpha == 12.0
    assert_close(answer(fresh), answer(unet), rtol=1e-5, atol=1e-5)


def test_every_dialect_answers_the_same(tmp_path: Path, example: tuple[Path, Tensor]) -> None:
    path, expected = example
    state, _ = load_lora(path)
    peft = tmp_path / "peft.safetensors"
    save_file({to_peft(name): weight for name, weight in state.items()}, peft)
    unet = unet_of()
    attach_file(unet, peft)
    assert torch.equal(answer(unet), expected)


def test_without_alpha_it_is_the_rank(tmp_path: Path, example: tuple[Path, Tensor]) -> None:
    state, _ = load_lora(example[0])
    path = tmp_path / "bare.safetensors"
    save_file({to_kohya(name): w for name, w in state.items() if not name.endswith("alpha")}, path)
    bare, info = load_lora(path)
    assert {float(weight) for name, weight in bare.items() if name.endswith("alpha")} == {4.0}
    assert (info.family, info.rank, info.keys) == ("", 4, 2 * 56)


def test_text_encoder_weights_survive(tmp_path: Path) -> None:
    module = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    state = {
        f"{module}.down": torch.ones(2, 6),
        f"{module}.up": torch.ones(6, 2),
        f"{module}.alpha": torch.tensor(2.0),
    }
    path = tmp_path / "words.safetensors"
    save_lora(path, state, family="sd1", rank=2, alpha=2.0, facts={})
    assert set(load_lora(path)[0]) == set(state)
    assert all(key.startswith("lora_te_text_model") for key in read_tensors(path)[0])


def test_the_embedded_models_loras_are_not_offered_for_sd1(tmp_path: Path) -> None:
    info = save(tmp_path / "calm.safetensors", trained(unet_of()), family="micro")
    assert read_lora_info(info.path).family == "micro"
    assert json.loads((tmp_path / "calm.json").read_text(encoding="utf-8"))["sd version"] == "Unknown"


def test_old_hosts_can_import_file_and_keys(tmp_path: Path) -> None:
    # What a host lacks must not be needed, directly or by way of a package's __init__; and ComfyUI
    # loads its nodes under a name of its own, so the package must not look for itself by name.
    package = Path(__file__).resolve().parents[2] / "scdpo_core"
    code = f"""
import importlib, importlib.util, sys
for name in ("peft", "diffusers", "transformers", "accelerate", "tomli_w", "tyro", "scdpo_core"):
    sys.modules[name] = None
root = {str(package)!r}
init = root + "/__init__.py"
spec = importlib.util.spec_from_file_location("nodes", init, submodule_search_locations=[root])
sys.modules["nodes"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["nodes"])
for name in ("lora.file", "lora.formats.keys", "objectives"):
    importlib.import_module("nodes." + name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
