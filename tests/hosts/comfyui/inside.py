"""Measurements inside a ComfyUI process, without its server; run by ComfyUI's own Python.

python tests/hosts/comfyui/inside.py COMFYUI_DIR start     seconds of processor time to load the unused pack
python tests/hosts/comfyui/inside.py COMFYUI_DIR gate      seconds of the scorer, a gate, one that holds all
python tests/hosts/comfyui/inside.py COMFYUI_DIR record    the API and our nodes' schemas, as JSON
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PARTS = ("Image", "Mask", "Float", "Int", "Boolean", "String", "Combo", "Model", "Clip", "Vae", "Latent")
PARTS += ("Conditioning", "AnyType", "MultiType")


class Server:
    """What the pack asks of ComfyUI's server."""

    client_id = None

    def send_sync(self, event: str, data: Any, sid: str | None) -> None: ...

    def add_on_prompt_handler(self, handler: Any) -> None: ...


def ready(comfyui: Path) -> None:
    """Everything that ComfyUI itself has loaded before it comes to packs."""
    sys.path.insert(0, str(comfyui))
    sys.argv = sys.argv[:1]
    # First, for ComfyUI later puts another module of that name on the path.
    for module in ("utils.install_util", "comfy.cli_args"):
        importlib.import_module(module)
    sys.modules["comfy.cli_args"].args.cpu = True  # type: ignore[attr-defined]
    for module in ("server", "comfy.hooks", "comfy.samplers", "comfy_api.latest", "execution", "nodes"):
        importlib.import_module(module)
    sys.modules["server"].PromptServer.instance = Server()  # type: ignore[attr-defined]


def load() -> Any:
    """The pack, by a name like ComfyUI's own for it; its module `comfy_nodes` and its nodes."""
    name = "/somewhere/custom_nodes/scdpo"
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    for node in nodes:
        node.GET_SCHEMA()
    return nodes


def start() -> dict[str, float]:
    before = time.process_time()
    load()
    return {"seconds": time.process_time() - before}


def gate() -> dict[str, float]:
    import torch

    nodes = {node.__name__: node for node in load()}
    # Colour by colour in memory, as VAE Decode hands them over.
    images = torch.rand(4, 3, 1024, 1024, generator=torch.Generator().manual_seed(1)).movedim(1, -1)
    (scorer,) = nodes["LoadCostModel"].execute("embedded", "cpu").args
    convert = sys.modules["/somewhere/custom_nodes/scdpo.comfy_nodes.convert"]
    pil_images = convert.to_pil_images(images)

    def gated(threshold: float) -> None:
        nodes["SafetyGate"].execute(images, scorer, "blur", "above the threshold", threshold)

    steps = {
        "scorer": lambda: scorer.score(pil_images),
        "gate": lambda: gated(20.0),
        "holding": lambda: gated(-20.0),
    }
    clocks = {"": time.perf_counter, " (processor)": time.process_time}
    taken: dict[str, list[float]] = {name + clock: [] for name in steps for clock in clocks}
    with torch.inference_mode():
        # In turns, for other programs on the machine slow some turns down; the best of each is its own.
        for _ in range(15):
            for name, step in steps.items():
                began = {clock: tell() for clock, tell in clocks.items()}
                step()
                for clock, tell in clocks.items():
                    taken[name + clock].append(tell() - began[clock])
    best = {name: min(times) for name, times in taken.items()}
    ratios = {
        f"{name} ratio{clock}": best[name + clock] / best[f"scorer{clock}"]
        for name in ("gate", "holding")
        for clock in clocks
    }
    return {**best, **ratios}


def record() -> dict[str, Any]:
    import comfy.samplers
    import folder_paths
    from comfy_api.latest import io
    from comfyui_version import __version__

    # Whatever models and images lie about.
    folder_paths.get_filename_list = lambda folder: []
    folder_paths.get_folder_paths = lambda folder: []
    # The pack puts an example into the input folder when it is opened.
    empty = tempfile.mkdtemp()
    folder_paths.get_input_directory = folder_paths.get_output_directory = lambda: empty

    def taken(kind: Any, what: str) -> list[str]:
        return [name for name in inspect.signature(getattr(kind, what).__init__).parameters if name != "self"]

    parts = {}
    for name in PARTS:
        kind = getattr(io, name)
        parts[name] = {"type": str(kind.io_type), "input": taken(kind, "Input")}
        if name not in ("MultiType", "Combo"):
            parts[name]["output"] = taken(kind, "Output")
    custom = io.Custom("X")
    parts["Custom"] = {"type": "", "input": taken(custom, "Input"), "output": taken(custom, "Output")}
    return {
        "version": __version__,
        "parts": parts,
        "schema": list(io.Schema.__dataclass_fields__),
        "hidden": {entry.name: entry.value for entry in io.Hidden},
        "samplers": comfy.samplers.KSampler.SAMPLERS,
        "schedulers": comfy.samplers.KSampler.SCHEDULERS,
        "nodes": {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in load()},
    }


def keep(found: dict[str, Any], file: Path) -> None:
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    text = json.dumps({**known, found["version"]: found}, indent=1, ensure_ascii=False)
    file.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    command, files = sys.argv[2], sys.argv[3:]
    ready(Path(sys.argv[1]).resolve())
    result = {"start": start, "gate": gate, "record": record}[command]()
    if files:
        keep(result, Path(files[0]))
    else:
        print(json.dumps(result))
