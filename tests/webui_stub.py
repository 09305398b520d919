"""A1111's and Forge's modules in miniature: what the extension uses of them, and no name more.

Anything else is an AttributeError or an ImportError, as a misspelt name is in the real hosts.
`tests/hosts/webui/test_names.py` checks every name below against a real host.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

OURS = "a1111_extension"


class Script:
    """The base class of scripts."""

    infotext_fields: Any = None
    paste_field_names: Any = None

    def elem_id(self, item_id: str) -> str:
        return f"script_{item_id}"


class OptionInfo:
    """A setting."""

    def __init__(
        self,
        default: Any,
        label: str,
        component: Any,
        component_args: Any,
        *,
        section: tuple[str, str],
        refresh: Any,
        restrict_api: bool,
    ) -> None:
        self.default, self.label, self.section = default, label, section
        self.component, self.component_args = component, component_args
        self.refresh, self.restrict_api = refresh, restrict_api

    def info(self, info: str) -> OptionInfo:
        self.about = info
        return self


class Options:
    """The settings."""

    def __init__(self) -> None:
        self.data_labels: dict[str, OptionInfo] = {}

    def add_option(self, key: str, info: OptionInfo) -> None:
        self.data_labels[key] = info
        if not hasattr(self, key):
            setattr(self, key, info.default)


class State:
    """What the host is doing."""

    def __init__(self) -> None:
        self.interrupted = False
        self.current_image: Any = None

    def assign_current_image(self, image: Any) -> None:
        self.current_image = image


class AxisOption:
    """An axis of the X/Y/Z plot."""

    def __init__(
        self, label: str, type: Any, apply: Any, *, confirm: Any = None, choices: Any = None
    ) -> None:
        self.label, self.type, self.apply, self.confirm, self.choices = label, type, apply, confirm, choices


class PasteField(tuple):
    """A control and the infotext's label, or a function of its values."""

    def __new__(cls, component: Any, target: Any) -> PasteField:
        return super().__new__(cls, (component, target))


class Control:
    """Any of gradio's components; knows what it was made with."""

    def __init__(self, value: Any = None, **given: Any) -> None:
        self.value, self.given = value, given
        self.listeners: list[tuple[Any, ...]] = []

    def input(self, function: Any, inputs: Any, outputs: Any, *, show_progress: bool) -> None:
        self.listeners.append((function, inputs, outputs))

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        return None


CALLBACKS = (
    "on_ui_settings",
    "on_before_ui",
    "on_before_image_saved",
    "on_image_grid",
    "on_infotext_pasted",
    "on_app_started",
)


@dataclass
class Host:
    """The stub, and what was asked of it.

    Attributes:
        root: its data folder.
        callbacks: what was registered, by the registering function's name.
        log: sentences that went to its log.
        networks: the LoRA extension's module.
        shared: its module of that name.
        grid: the X/Y/Z plot's module.
    """

    root: Path
    callbacks: dict[str, list[Callable[..., Any]]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    networks: Any = None
    shared: Any = None
    grid: Any = None

    def add_lora(self, path: Path) -> Path:
        self.networks.available_networks[path.stem] = SimpleNamespace(filename=str(path))
        return path


@dataclass
class Processing:
    """One generation: the attributes that both hosts' processing objects have when `process` is called."""

    batch_size: int = 1
    n_iter: int = 1
    enable_hr: bool = False
    width: int = 64
    height: int = 64
    disable_extra_networks: bool = False

    def __post_init__(self) -> None:
        total = self.batch_size * self.n_iter
        self.main_prompt = "a cat"
        self.all_prompts = ["a cat"] * total
        self.all_hr_prompts = ["a cat"] * total if self.enable_hr else None
        self.extra_generation_params: dict[str, Any] = {}
        self.comments: dict[str, int] = {}
        self.prompts: list[str] = []
        self.seeds: list[int] = []
        self.iteration = self.batch_index = 0

    def comment(self, text: str) -> None:
        self.comments[text] = 1


@contextmanager
def installed(root: Path) -> Iterator[Host]:
    """The stub in `sys.modules`, with our package loaded anew on it."""
    host = Host(root)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name == OURS or name.startswith(f"{OURS}.")]:
            patch.delitem(sys.modules, name)

        def module(name: str, **names: Any) -> ModuleType:
            made = ModuleType(name)
            vars(made).update(names)
            patch.setitem(sys.modules, name, made)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, made)
            return made

        module("modules", __path__=[])
        options, state = Options(), State()
        flags = SimpleNamespace(
            api_auth=None,
            api=True,
            nowebui=False,
            lora_dir=str(root / "models" / "Lora"),
            scdpo_folder=[],
        )
        model = SimpleNamespace(is_sd1=True, is_sd2=False, is_sdxl=False)
        host.shared = module(
            "modules.shared",
            opts=options,
            state=state,
            cmd_opts=flags,
            sd_model=model,
            OptionInfo=OptionInfo,
        )
        module("modules.errors", report=lambda message, *, exc_info=False: host.log.append(message))
        module(
            "modules.paths_internal",
            models_path=str(root / "models"),
            default_output_dir=str(root / "outputs"),
        )
        module("modules.devices", device="cpu")
        host.grid = module("xyz_grid", AxisOption=AxisOption, axis_options=[AxisOption("Seed", int, None)])
        data = SimpleNamespace(path="/host/scripts/xyz_grid.py", module=host.grid)
        module("modules.scripts", Script=Script, AlwaysVisible=object(), scripts_data=[data])
        module(
            "modules.script_callbacks",
            **{name: host.callbacks.setdefault(name, []).append for name in CALLBACKS},
        )
        module("modules.infotext_utils", PasteField=PasteField)
        module("modules.ui_components", InputAccordion=Control)
        module("modules.ui_common", create_refresh_button=lambda *given: Control())
        kinds = ("Row", "Markdown", "Radio", "Number", "Dropdown", "Slider", "Textbox")
        module("gradio", **{kind: type(kind, (Control,), {}) for kind in kinds})
        host.networks = module(
            "networks", available_networks={}, loaded_networks=[], list_available_networks=lambda: None
        )
        yield host
        for name in [name for name in sys.modules if name == OURS or name.startswith(f"{OURS}.")]:
            patch.delitem(sys.modules, name)


def draw(script: Any, p: Processing, picture: Callable[[int], Image.Image], *values: Any) -> Any:
    """Run a script's hooks in the order in which the hosts call them; return what they call 'processed'.

    Args:
        script: ours.
        p: the generation.
        picture: makes the picture of that number.
        values: of the script's controls.
    """
    state = sys.modules["modules.shared"].state
    state.interrupted = False
    script.process(p, *values)
    images, texts = [], []
    for number in range(p.n_iter):
        p.iteration = number
        if state.interrupted:
            break
        part = slice(number * p.batch_size, (number + 1) * p.batch_size)
        p.prompts = p.all_prompts[part]
        p.seeds = [*range(100, 100 + p.batch_size * p.n_iter)][part]
        script.after_extra_networks_activate(p, *values, batch_number=number)
        for index in range(p.batch_size):
            p.batch_index = index
            passed = SimpleNamespace(image=picture(number * p.batch_size + index))
            script.postprocess_image_after_composite(p, passed, *values)
            images.append(passed.image)
            texts.append(infotext(p, index, p.prompts))
    processed = SimpleNamespace(images=images, infotexts=texts, index_of_first_image=0)
    script.postprocess(p, processed, *values)
    return processed


def infotext(p: Processing, index: int, prompts: list[str], *, main: bool = False) -> dict[str, Any]:
    """An infotext's values as the hosts make them: functions are asked, with everything that is known."""
    known = {"p": p, "all_prompts": prompts, "index": index, "use_main_prompt": main, "steps": 2}
    made = {
        label: value(**known) if callable(value) else value
        for label, value in p.extra_generation_params.items()
    }
    return {label: value for label, value in made.items() if value is not None}
