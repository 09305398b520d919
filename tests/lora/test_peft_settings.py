"""LoRAs that peft and diffusers save, at the strength that they were trained at; peft is the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scdpo_core.lora.file import changed_at, load_lora, read_lora_info, write_lora
from scdpo_core.lora.formats.peft_settings import FILE, METADATA, PeftSettings
from scdpo_core.lora.weights import by_module, delta
from scdpo_core.types import ScdpoError

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
TARGETS = ["to_q", "to_k", "conv1"]


def unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=768,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def change(layer: Any) -> Tensor:
    """What peft adds to a layer's weight, before a DoRA's rescaling."""
    return next(iter(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)).detach().float()


CONFIGS = {
    "alpha is rank": LoraConfig(r=4, lora_alpha=4),
    "alpha above": LoraConfig(r=4, lora_alpha=8),
    "alpha below": LoraConfig(r=8, lora_alpha=2),
    "rslora": LoraConfig(r=16, lora_alpha=16, use_rslora=True),  # 16 / sqrt(16) = 4
    "dora": LoraConfig(r=4, lora_alpha=2, use_dora=True),
    "patterns": LoraConfig(
        r=8, lora_alpha=8, alpha_pattern={"attn1.to_q": 2, "conv1": 1}, rank_pattern={"attn1.to_q": 4}
    ),
    "anchored": LoraConfig(r=8, lora_alpha=8, alpha_pattern={f"^{ATTENTION}": 2, "^attn1.to_k": 64}),
    "loha": LoHaConfig(r=4, alpha=2),
    "loha, kernels": LoHaConfig(r=4, alpha=2, use_effective_conv2d=True),
    "lokr": LoKrConfig(r=2, alpha=1, decompose_factor=4),
    "lokr of full factors": LoKrConfig(r=64, alpha=16, decompose_factor=4),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_peft_folder_has_the_strength_that_peft_gives_it(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    config.target_modules = set(TARGETS)
    network = get_peft_model(unet(), config)
    with torch.no_grad():
        for key, weight in network.named_parameters():
            if "lora_" in key or "hada_" in key or "lokr_" in key:
                weight.normal_(0, 0.1)
    network.save_pretrained(str(tmp_path))
    for place in (tmp_path, tmp_path / "adapter_model.safetensors"):
        state, file = load_lora(place)
        assert (file.path, list(file.notes)) == (tmp_path / "adapter_model.safetensors", [])
        assert read_lora_info(place).notes == ()
        for module in (ATTENTION, OTHER, CONVOLUTION):
            expected = change(network.base_model.model.get_submodule(module))
            found = delta(by_module(state)[module])
            torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["alpha above", "rslora", "patterns"])
def test_what_diffusers_saves_has_the_strength_that_diffusers_gives_it(name: str, tmp_path: Path) -> None:
    network = unet()
    config = CONFIGS[name]
    config.target_modules = set(TARGETS)
    config.init_lora_weights = False
    network.add_adapter(config)
    StableDiffusionPipeline.save_lora_weights(
        str(tmp_path),
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(network)),
        unet_lora_adapter_metadata=network.peft_config["default"].to_dict(),
    )
    state, file = load_lora(tmp_path)
    assert not file.notes
    for module in (ATTENTION, CONVOLUTION):
        torch.testing.assert_close(
            delta(by_module(state)[module]),
            change(network.get_submodule(module)),
            rtol=1e-4,
            atol=1e-6,
        )


def bare(folder: Path, rank: int = 4, metadata: dict[str, str] | None = None) -> Path:
    """A file of peft's names that says nothing of its alpha."""
    path = folder / "adapter_model.safetensors"
    stem = f"base_model.model.{ATTENTION}"
    weights = {f"{stem}.lora_A.weight": torch.ones(rank, 6), f"{stem}.lora_B.weight": torch.ones(8, rank)}
    save_file(weights, path, metadata)
    return path


def alpha_of(path: Path) -> float:
    return float(load_lora(path)[0][f"{ATTENTION}.alpha"])


def test_where_nothing_says_alpha_that_is_said(tmp_path: Path) -> None:
    path = bare(tmp_path)
    for read in (lambda p: load_lora(p)[1], read_lora_info):
        (note,) = read(path).notes
        assert note.startswith("Nothing says its alpha") and FILE in note
    assert alpha_of(path) == 4


def test_settings_of_another_lora_are_left_alone_and_that_is_said(tmp_path: Path) -> None:
    path = bare(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 64}))
    assert alpha_of(path) == 4
    assert "another LoRA's: its ranks are not those of this file" in load_lora(path)[1].notes[0]
    (tmp_path / FILE).write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 64}))
    assert alpha_of(path) == 64 and not load_lora(path)[1].notes


def test_settings_beside_several_loras_are_only_those_of_the_file_of_pefts_name(tmp_path: Path) -> None:
    path = bare(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({"r": 4, "lora_alpha": 64}))
    renamed = path.rename(tmp_path / "mine.safetensors")
    assert alpha_of(renamed) == 64
    path = bare(tmp_path)
    assert (alpha_of(path), alpha_of(renamed)) == (64, 4)
    assert "lies beside several LoRAs" in load_lora(renamed)[1].notes[0]


def test_a_change_of_the_settings_counts_as_a_change_of_the_lora(tmp_path: Path) -> None:
    path = bare(tmp_path)
    before = changed_at(path)
    (tmp_path / FILE).write_text("{}")
    assert before != changed_at(path)


def test_a_files_own_metadata_comes_before_what_lies_beside_it(tmp_path: Path) -> None:
    path = bare(tmp_path, metadata={METADATA: json.dumps({"unet.lora_alpha": 2, "unet.r": 4})})
    (tmp_path / FILE).write_text(json.dumps({"r": 4, "lora_alpha": 64}))
    assert alpha_of(path) == 2


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "null", '{"r": 4}', '{"lora_alpha": "much", "r": 4}', '{"lora_alpha": NaN, "r": 4}',
        '{"lora_alpha": true, "r": 4}', '{"lora_alpha": 1, "r": 0}',
        '{"lora_alpha": 1' + "0" * 400 + ', "r": 4}',
        "[" * 100_000, '{"lora_alpha": 4, "r": {}}',
    ],
)  # fmt: skip
def test_settings_that_say_nothing_are_told(tmp_path: Path, text: str) -> None:
    path = bare(tmp_path)
    (tmp_path / FILE).write_text(text)
    file = load_lora(path)[1]
    assert alpha_of(path) == 4
    assert FILE in file.notes[0] and file.notes[1].startswith("Nothing says its alpha")
    path = bare(tmp_path, metadata={METADATA: text} if text else None)
    (tmp_path / FILE).unlink()
    assert alpha_of(path) == 4 and load_lora(path)[1].notes


def test_settings_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    path = bare(tmp_path)
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}
    for odd, message in (
        ({"peft_type": "IA3"}, "says that it is a IA3"),
        ({"init_lora_weights": "pissa_niter_16"}, "changes the base model too"),
        ({"alpha_pattern": {"(a|a)*(a|a)*b": 2}}, "by the pattern .* which is not read here"),
        ({"rank_pattern": {"(.*)+x": 2}}, "Write the modules' names"),
    ):
        (tmp_path / FILE).write_text(json.dumps(plain | odd))
        with pytest.raises(ScdpoError, match=message):
            load_lora(path)
    (tmp_path / FILE).write_text(json.dumps(plain | {"init_lora_weights": "gaussian"}))
    assert alpha_of(path) == 4


def test_our_own_peft_files_have_their_alpha_in_the_weights(tmp_path: Path) -> None:
    """Settings of another LoRA in the same folder do not change them."""
    state = {f"{ATTENTION}.down": torch.ones(4, 6), f"{ATTENTION}.up": torch.ones(8, 4)}
    for alpha in (4.0, 1.0, 3.0):
        own = {**state, f"{ATTENTION}.alpha": torch.tensor(alpha)}
        path = tmp_path / "mine.safetensors"
        write_lora(path, own, dialect="peft", family="", metadata={})
        (tmp_path / FILE).write_text(json.dumps({"r": 4, "lora_alpha": 64}))
        back, file = load_lora(path)
        assert not file.notes
        torch.testing.assert_close(delta(by_module(back)[ATTENTION]), torch.full((8, 6), alpha))


def test_kohyas_files_without_an_alpha_need_no_settings(tmp_path: Path) -> None:
    stem = "lora_unet_" + ATTENTION.replace(".", "_")
    path = tmp_path / "kohya.safetensors"
    weights = {f"{stem}.lora_down.weight": torch.ones(4, 6), f"{stem}.lora_up.weight": torch.ones(8, 4)}
    save_file(weights, path)
    (tmp_path / FILE).write_text(json.dumps({"r": 4, "lora_alpha": 64}))
    assert alpha_of(path) == 4 and not load_lora(path)[1].notes


def test_a_folder_with_several_loras_is_explained(tmp_path: Path) -> None:
    one = bare(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file(load_file(one), tmp_path / name)
    assert load_lora(tmp_path)[1].path == one
    one.unlink()
    with pytest.raises(ScdpoError, match=r"a folder with 2 \.safetensors files"):
        load_lora(tmp_path)


def test_patterns_match_as_pefts_do() -> None:
    values = {
        "r": 4,
        "lora_alpha": 1,
        "alpha_pattern": {"to_q": 2, "attn1.to_q": 3, "^attn2\\.to_k": 4, "attn2.to_v$": 5},
    }
    settings = PeftSettings("x", values)
    alphas = {
        path: scale.alpha
        for path in ("a.attn1.to_q", "a.auto_q", "attn2.to_k", "a.attn2.to_k", "a.attn2.to_v", "to_q.a")
        if (scale := settings.scale("", path)) is not None
    }
    assert list(alphas.values()) == [2, 1, 4, 1, 5, 1]
