"""What ComfyUI shows of the nodes: schemas, words, help, examples; judged by what real versions showed."""

from __future__ import annotations

import ast
import json
import logging
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageSequence

from scdpo_core.cost.scorers import load_scorer
from tests.support.comfy_contract import RECORDED, ROOT, Door, open_door, recorded_view, view

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VERSIONS = sorted(RECORDED)
NODE_IDS = list(RECORDED[VERSIONS[-1]]["nodes"])
LANGUAGES = ("en", "zh", "ja")
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """The pack as the newest recorded ComfyUI would have it, opened once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield open_door(VERSIONS[-1], tmp_path_factory.mktemp("comfyui"), monkeypatch)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_are_those_that_a_real_comfyui_showed(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = open_door(version, tmp_path, monkeypatch).nodes
    recorded = RECORDED[version]["nodes"]
    assert {name: view(node) for name, node in nodes.items()} == {
        name: recorded_view(info) for name, info in recorded.items()
    }


def test_a_newer_comfyui_gets_the_search_aliases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door = open_door(VERSIONS[0], tmp_path, monkeypatch, more_schema=("search_aliases",))
    for node in door.nodes.values():
        assert len(node.define_schema().search_aliases) >= 3
    assert "nsfw detector" in door.nodes["SCDPO_LoadCostModel"].define_schema().search_aliases


def test_no_node_is_filed_among_comfyuis_own() -> None:
    # Its page takes the essentials of a pack out of the pack's place in the node library.
    for recorded in RECORDED.values():
        assert not any(info.get("essentials_category") for info in recorded["nodes"].values())


def test_every_number_has_a_range_and_a_default_inside(door: Door) -> None:
    numbers = 0
    for node in door.nodes.values():
        for name, told in view(node)["inputs"].items():
            if told["kind"] in ("INT", "FLOAT"):
                numbers += 1
                assert told["min"] <= told["default"] <= told["max"], name
                assert told["kind"] == "INT" or told["step"] > 0
    assert numbers >= 10


def test_the_folder_for_cost_models_is_made_and_keeps_to_safetensors(door: Door) -> None:
    paths, endings = sys.modules["folder_paths"].folder_names_and_paths["safety_cost"]
    assert paths == [str(door.folder / "models" / "safety_cost")]
    assert endings == {".safetensors"}
    assert Path(paths[0]).is_dir()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_input_and_output_has_words_in_every_language(door: Door, language: str) -> None:
    words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    assert list(words) == list(door.nodes)
    for name, node in door.nodes.items():
        own, schema = words[name], view(node)
        assert list(own["inputs"]) == list(schema["inputs"])
        assert list(own["outputs"]) == [str(k) for k in range(len(schema["outputs"]))]
        texts = [own["display_name"], own["description"]]
        for entry in (*own["inputs"].values(), *own["outputs"].values()):
            assert entry.keys() == {"name", "tooltip"}
            texts += entry.values()
        assert all(texts)
        if language != "en":
            foreign = [text for text in texts if any(ord(letter) > 0x2FFF for letter in text)]
            # Some names are the same everywhere: CLIP, VAE, CFG.
            assert len(foreign) >= len(texts) - 5


@pytest.mark.parametrize("name", NODE_IDS)
def test_every_node_has_a_help_page_that_names_its_inputs(name: str) -> None:
    page = (ROOT / "comfy_nodes" / "web" / "docs" / f"{name}.md").read_text("utf-8")
    info = RECORDED[VERSIONS[-1]]["nodes"][name]
    assert page.startswith(f"# {info['display_name']}\n")
    assert len(page) > 300


@pytest.mark.parametrize("language", LANGUAGES[1:])
@pytest.mark.parametrize("name", NODE_IDS)
def test_every_help_page_says_the_same_in_other_languages(name: str, language: str) -> None:
    folder = ROOT / "comfy_nodes" / "web" / "docs"
    page, english = (
        place.read_text("utf-8") for place in (folder / name / f"{language}.md", folder / f"{name}.md")
    )
    words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    assert page.startswith(f"# {words[name]['display_name']}\n")
    # Each line of a table and of a block, and what is code or an input's name in any language.
    assert page.count("\n|") == english.count("\n|")
    assert page.count("\n    ") == english.count("\n    ")
    code = {part for part in re.findall(r"`([^`]+)`", english) if part != "output/safety_runs/NAME"}
    assert code <= set(re.findall(r"`([^`]+)`", page))
    bold = {part for part in re.findall(r"\*\*(\w+)\*\*", english) if "_" in part}
    assert bold <= set(re.findall(r"\*\*(\w+)\*\*", page))


def test_the_root_is_lazy_and_holds_nothing_else() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text("utf-8"))
    kinds = [type(part) for part in tree.body]
    assert kinds == [ast.Expr, ast.Assign, ast.AsyncFunctionDef]
    code = (
        "import importlib.util, sys; before = set(sys.modules);"
        f"spec = importlib.util.spec_from_file_location('pack', {str(ROOT / '__init__.py')!r});"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module);"
        "print(sorted(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_fails_at_loading_leaves_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(RECORDED[VERSIONS[-1]]["parts"]["Float"], "input", ["id"])
    with caplog.at_level(logging.ERROR), pytest.raises(TypeError):
        open_door(VERSIONS[-1], tmp_path, monkeypatch).nodes["SCDPO_LoadSafetyLora"].define_schema()
    monkeypatch.setitem(sys.modules, "comfy_api.latest", types.ModuleType("comfy_api.latest"))
    with caplog.at_level(logging.ERROR), pytest.raises(ImportError):
        _load_again(tmp_path, monkeypatch)
    assert "could not be loaded" in caplog.text and "Traceback" in caplog.text


def _load_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "again", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "again", module)
    spec.loader.exec_module(module)
    asyncio.run(module.comfy_entrypoint())


def test_what_the_registry_and_the_manager_read() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    comfy = project["tool"]["comfy"]
    assert comfy["DisplayName"] == "Safety (SC-DPO)"
    # Whoever publishes puts their own here; the registry's tool refuses an empty one.
    assert comfy["PublisherId"] == ""
    assert comfy["requires-comfyui"] == ">=0.3.48"
    for name in ("Icon", "Banner"):
        assert (ROOT / comfy[name]).is_file()
    with Image.open(ROOT / comfy["Banner"]) as banner:
        assert banner.width * 9 == banner.height * 21
    lines = (ROOT / "requirements.txt").read_text("utf-8").lower()
    # The embedded scorer's package depends on onnxruntime, which hosts have under other names.
    never = ("torch", "numpy", "pillow", "transformers", "diffusers", "onnxruntime", "yahoo")
    assert [name for name in never if any(line.startswith(name) for line in lines.splitlines())] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_example_workflows_fit_the_nodes(path: Path) -> None:
    workflow = json.loads(path.read_text("utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    known = RECORDED[VERSIONS[-1]]["nodes"]
    assert path.with_suffix(".jpg").is_file()
    assert any(node["type"] in known for node in nodes.values())
    for number, source, out, target, place, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][out]["links"]
        assert nodes[target]["inputs"][place]["link"] == number
        wanted = nodes[target]["inputs"][place]["type"]
        assert kind in wanted.split(",") or "*" in (kind, wanted)
    for node in nodes.values():
        if node["type"] not in known:
            continue
        info = known[node["type"]]
        inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
        widgets = [
            name
            for name, (kind, told) in inputs.items()
            if kind in ("INT", "FLOAT", "STRING", "COMBO", "BOOLEAN")
            for name in ([name, "control"] if told.get("control_after_generate") else [name])
        ]
        # What was saved before an input was added at the end has no value for it, and its default holds.
        missing = widgets[len(node["widgets_values"]) :]
        assert len(node["widgets_values"]) <= len(widgets)
        assert set(missing) <= info["input"].get("optional", {}).keys()
        assert [slot["type"] for slot in node["outputs"]] == info["output"]
        assert {slot["name"] for slot in node["inputs"]} <= inputs.keys()
    boxes = [(*node["pos"], *node["size"]) for node in nodes.values()]
    assert not any(_overlap(a, b) for k, a in enumerate(boxes) for b in boxes[:k])


@pytest.mark.parametrize("path", BLUEPRINTS, ids=[path.stem for path in BLUEPRINTS])
def test_blueprints_fit_the_nodes(path: Path) -> None:
    blueprint = json.loads(path.read_text("utf-8"))
    (outer,), (inner,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    # ComfyUI's node library shows a file's name, and searches in it and in the aliases.
    assert outer["type"] == inner["id"] and outer["title"] == inner["name"] == path.stem
    assert inner["category"] == "Safety (SC-DPO)" and len(inner["description"]) > 50
    assert blueprint["extra"]["BlueprintDescription"] == inner["description"]
    assert len(blueprint["extra"]["BlueprintSearchAliases"]) >= 3
    nodes = {node["id"]: node for node in inner["nodes"]}
    outside = {-10: inner["inputs"], -20: inner["outputs"]}
    for link in inner["links"]:
        start, end = link["origin_id"], link["target_id"]
        out = outside[start] if start in outside else nodes[start]["outputs"]
        into = outside[end] if end in outside else nodes[end]["inputs"]
        source, target = out[link["origin_slot"]], into[link["target_slot"]]
        assert link["id"] in (source["linkIds"] if start in outside else source["links"])
        assert link["id"] in target["linkIds"] if end in outside else target["link"] == link["id"]
        assert link["type"] == source["type"]
        assert link["type"] in target["type"].split(",") or "*" in (link["type"], target["type"])
    for slots, shown in ((inner["inputs"], outer["inputs"]), (inner["outputs"], outer["outputs"])):
        assert [(slot["name"], slot["type"]) for slot in slots] == [
            (slot["name"], slot["type"]) for slot in shown
        ]
    known = RECORDED[VERSIONS[-1]]["nodes"]
    for number, widget in outer["properties"]["proxyWidgets"]:
        node = nodes[int(number)]
        info = known.get(node["type"], {"input": {"required": {"filename_prefix": ["STRING", {}]}}})
        kinds = {**info["input"]["required"], **info["input"].get("optional", {})}
        assert kinds[widget][0] in ("INT", "FLOAT", "STRING", "COMBO")
        linked = [slot["name"] for slot in node["inputs"] if slot["link"]]
        # A value that comes in by wire could be typed in vain.
        assert widget not in linked
    for node in nodes.values():
        if info := known.get(node["type"]):
            assert [slot["type"] for slot in node["outputs"]] == info["output"]


def test_the_templates_are_found_by_a_search_for_safety_and_show_something_at_once(door: Door) -> None:
    # ComfyUI's page shows a file's name as the title, and searches in it alone.
    assert WORKFLOWS and all("safety" in path.stem.lower() for path in WORKFLOWS)
    gate = next(path for path in WORKFLOWS if "gate" in path.stem)
    parts = json.loads(gate.read_text("utf-8"))["nodes"]
    (shown,) = [part["widgets_values"][0] for part in parts if part["type"] == "LoadImage"]
    with Image.open(door.folder / "input" / shown) as opened:
        drawings = [frame.convert("RGB") for frame in ImageSequence.Iterator(opened)]
    costs = [score.value for score in load_scorer("micro").score(drawings)]
    assert len(costs) == 2 and costs[0] < 0 < costs[1]


@pytest.mark.parametrize("path", [*WORKFLOWS, *BLUEPRINTS], ids=lambda path: path.stem)
def test_what_ships_uses_no_node_that_comfyui_calls_deprecated(path: Path) -> None:
    workflow = json.loads(path.read_text("utf-8"))
    inner = [sub["nodes"] for sub in workflow.get("definitions", {}).get("subgraphs", ())]
    kinds = {node["type"] for nodes in (workflow["nodes"], *inner) for node in nodes}
    # Two images as one batch have a node in old versions, and another one in new ones.
    assert not kinds & {"ImageBatch", "BatchImagesNode"}


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    title = 30  # a node's title stands above its place
    apart = (
        a[0] + a[2] <= b[0]
        or b[0] + b[2] <= a[0]
        or a[1] + a[3] + title <= b[1]
        or b[1] + b[3] + title <= a[1]
    )
    return not apart
