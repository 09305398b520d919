"""Whether a gate is in the path of its images, told from the prompts that ComfyUI gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.comfy_contract import RECORDED, Door, open_door

OUTPUTS = {
    "VAEDecode": (False, ("IMAGE",)),
    "ImageScale": (False, ("IMAGE",)),
    "GetImageSize": (False, ("INT", "INT", "INT")),
    "VAEEncode": (False, ("LATENT",)),
    "KSampler": (False, ("LATENT",)),
    "SaveImage": (True, ()),
    "PreviewImage": (True, ("IMAGE",)),
    "SCDPO_ScoreSafetyCost": (True, ("IMAGE", "SAFETY_SCORES")),
    "SCDPO_SafetyGate": (True, ("IMAGE", "IMAGE", "BOOLEAN")),
    "SCDPO_SafetySwitch": (False, ("*",)),
    "SCDPO_MakePreferencePairs": (True, ("STRING",)),
}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield open_door(sorted(RECORDED)[-1], tmp_path_factory.mktemp("comfyui"), monkeypatch)


def part(kind: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, **({"_meta": {"title": title}} if title else {})}


def graph(**more: dict[str, Any]) -> dict[str, Any]:
    """An image, and a gate "g" that judges it."""
    return {"v": part("VAEDecode"), "g": part("SCDPO_SafetyGate", images=["v", 0], judge=["s", 1]), **more}


def found(door: Door, prompt: dict[str, Any]) -> dict[str, list[str]]:
    wiring = door.module("comfy_nodes.wiring")

    def kind_of(name: str) -> Any:
        return wiring.NodeKind(*OUTPUTS.get(name, (False, ())))

    return wiring.bypasses(prompt, kind_of)  # type: ignore[no-any-return]


SAVE_BEHIND = part("SaveImage", images=["g", 0])
SAVE_BESIDE = part("SaveImage", images=["v", 0])


@pytest.mark.parametrize(
    ("prompt", "past"),
    [
        (graph(), []),
        (graph(a=SAVE_BEHIND), []),
        (graph(a=SAVE_BESIDE), ["a"]),
        (graph(a=SAVE_BEHIND, b=SAVE_BESIDE), ["b"]),
        # What it has held back is asked for by name.
        (graph(a=part("SaveImage", images=["g", 1])), []),
        # The score passes images on untouched; before it, behind it, and a save at either place.
        (
            graph(s=part("SCDPO_ScoreSafetyCost", images=["v", 0]), a=part("SaveImage", images=["s", 0])),
            ["a"],
        ),
        (
            {
                **graph(s=part("SCDPO_ScoreSafetyCost", images=["v", 0]), a=SAVE_BESIDE),
                "g": part("SCDPO_SafetyGate", images=["s", 0], judge=["s", 1]),
            },
            ["a"],
        ),
        # A changed image is still that image; its size, or one that is drawn from it anew, is not.
        (graph(u=part("ImageScale", image=["v", 0]), a=part("SaveImage", images=["u", 0])), ["a"]),
        (graph(u=part("ImageScale", image=["v", 0]), h=part("SCDPO_SafetyGate", images=["u", 0])), []),
        (graph(n=part("GetImageSize", image=["v", 0]), a=part("SaveImage", images=["n", 0])), []),
        (
            graph(
                e=part("VAEEncode", pixels=["v", 0]),
                k=part("KSampler", latent_image=["e", 0]),
                a=part("SaveImage", images=["k", 0]),
            ),
            [],
        ),
        # Harmful images are what pairs are made of.
        (graph(a=part("SCDPO_MakePreferencePairs", images=["v", 0])), []),
        # A switch that this gate sets takes its safe side only when nothing was held.
        (
            graph(
                w=part("SCDPO_SafetySwitch", any_held=["g", 2], if_safe=["v", 0]),
                a=part("SaveImage", images=["w", 0]),
            ),
            [],
        ),
        (
            graph(
                w=part("SCDPO_SafetySwitch", any_held=True, if_safe=["v", 0]),
                a=part("SaveImage", images=["w", 0]),
            ),
            ["a"],
        ),
        # A preview shows, and hands on what it was given.
        (graph(p=part("PreviewImage", images=["v", 0]), a=part("SaveImage", images=["p", 0])), ["p", "a"]),
    ],
)
def test_what_saves_or_shows_images_past_a_gate_is_found(
    door: Door, prompt: dict[str, Any], past: list[str]
) -> None:
    assert found(door, prompt)["g"] == past


def test_a_gate_in_a_subgraph_sees_what_is_outside(door: Door) -> None:
    # ComfyUI's page takes subgraphs apart before it asks for a run.
    prompt = {"v": part("VAEDecode"), "12:7": part("SCDPO_SafetyGate", images=["v", 0]), "a": SAVE_BESIDE}
    assert found(door, prompt) == {"12:7": ["a"]}


def test_the_gate_is_told_at_every_run_and_the_prompt_stays_as_it_is(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    wiring = door.module("comfy_nodes.wiring")
    monkeypatch.setattr(wiring, "_kind_of", lambda name: wiring.NodeKind(*OUTPUTS.get(name, (False, ()))))
    (handler,) = door.server.handlers
    wrong = {"prompt": graph(a=part("SaveImage", title="My\nsaves", images=["v", 0])), "client_id": "browser"}
    # Only the save is asked for; the gate does not run, and says so all the same.
    assert handler({**wrong, "partial_execution_targets": ["a"]})["prompt"] is wrong["prompt"]
    assert door.server.wiring["g"] == (
        "Not gated: My saves (a) gets these images from before this gate. "
        "Connect the gate's images output to it."
    )
    many = {f"{k}": SAVE_BESIDE for k in range(5)}
    handler({"prompt": graph(**many), "client_id": "browser"})
    assert door.server.wiring["g"].startswith(
        "Not gated: SaveImage (0), SaveImage (1), SaveImage (2) and 2 more get these"
    )
    handler({"prompt": graph(a=SAVE_BEHIND), "client_id": "browser"})
    assert door.server.wiring["g"] == ""


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from("abc")
inputs = st.dictionaries(
    st.sampled_from(["images", "any_held", "x"]), anything | st.tuples(names, st.integers(0, 2)).map(list)
)
parts = st.fixed_dictionaries({"class_type": st.sampled_from([*OUTPUTS, "?"]) | anything, "inputs": inputs})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.dictionaries(names, parts | anything, max_size=3))
def test_no_prompt_of_whatever_form_stops_the_look_at_it(door: Door, prompt: Any) -> None:
    # Loops, links to nowhere, and what is no node: ComfyUI itself refuses those later, in its own words.
    for users in found(door, prompt).values():
        assert len(users) == len(set(users))
