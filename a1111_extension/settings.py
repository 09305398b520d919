"""The settings page, and what its settings mean."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from modules import shared

from scdpo_core.cost.scorers import offered_scorers

from . import host

MODEL, DEVICE = "scdpo_cost_model", "scdpo_device"
QUARANTINE = "scdpo_quarantine"
_SECTION = ("scdpo", "SC-DPO safety")
_DEFAULT_MODEL = "embedded"
_PROCESSOR, _GRAPHICS = "processor", "graphics card"


def register() -> None:
    """Add the page; the host calls this when it makes its settings."""
    # A1111's API cannot change these; Forge's can, as it can change where all images go.
    _add(
        MODEL,
        _DEFAULT_MODEL,
        "Cost model that scores images",
        gr.Dropdown,
        lambda: {"choices": cost_models()},
        f"'embedded' knows sexual content, photos and drawings; yours lie in {host.cost_models_folder()}",
    )
    _add(
        DEVICE,
        _PROCESSOR,
        "Where the cost model runs",
        gr.Radio,
        lambda: {"choices": [_PROCESSOR, _GRAPHICS]},
        "on the processor it takes no graphics memory",
    )
    _add(
        QUARANTINE,
        "",
        "Quarantine folder for originals that are hidden",
        gr.Textbox,
        None,
        f"empty: {_default_quarantine()}; it is never served to a browser",
    )


def cost_models() -> list[str]:
    """List the possible cost models: names of scorers, and files in their folder."""
    return [*offered_scorers(), *(str(file) for file in host.cost_model_files())]


def cost_model() -> str:
    """Return the cost model in use."""
    return host.option(MODEL) or _DEFAULT_MODEL


def device() -> str:
    """Return the cost model's device."""
    return host.device() if host.option(DEVICE) == _GRAPHICS else "cpu"


def quarantine() -> Path:
    """Return the folder for hidden originals."""
    return Path(host.option(QUARANTINE) or _default_quarantine()).expanduser()


def _default_quarantine() -> Path:
    return host.output_folder() / "quarantine"


def _add(name: str, value: str, label: str, component: object, arguments: object, about: str) -> None:
    option = shared.OptionInfo(
        value, label, component, arguments, section=_SECTION, refresh=_nothing, restrict_api=True
    )
    if component is not gr.Dropdown:
        option.refresh = None
    shared.opts.add_option(name, option.info(about))


def _nothing() -> None:
    """Do nothing: the choices are recomputed at every request."""
