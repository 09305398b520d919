"""The controls, the settings page, the grid's axes, pasting, and the door itself, on the stub."""

from __future__ import annotations

import importlib
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from scdpo_core.types import ScdpoError
from tests.support.scoring_helpers import Redness
from tests.support.webui_stub import CALLBACKS, Host, Processing, draw, infotext, installed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with installed(tmp_path) as host:
        yield host


def ours(name: str) -> Any:
    return importlib.import_module(f"a1111_extension.{name}")


def test_the_door_registers_everything_and_shows_the_host_its_script(host: Host) -> None:
    namespace = runpy.run_path(str(ROOT / "scripts" / "scdpo.py"))
    assert {name: len(found) for name, found in host.callbacks.items()} == dict.fromkeys(CALLBACKS, 1)
    base = sys.modules["modules.scripts"].Script
    # The host takes every script class in the namespace for one of its scripts.
    classes = [
        name for name, value in namespace.items() if isinstance(value, type) and issubclass(value, base)
    ]
    assert classes == ["SafetyScript"]


def test_the_door_opens_fast_and_loads_no_scorer(host: Host) -> None:
    began = time.process_time()
    runpy.run_path(str(ROOT / "scripts" / "scdpo.py"))
    assert time.process_time() - began < 2
    assert ours("script").SCORER_CACHE._loaded is None


def test_settings_that_decide_what_is_read_are_not_for_the_api(host: Host) -> None:
    ours("settings").register()
    options = host.shared.opts.data_labels
    assert {name: option.restrict_api for name, option in options.items()} == dict.fromkeys(
        ("scdpo_cost_model", "scdpo_device", "scdpo_quarantine"), True
    )
    assert all(option.section == ("scdpo", "SC-DPO safety") for option in options.values())


def test_settings_mean_what_they_say(host: Host, tmp_path: Path) -> None:
    settings, opts = ours("settings"), host.shared.opts
    # Before the page was made, as in a host that just got the extension.
    assert settings.cost_model() == "embedded" and settings.device() == "cpu"
    settings.register()
    assert settings.quarantine() == tmp_path / "outputs" / "quarantine"
    opts.scdpo_quarantine = str(tmp_path / "away")
    assert settings.quarantine() == tmp_path / "away"
    sys.modules["modules.devices"].device = "cuda:0"
    assert settings.device() == "cpu"
    opts.scdpo_device = "graphics card"
    assert settings.device() == "cuda:0"


def test_own_cost_models_can_be_chosen(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "safety_cost"
    folder.mkdir(parents=True)
    (folder / "mine.safetensors").write_bytes(b"")
    settings = ours("settings")
    settings.register()
    choices = host.shared.opts.data_labels["scdpo_cost_model"].component_args()["choices"]
    assert choices[0] == "embedded" and choices[-1] == str(folder / "mine.safetensors")


def test_every_control_is_labelled_and_the_threshold_follows_its_word(host: Host) -> None:
    script = ours("script").SafetyScript()
    controls = script.ui(False)
    assert all(control.given.get("label") for control in controls)
    assert len({control.given["elem_id"] for control in controls}) == len(controls) == 7
    _, word, number, *_ = controls
    (to_number, inputs, output), (to_word, _, _) = word.listeners[0], number.listeners[0]
    assert inputs == [word, number] and output is number
    assert (to_number("strict", 0.5), to_number("my own number", 0.5)) == (-1.386, 0.5)
    assert [to_word(value) for value in (1.386, 0, 0.5, None)] == [
        "lenient",
        "normal",
        "my own number",
        "normal",
    ]


def test_a_pasted_infotext_restores_the_controls(host: Host) -> None:
    script = ours("script").SafetyScript()
    controls = script.ui(False)
    ours("script").SCORER_CACHE.get = lambda *_: Redness()
    p = Processing()
    draw(
        script, p, lambda number: Image.new("RGB", (8, 8), "red"), True, "my own number", 0.7, "blur", "black"
    )
    said = {**infotext(p, 0, p.prompts), "Safety LoRA": "calm", "Safety LoRA weight": "0.75"}
    assert pasted(script, said) == [True, "my own number", 0.7, "blur", "black", "calm", 0.75]
    assert [field[0] for field in script.infotext_fields] == controls
    assert pasted(script, {"Safety threshold": "strict (-1.39)"})[:3] == [True, "strict", -1.39]
    # An image that was not scored leaves everything as it is: pasting disarms nothing.
    assert pasted(script, {"Steps": "20"}) == [None] * 7


def pasted(script: Any, params: dict[str, str]) -> list[Any]:
    return [
        target(params) if callable(target) else params.get(target) for _, target in script.infotext_fields
    ]


def test_a_pasted_prompt_loses_the_safety_lora(host: Host) -> None:
    params = {"Prompt": "a cat <lora:calm:0.75>", "Hires prompt": "<lora:calm:0.75>", "Safety LoRA": "calm"}
    ours("script").without_our_tag("", params)
    assert (params["Prompt"], params["Hires prompt"]) == ("a cat", "")
    other = {"Prompt": "a cat <lora:calm:0.75>"}
    ours("script").without_our_tag("", other)
    assert other["Prompt"] == "a cat <lora:calm:0.75>"


def test_axes_are_added_once_and_move_the_controls(host: Host) -> None:
    ours("xyz_axes").add_axes()
    ours("xyz_axes").add_axes()
    options = {option.label: option for option in host.grid.axis_options}
    assert list(options) == ["Seed", "[Safety] On or off", "[Safety] Threshold", "[Safety] LoRA weight"]
    assert len(host.grid.axis_options) == 4
    p = Processing()
    options["[Safety] On or off"].apply(p, "on", [])
    options["[Safety] Threshold"].apply(p, "Strict", [])
    options["[Safety] LoRA weight"].apply(p, 0.5, [])
    parsed = ours("options").read((False, "normal", 0, "blur", "black", "calm", 1), p)
    assert (parsed.enabled, parsed.policy.threshold, parsed.lora, parsed.weight) == (
        True,
        -1.386,
        "calm",
        0.5,
    )
    options["[Safety] Threshold"].apply(p, "0.25", [])
    assert ours("options").read((), p).policy.threshold == 0.25


@pytest.mark.parametrize(
    ("label", "value", "sentence"),
    [("[Safety] On or off", "maybe", "on or off"), ("[Safety] Threshold", "harsh", "is a number")],
)
def test_an_axis_that_makes_no_sense_is_refused_at_once(
    host: Host, label: str, value: str, sentence: str
) -> None:
    ours("xyz_axes").add_axes()
    option = next(option for option in host.grid.axis_options if option.label == label)
    with pytest.raises(ScdpoError, match=sentence):
        option.confirm(Processing(), ["off" if "off" in label else "strict", value])


def test_the_scorer_is_loaded_once_and_again_when_its_file_changes(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, loaded = ours("scorer_cache"), []
    monkeypatch.setattr(shelf, "load_scorer", lambda spec, device: loaded.append((spec, device)) or Redness())
    held = shelf.ScorerCache()
    assert held.get("embedded", "cpu") is held.get("embedded", "cpu")
    file = tmp_path / "cost.safetensors"
    file.write_bytes(b"1")
    first = held.get(str(file), "cpu")
    assert held.get(str(file), "cpu") is first
    file.write_bytes(b"2")
    import os

    os.utime(file, ns=(1, 1))
    assert held.get(str(file), "cpu") is not first
    assert held.get(str(file), "cuda") is not first
    assert loaded == [("embedded", "cpu"), (str(file), "cpu"), (str(file), "cpu"), (str(file), "cuda")]


def test_scorers_are_made_outside_of_inference_mode(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    shelf = ours("scorer_cache")
    monkeypatch.setattr(shelf, "load_scorer", lambda *_: SimpleNamespace(weight=torch.ones(1)))
    with torch.inference_mode():
        assert not shelf.ScorerCache().get("embedded", "cpu").weight.is_inference()


def test_the_quarantine_is_not_served(host: Host, tmp_path: Path) -> None:
    host.shared.cmd_opts.api = False
    demo = SimpleNamespace(blocked_paths=[])
    ours("register")._started(demo, None)
    (blocked,) = demo.blocked_paths
    assert Path(blocked) == tmp_path / "outputs" / "quarantine"
    # Gradio looks each time, and the settings may change meanwhile.
    host.shared.opts.scdpo_quarantine = str(tmp_path / "outputs" / "elsewhere")
    assert Path(blocked) == tmp_path / "outputs" / "elsewhere"


def test_missing_packages_are_named_with_a_way_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    packages, script = ours("packages"), ours("script")
    assert packages.hint() == ""
    monkeypatch.setattr(packages, "find_spec", lambda module: None if module == "onnxruntime" else object())
    monkeypatch.setattr(script.SCORER_CACHE, "get", lambda *_: (_ for _ in ()).throw(ScdpoError("no scorer")))
    p = Processing()
    assert draw(script.SafetyScript(), p, lambda number: Image.new("RGB", (8, 8)), True).images == []
    sentence = infotext(p, 0, p.all_prompts)["Safety error"]
    assert "missing: onnxruntime." in sentence and "--skip-install" in sentence
    assert str(ROOT / "install.py") in sentence
    ours("register").register()
    assert any("onnxruntime" in line for line in host.log)
