"""The safety LoRA in the script: in every prompt of both passes, or nothing drawn and a sentence why."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from scdpo_core.lora.file import load_lora, save_lora, write_lora
from tests.support.scoring_helpers import Redness
from tests.support.webui_stub import Host, Processing, draw, infotext, installed


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with installed(tmp_path) as host:
        (tmp_path / "models" / "Lora").mkdir(parents=True)
        yield host


@pytest.fixture
def script(host: Host, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module("a1111_extension.script")
    monkeypatch.setattr(module.SCORER_CACHE, "get", lambda spec, device: Redness())
    return module.SafetyScript()


def blue(number: int) -> Image.Image:
    return Image.new("RGB", (64, 64), "blue")


def a_lora(path: Path, family: str = "sd1", **change: Any) -> Path:
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    width = {"sd1": 768, "sdxl": 2048, "micro": 64}[family]
    state = {f"{module}.down": torch.ones(2, width), f"{module}.up": torch.ones(320, 2)}
    state[f"{module}.alpha"] = torch.tensor(2.0)
    if family == "sdxl":
        state = {name.replace("down_blocks.0", "down_blocks.1"): value for name, value in state.items()}
    save_lora(path, state, family=family, rank=2, alpha=2.0, facts={})
    return path


def test_the_lora_is_in_every_prompt_of_both_passes_once(script: Any, host: Host) -> None:
    host.add_lora(a_lora(host.root / "models" / "Lora" / "calm.safetensors"))
    host.networks.loaded_networks.append(SimpleNamespace(name="calm"))
    p = Processing(batch_size=2, n_iter=2, enable_hr=True)
    p.all_prompts[0] = "a dog <lora:calm:1> running <lora:calmer:1>"
    processed = draw(script, p, blue, True, "normal", 0, "blur", "blur", "calm", 0.75)
    assert p.all_prompts[0] == "a dog running <lora:calmer:1> <lora:calm:0.75>"
    assert p.all_prompts[1:] == ["a cat <lora:calm:0.75>"] * 3
    assert p.all_hr_prompts == ["a cat <lora:calm:0.75>"] * 4
    assert p.main_prompt == "a cat <lora:calm:0.75>"
    text = processed.infotexts[0]
    assert (text["Safety LoRA"], text["Safety LoRA weight"]) == ("calm", "0.75")
    assert "Safety error" not in text


def stops_for_lora(script: Any, host: Host, name: str) -> str:
    p = Processing()
    processed = draw(script, p, blue, True, "normal", 0, "blur", "blur", name, 1)
    assert processed.images == [] and "<lora" not in p.all_prompts[0]
    return str(infotext(p, 0, p.all_prompts)["Safety error"])


def test_a_missing_lora_stops(script: Any, host: Host) -> None:
    assert "There is no LoRA 'calm' in" in stops_for_lora(script, host, "calm")
    gone = host.add_lora(host.root / "models" / "Lora" / "gone.safetensors")
    assert stops_for_lora(script, host, "gone") == f"There is no file {gone}."


def test_a_lora_of_another_family_stops(script: Any, host: Host) -> None:
    host.add_lora(a_lora(host.root / "models" / "Lora" / "big.safetensors", "sdxl"))
    assert "is for Stable Diffusion XL, but the checkpoint in use is Stable Diffusion 1" in stops_for_lora(
        script, host, "big"
    )
    host.add_lora(a_lora(host.root / "models" / "Lora" / "toy.safetensors", "micro"))
    assert "embedded model" in stops_for_lora(script, host, "toy")


def test_a_lora_with_names_that_the_host_ignores_stops(script: Any, host: Host) -> None:
    state, _ = load_lora(a_lora(host.root / "kohya.safetensors"))
    path = host.root / "models" / "Lora" / "peft.safetensors"
    write_lora(path, state, dialect="peft", family="sd1", metadata={})
    host.add_lora(path)
    sentence = stops_for_lora(script, host, "peft")
    assert "'unet.down_blocks" in sentence and "convert peft.safetensors --to kohya" in sentence


def test_a_lora_that_is_none_stops(script: Any, host: Host) -> None:
    path = host.root / "models" / "Lora" / "broken.safetensors"
    path.write_bytes(b"not a LoRA")
    host.add_lora(path)
    assert "damaged" in stops_for_lora(script, host, "broken")


def test_a_lora_where_loras_are_switched_off_stops(script: Any, host: Host) -> None:
    host.add_lora(a_lora(host.root / "models" / "Lora" / "calm.safetensors"))
    p = Processing(disable_extra_networks=True)
    assert draw(script, p, blue, True, *("normal", 0, "blur", "blur", "calm")).images == []
    assert "switched off" in infotext(p, 0, p.all_prompts)["Safety error"]


def test_a_lora_that_the_host_fails_to_load_hides_the_image(script: Any, host: Host) -> None:
    host.add_lora(a_lora(host.root / "models" / "Lora" / "calm.safetensors"))
    p = Processing()
    processed = draw(script, p, blue, True, "normal", 0, "blur", "blur", "calm")
    assert host.shared.state.interrupted
    assert "could not load the safety LoRA 'calm'" in processed.infotexts[0]["Safety error"]
    assert processed.images[0].tobytes() != blue(0).tobytes()
