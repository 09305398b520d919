"""ComfyUI's modules as far as our nodes use them, built from what was recorded of real versions.

`tests/hosts/comfyui/inside.py COMFYUI_DIR record tests/data/comfyui_api.json` records. A class takes what the
recorded one took; any other argument or name raises, as it would there.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import types
from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

ROOT = Path(__file__).resolve().parents[2]
RECORDED: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "comfyui_api.json").read_text("utf-8"))


class Part:
    """An input or output of a node."""

    takes: tuple[str, ...] = ()
    io_type = ""

    def __init__(self, *given: Any, **named: Any) -> None:
        told = dict(zip(self.takes, given, strict=False)) | named
        unknown = set(told) - set(self.takes)
        if unknown:
            raise TypeError(f"{self.io_type} takes no {sorted(unknown)}")
        self.told = told
        self.id: str = told.get("id", "")
        self.tooltip: str | None = told.get("tooltip")
        self.display_name: str | None = told.get("display_name")
        self.optional: bool = told.get("optional", False)

    @property
    def kind(self) -> str:
        kinds = self.told.get("types")
        return self.io_type if kinds is None else ",".join(kind.io_type for kind in kinds)


def _parts(kind: str, recorded: dict[str, list[str]]) -> Any:
    made = {"io_type": kind}
    for what in ("input", "output"):
        if what in recorded:
            name = what.capitalize()
            made[name] = type(name, (Part,), {"takes": tuple(recorded[what]), "io_type": kind})
    return type(kind, (), made)


class ExecutionBlocker:
    def __init__(self, message: str | None) -> None:
        self.message = message


@dataclass
class Server:
    """What the pack asks of ComfyUI's server, and what the user does there.

    Attributes:
        texts: node -> text.
        previews: live ones.
        freed: what was freed of the memory.
        interrupted: whether the user has interrupted, and nobody has heard it.
        wiring: gate -> what its page shows as wrong with its wiring.
        handlers: see each prompt that comes in.
    """

    texts: dict[str, str] = field(default_factory=dict)
    previews: list[Any] = field(default_factory=list)
    freed: list[str] = field(default_factory=list)
    interrupted: bool = False
    wiring: dict[str, str] = field(default_factory=dict)
    handlers: list[Any] = field(default_factory=list)

    client_id: str | None = "browser"

    def send_sync(self, event: str, data: dict[str, Any], sid: str | None) -> None:
        assert sid == "browser"
        {"scdpo.text": self.texts, "scdpo.wiring": self.wiring}[event][data["node"]] = data["text"]

    def add_on_prompt_handler(self, handler: Any) -> None:
        self.handlers.append(handler)


class SaveImage:
    """ComfyUI's own, as far as it saves files: one text for all images of a run."""

    folder = Path()

    def save_images(self, images: Any, filename_prefix: str = "x", extra_pnginfo: Any = None) -> Any:
        saved = []
        for number, image in enumerate(images):
            levels = np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8)
            metadata = PngInfo()
            for name, value in (extra_pnginfo or {}).items():
                metadata.add_text(name, json.dumps(value))
            file = f"{filename_prefix}_{number:05}_.png"
            Image.fromarray(levels).save(self.folder / file, pnginfo=metadata)
            saved.append({"filename": file, "subfolder": "", "type": "output"})
        return {"ui": {"images": saved}, "result": (images,)}


@dataclass
class Door:
    """The pack, opened by an imitated ComfyUI.

    Attributes:
        nodes: the classes by their ids.
        server: what the pack told the server.
        folder: holds `models`, `temp`.
        name: of the pack's root module.
    """

    nodes: dict[str, Any]
    server: Server
    folder: Path
    name: str

    def module(self, path: str) -> Any:
        return importlib.import_module(f"{self.name}.{path}")


def open_door(
    version: str, folder: Path, monkeypatch: pytest.MonkeyPatch, more_schema: tuple[str, ...] = ()
) -> Door:
    """Load the pack as ComfyUI does, by a name that is a path."""
    recorded = RECORDED[version]
    server = Server()
    for name, module in _modules(recorded, folder, server, more_schema).items():
        monkeypatch.setitem(sys.modules, name, module)
    name = str(folder / "custom_nodes" / "scdpo").replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    root = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, root)
    spec.loader.exec_module(root)
    extension = asyncio.run(root.comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    return Door({node.define_schema().node_id: node for node in nodes}, server, folder, name)


def view(node: Any) -> dict[str, Any]:
    """A node's schema in the terms in which `recorded_view` has the recorded one."""
    schema = node.define_schema()
    options = ("default", "min", "max", "step", "options", "lazy", "control_after_generate")
    return {
        "title": schema.display_name,
        "about": schema.description,
        "category": schema.category,
        "output_node": bool(schema.is_output_node),
        "inputs": {
            part.id: {
                "kind": part.kind,
                "optional": part.optional,
                "tooltip": part.tooltip,
                **{name: part.told[name] for name in options if name in part.told},
            }
            for part in schema.inputs
        },
        "outputs": [
            [part.kind, part.display_name, part.tooltip, bool(part.told.get("is_output_list"))]
            for part in schema.outputs
        ],
        "hidden": sorted({entry.name for entry in schema.hidden or []} | _given(schema)),
    }


def _given(schema: Any) -> set[str]:
    """What ComfyUI gives to every output node, asked or not."""
    return {"prompt", "extra_pnginfo"} if schema.is_output_node else set()


def recorded_view(info: dict[str, Any]) -> dict[str, Any]:
    options = ("default", "min", "max", "step", "options", "lazy", "control_after_generate")
    inputs = {}
    for group in ("required", "optional"):
        for name, (kind, told) in info["input"].get(group, {}).items():
            inputs[name] = {
                "kind": kind,
                "optional": group == "optional",
                "tooltip": told.get("tooltip"),
                **{option: told[option] for option in options if option in told},
            }
    columns = (info["output"], info["output_name"], info["output_tooltips"], info["output_is_list"])
    return {
        "title": info["display_name"],
        "about": info["description"],
        "category": info["category"],
        "output_node": info["output_node"],
        "inputs": inputs,
        "outputs": [list(column) for column in zip(*columns, strict=True)],
        "hidden": sorted(info["input"].get("hidden", {})),
    }


def _modules(
    recorded: dict[str, Any], folder: Path, server: Server, more_schema: tuple[str, ...]
) -> dict[str, types.ModuleType]:
    io = types.SimpleNamespace()
    for name, part in recorded["parts"].items():
        if name == "Custom":
            io.Custom = lambda kind, part=part: _parts(kind, part)
        else:
            setattr(io, name, _parts(part["type"], part))
    io.Hidden = Enum("Hidden", recorded["hidden"], type=str)  # type: ignore[misc]
    names = [*recorded["schema"], *more_schema]
    io.Schema = make_dataclass("Schema", [(name, Any, field(default=None)) for name in names])

    @dataclass(init=False)
    class NodeOutput:
        def __init__(self, *args: Any, ui: Any = None) -> None:
            self.args, self.ui = args, ui

    io.NodeOutput = NodeOutput
    io.ComfyNode = type("ComfyNode", (), {"hidden": None})

    class InterruptProcessingException(Exception):  # noqa: N818 - its name there
        """As ComfyUI raises it: once for each interrupt."""

    def throw() -> None:
        if server.interrupted:
            server.interrupted = False
            raise InterruptProcessingException

    class ProgressBar:
        def __init__(self, total: int) -> None: ...

        def update(self, count: int) -> None: ...

        def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
            throw()
            if preview is not None:
                server.previews.append(preview)

    models = folder / "models"
    (folder / "output").mkdir(exist_ok=True)
    # A class of its own with its own method, for the pack changes it.
    own_save = {"folder": folder / "output", "save_images": SaveImage.save_images}

    def listed(name: str) -> list[str]:
        where = models / name
        return sorted(path.name for path in where.glob("*.safetensors")) if where.is_dir() else []

    def full_path(name: str, file: str) -> str | None:
        return str(models / name / file) if (models / name / file).is_file() else None

    def needed(name: str, file: str) -> str:
        found = full_path(name, file)
        if found is None:
            raise FileNotFoundError(file)
        return found

    def module(name: str, **content: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        vars(made).update(content)
        return made

    sampler = types.SimpleNamespace(SAMPLERS=recorded["samplers"], SCHEDULERS=recorded["schedulers"])
    management = module(
        "comfy.model_management",
        get_torch_device=lambda: "cpu",
        throw_exception_if_processing_interrupted=throw,
        processing_interrupted=lambda: server.interrupted,
        InterruptProcessingException=InterruptProcessingException,
        unload_all_models=lambda: server.freed.append("models"),
        soft_empty_cache=lambda: server.freed.append("cache"),
    )
    utils = module("comfy.utils", ProgressBar=ProgressBar)
    samplers = module("comfy.samplers", KSampler=sampler)
    lora, hooks = module("comfy.lora"), module("comfy.hooks")
    wrappers = types.SimpleNamespace(OUTER_SAMPLE="outer_sample")
    made = [
        module("comfy_api.latest", io=io, ComfyExtension=object),
        module("server", PromptServer=types.SimpleNamespace(instance=server)),
        module(
            "folder_paths",
            models_dir=str(models),
            folder_names_and_paths={},
            get_filename_list=listed,
            get_full_path=full_path,
            get_full_path_or_raise=needed,
            get_directory_by_type=lambda kind: str(folder / kind),
            get_temp_directory=lambda: str(folder / "temp"),
            get_input_directory=lambda: str(folder / "input"),
            get_output_directory=lambda: str(folder / "output"),
            get_folder_paths=lambda name: [str(models / name)],
            filename_list_cache={},
        ),
        module("comfy_execution.graph_utils", ExecutionBlocker=ExecutionBlocker),
        module("comfy_execution"),
        module("comfy_api"),
        module("nodes", NODE_CLASS_MAPPINGS={"SaveImage": type("SaveImage", (SaveImage,), own_save)}),
        module("comfy.cli_args", args=types.SimpleNamespace(disable_metadata=False)),
        management,
        utils,
        samplers,
        lora,
        hooks,
        module("comfy.patcher_extension", WrappersMP=wrappers),
        module("comfy", model_management=management, utils=utils, samplers=samplers, lora=lora, hooks=hooks),
    ]
    return {part.__name__: part for part in made}
