"""A1111's and Forge's modules in miniature: what the extension uses of them, and no name more.

Anything else is an AttributeError or an ImportError, as a misspelt name is in the real hosts.
`tests/hosts/webui/test_names.py` checks every name below against a real host.
"""

from __future__ import annotations

import sys
import threading
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

    def begin(self, *, job: str) -> None:
        self.job = job

    def end(self) -> None:
        self.job = ""


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
    "on_ui_tabs",
    "on_app_started",
)


class Runner:
    """Runs the scripts of a page, in its order; one for all generations, whose errors it only logs."""

    def __init__(self) -> None:
        self.scripts: list[Any] = []

    def postprocess_image_after_composite(self, p: Any, pp: Any) -> None:
        self._run("postprocess_image_after_composite", p, pp)

    def postprocess(self, p: Any, processed: Any) -> None:
        self._run("postprocess", p, processed)

    def _run(self, name: str, p: Any, given: Any) -> None:
        for script in self.scripts:
            try:
                getattr(script, name, lambda *_: None)(p, given)
            except Exception:
                sys.modules["modules.errors"].report(name)


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
        self.scripts = sys.modules["modules.scripts"].ScriptRunner()

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
            cors_allow_origins=None,
            cors_allow_origins_regex=None,
            api=True,
            nowebui=False,
            lora_dir=str(root / "models" / "Lora"),
            scdpo_folder=[],
            listen=False,
            share=False,
            ngrok=None,
            server_name=None,
            hide_ui_dir_config=False,
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
            data_path=str(root),
            models_path=str(root / "models"),
            default_output_dir=str(root / "outputs"),
        )
        module("modules.devices", device="cpu")
        module("modules.images")
        module("modules.processing")
        module("modules.call_queue", queue_lock=threading.Lock())
        module(
            "modules.sd_models",
            checkpoints_list={},
            model_data=SimpleNamespace(sd_model=None, lock=threading.Lock()),
            send_model_to_cpu=lambda model: host.log.append(f"{model} away"),
            send_model_to_device=lambda model: host.log.append(f"{model} back"),
            unload_model_weights=lambda: host.log.append("all away"),
        )
        host.grid = module("xyz_grid", AxisOption=AxisOption, axis_options=[AxisOption("Seed", int, None)])
        data = SimpleNamespace(path="/host/scripts/xyz_grid.py", module=host.grid)
        runner = type("ScriptRunner", (Runner,), {})
        module(
            "modules.scripts", Script=Script, AlwaysVisible=object(), scripts_data=[data], ScriptRunner=runner
        )

        def asked(name: str) -> Callable[[Any], None]:
            def ask(params: Any) -> None:
                for callback in host.callbacks[name]:
                    callback(params)

            return ask

        module(
            "modules.script_callbacks",
            **{name: host.callbacks.setdefault(name, []).append for name in CALLBACKS},
            before_image_saved_callback=asked("on_before_image_saved"),
            image_grid_callback=asked("on_image_grid"),
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


def draw(
    script: Any,
    p: Processing,
    image: Callable[[int], Image.Image],
    *values: Any,
    later: tuple[Any, ...] = (),
) -> Any:
    """Run a script's hooks in the order in which the hosts call them; return what they call 'processed'.

    Args:
        script: ours.
        later: other extensions' scripts, which run after it.
        p: the generation.
        image: makes the image of that number.
        values: of the script's controls.
    """
    state = sys.modules["modules.shared"].state
    state.interrupted = False
    p.scripts.scripts = [script, *later]
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
            passed = SimpleNamespace(image=image(number * p.batch_size + index))
            p.scripts.postprocess_image_after_composite(p, passed)
            images.append(passed.image)
            texts.append(infotext(p, index, p.prompts))
    processed = SimpleNamespace(images=images, infotexts=texts, index_of_first_image=0)
    p.scripts.postprocess(p, processed)
    return processed


def infotext(p: Processing, index: int, prompts: list[str], *, main: bool = False) -> dict[str, Any]:
    """An infotext's values as the hosts make them: functions are asked, with everything that is known."""
    known = {"p": p, "all_prompts": prompts, "index": index, "use_main_prompt": main, "steps": 2}
    made = {
        label: value(**known) if callable(value) else value
        for label, value in p.extra_generation_params.items()
    }
    return {label: value for label, value in made.items() if value is not None}
