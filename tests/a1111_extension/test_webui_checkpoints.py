"""Which base model a host's checkpoint is, and what is said of a LoRA that may not fit it."""

from __future__ import annotations

import importlib
import io
import runpy
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from scdpo_core.family_info import FAMILY_INFO
from scdpo_core.types import ScdpoError
from tests.a1111_extension.test_webui_lora import a_lora
from tests.support.scoring_helpers import Redness
from tests.support.webui_stub import Host, Processing, draw, infotext, installed

# Forge Neo 2.26: classes of `modules_forge.packages.huggingface_guess.model_list`, and their titles.
NEO = {
    "SD15": "Stable Diffusion 1.x",
    "SDXL": "Stable Diffusion XL",
    "Mugen": "Mugen",
    "SDXLRefiner": "the refiner of Stable Diffusion XL",
    "Flux": "FLUX.1",
    "FluxSchnell": "FLUX.1",
    "Flux2K4B": "FLUX.2 klein",
    "Flux2K9B": "FLUX.2 klein",
    "Chroma": "Chroma1",
    "Lumina2": "Lumina-Image 2.0",
    "ZImage": "Z-Image",
    "Anima": "Anima",
    "WAN21_T2V": "Wan",
    "WAN21_I2V": "Wan (image to video)",
    "QwenImage": "Qwen-Image",
    "Krea2": "Krea 2",
    "ErnieImage": "ERNIE-Image",
    "PiD": "PiD",
}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with installed(tmp_path) as host:
        (tmp_path / "models" / "Lora").mkdir(parents=True)
        yield host


def engine(name: str, **flags: Any) -> SimpleNamespace:
    """A loaded model of Forge or Forge Neo, which knows it by its class."""
    return SimpleNamespace(model_config=type(name, (), {})(), **flags)


@pytest.fixture
def checkpoint_of(host: Host) -> Any:
    return importlib.import_module("a1111_extension.checkpoints").checkpoint_of


@pytest.mark.parametrize(("name", "title"), NEO.items())
def test_every_model_that_neo_draws_with_has_a_name(checkpoint_of: Any, name: str, title: str) -> None:
    found = checkpoint_of(engine(name, is_sd1=False, is_sdxl=name in ("SDXL", "Mugen")))
    assert found.title == title
    ours = {base.title: family for family, base in FAMILY_INFO.items()}
    assert found.family == ours.get(title, "")


def test_a_model_that_only_resembles_one_of_ours_is_not_taken_for_it(checkpoint_of: Any) -> None:
    # Its flag says SDXL, and so does the class that it is made from.
    base = type("SDXL", (), {})
    newer = SimpleNamespace(model_config=type("Newer", (base,), {})(), is_sdxl=True)
    found = checkpoint_of(newer)
    assert (found.family, found.title, found.engine) == ("", "", "Newer")


def test_a1111_knows_models_by_flags(checkpoint_of: Any) -> None:
    flags = {"is_sd1": False, "is_sd2": False, "is_sdxl": False, "is_ssd": False, "is_sd3": False}
    for family in ("sd1", "sd2", "sdxl", "sd3"):
        assert checkpoint_of(SimpleNamespace(**flags | {f"is_{family}": True})).family == family
    ssd = checkpoint_of(SimpleNamespace(**flags | {"is_sdxl": True, "is_ssd": True}))
    assert (ssd.family, ssd.title) == ("", "SSD-1B")
    for nothing in (SimpleNamespace(**flags), SimpleNamespace(), None):
        assert checkpoint_of(nothing).title == ""


@pytest.fixture
def script(host: Host, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module("a1111_extension.script")
    monkeypatch.setattr(module.SCORER_CACHE, "get", lambda spec, device: Redness())
    return module.SafetyScript()


def with_lora(script: Any, host: Host, family: str = "sd1") -> tuple[Any, Processing]:
    """What is drawn with a LoRA of that family on the host's checkpoint."""
    host.add_lora(a_lora(host.root / "models" / "Lora" / "calm.safetensors", family))
    host.networks.loaded_networks[:] = [SimpleNamespace(name="calm")]
    p = Processing()
    blue = Image.new("RGB", (64, 64), "blue")
    return draw(script, p, lambda number: blue, True, "normal", 0, "blur", "blur", "calm", 1), p


@pytest.mark.parametrize("name", [name for name, title in NEO.items() if title != "Stable Diffusion 1.x"])
def test_a_lora_for_sd1_is_refused_on_every_other_model_of_neo(script: Any, host: Host, name: str) -> None:
    host.shared.sd_model = engine(name, is_sdxl=name == "SDXL")
    processed, p = with_lora(script, host)
    assert processed.images == []
    sentence = infotext(p, 0, p.all_prompts)["Safety error"]
    assert f"is for Stable Diffusion 1.x, but the checkpoint in use is {NEO[name]}." in sentence


def test_a_model_that_nobody_knows_is_told_and_the_image_drawn(script: Any, host: Host) -> None:
    host.shared.sd_model = engine("Tomorrow")
    processed, p = with_lora(script, host)
    assert len(processed.images) == 1 and "Safety error" not in processed.infotexts[0]
    (comment,) = p.comments
    assert "The base model of the checkpoint in use ('Tomorrow') is unknown" in comment
    assert "whether calm.safetensors fits" in comment


def test_a_lora_that_names_no_base_is_told(script: Any, host: Host) -> None:
    file = host.add_lora(host.root / "models" / "Lora" / "calm.safetensors")
    key = "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{key}.lora_down.weight": torch.ones(2, 4), f"{key}.lora_up.weight": torch.ones(4, 2)}, file)
    host.networks.loaded_networks[:] = [SimpleNamespace(name="calm")]
    p = Processing()
    blue = Image.new("RGB", (64, 64), "blue")
    processed = draw(script, p, lambda number: blue, True, "normal", 0, "blur", "blur", "calm", 1)
    assert len(processed.images) == 1
    (comment,) = p.comments
    assert "calm.safetensors does not name its base model" in comment
    assert "fits Stable Diffusion 1.x" in comment


def test_another_checkpoint_for_the_hires_pass_is_checked_too(script: Any, host: Host) -> None:
    p = Processing()
    host.add_lora(a_lora(host.root / "models" / "Lora" / "calm.safetensors"))
    host.networks.loaded_networks[:] = [SimpleNamespace(name="calm")]
    script.process(p, True, "normal", 0, "blur", "blur", "calm", 1)
    script.after_extra_networks_activate(p)
    assert not host.shared.state.interrupted
    host.shared.sd_model = engine("SDXL", is_sdxl=True)
    script.after_extra_networks_activate(p)
    assert host.shared.state.interrupted
    assert "the checkpoint in use is Stable Diffusion XL" in infotext(p, 0, p.all_prompts)["Safety error"]


def patcher(**held: Any) -> SimpleNamespace:
    return SimpleNamespace(model=SimpleNamespace(diffusion_model=SimpleNamespace()), **held)


def test_a_lora_of_which_the_host_took_nothing_stops(script: Any, host: Host) -> None:
    for unet, words, fine in (
        # Forge, by file; another LoRA's weights are none of ours.
        ({"lora_patches": {("FILE", 1.0, 1.0, False): {"a": []}}}, {"lora_patches": {}}, True),
        ({"lora_patches": {}}, {"lora_patches": {("FILE", 1.0, 1.0, False): {"a": []}}}, True),
        ({"lora_patches": {("FILE", 1.0, 1.0, False): {}}}, {"lora_patches": {}}, False),
        ({"lora_patches": {("other", 1.0, 1.0, False): {"a": []}}}, {"lora_patches": {}}, False),
        # Forge Neo, all together.
        ({"patches": {"a": []}}, {"patches": {}}, True),
        ({"patches": {}}, {"patches": {}}, False),
    ):
        file = host.root / "models" / "Lora" / "calm.safetensors"
        host.add_lora(a_lora(file))
        for held in (unet, words):
            if "lora_patches" in held:
                held["lora_patches"] = {
                    (str(file) if key[0] == "FILE" else key[0], *key[1:]): value
                    for key, value in held["lora_patches"].items()
                }
        model = engine("SD15")
        model.forge_objects_after_applying_lora = SimpleNamespace(
            unet=patcher(**unet), clip=SimpleNamespace(patcher=patcher(**words))
        )
        host.shared.sd_model = model
        on_disk = SimpleNamespace(filename=str(file))
        host.networks.loaded_networks[:] = [SimpleNamespace(name="calm", network_on_disk=on_disk)]
        p = Processing()
        script.process(p, True, "normal", 0, "blur", "blur", "calm", 1)
        host.shared.state.interrupted = False
        script.after_extra_networks_activate(p)
        assert host.shared.state.interrupted is not fine
        if not fine:
            assert "changes nothing" in infotext(p, 0, p.all_prompts)["Safety error"]


def test_a1111_shows_the_layers_that_it_found(script: Any, host: Host) -> None:
    host.add_lora(a_lora(host.root / "models" / "Lora" / "calm.safetensors"))
    for modules in ({}, {"layer": object()}):
        host.networks.loaded_networks[:] = [SimpleNamespace(name="calm", modules=modules)]
        p = Processing()
        host.shared.state.interrupted = False
        script.process(p, True, "normal", 0, "blur", "blur", "calm", 1)
        script.after_extra_networks_activate(p)
        assert host.shared.state.interrupted is not bool(modules)


def test_all_folders_of_loras_are_named(host: Host) -> None:
    module = importlib.import_module("a1111_extension.host")
    assert module.lora_folders() == [host.root / "models" / "Lora"]
    host.shared.cmd_opts.lora_dirs = [str(host.root / "more")]
    assert module.lora_folders() == [host.root / "models" / "Lora", host.root / "more"]
    with pytest.raises(ScdpoError, match=r"There is no LoRA 'gone' in .*Lora or .*more\. Put"):
        module.lora_file("gone")


def test_the_hosts_own_words_for_a_cards_version(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("a1111_extension.host")
    assert module.lora_versions() == []
    monkeypatch.setitem(sys.modules, "network", SimpleNamespace(SD_VERSION=["Unknown", "sd", "xl"]))
    assert module.lora_versions() == ["Unknown", "sd", "xl"]
    known = SimpleNamespace(__members__={"Unknown": 1, "SD1": 2})
    monkeypatch.setitem(sys.modules, "network", SimpleNamespace(SdVersion=known))
    assert module.lora_versions() == ["Unknown", "SD1"]


def load(host: Host) -> tuple[dict[str, Any], str, str]:
    """What the host finds in our script once it has run it, and what went to stdout and stderr."""
    script = Path(__file__).resolve().parents[2] / "scripts" / "scdpo.py"
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        found = runpy.run_path(str(script))
    return found, out.getvalue(), err.getvalue()


def test_a_host_with_all_hooks_gets_the_script(host: Host) -> None:
    found, out, err = load(host)
    assert found["SafetyScript"].__name__ == "SafetyScript" and (out, err) == ("", "")
    assert host.callbacks["on_app_started"]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("modules.scripts", "ScriptRunner"),
        ("modules.script_callbacks", "image_grid_callback"),
        ("modules.script_callbacks", "before_image_saved_callback"),
    ],
)
def test_sdnext_and_its_like_get_one_clear_sentence_and_nothing_else(
    host: Host, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    # SD.Next has a runner, but none that knows of finished images.
    if name == "ScriptRunner":
        monkeypatch.setattr(sys.modules[module], name, type(name, (), {"postprocess": None}))
    else:
        monkeypatch.delattr(sys.modules[module], name)
    found, out, err = load(host)
    assert out.count("\n") == 1 and err == "" and host.log == []
    assert "not supported" in out and "images would go unscored" in out and "Forge Neo" in out
    assert "SafetyScript" not in found and not any(host.callbacks.values())
