"""Controls that several panes have: a model, a LoRA, prompt files, and the run that is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..prompt_files import has_examples
from ..ui_context import Desk
from .common import guarded, quick, said, ticker

PROMPT_FILES = [".csv", ".tsv", ".txt"]


def base_menu(desk: Desk, pane: str, label: str = "Model that draws") -> gr.Dropdown:
    """Offer the base models that the program knows."""
    return gr.Dropdown(
        label=label,
        choices=list(desk.bases()),
        value=desk.base(),
        allow_custom_value=True,
        min_width=260,
        elem_id=f"scdpo_{pane}_base",
    )


def lora_menu(desk: Desk, pane: str) -> gr.Dropdown:
    """Offer the LoRAs of finished runs and of the program."""
    return gr.Dropdown(
        label="LoRA",
        choices=list(desk.all_loras()),
        allow_custom_value=True,
        min_width=260,
        elem_id=f"scdpo_{pane}_lora",
    )


def prompt_files(pane: str, what: str) -> tuple[gr.Textbox, gr.Textbox]:
    """Take the names of files of harmful and of harmless prompts.

    Args:
        pane: that has them.
        what: may be named, such as 'files (.csv)'.
    """
    with gr.Row():
        return (
            gr.Textbox(
                label=f"Harmful prompts: {what}, one per line", lines=2, elem_id=f"scdpo_{pane}_prompts"
            ),
            gr.Textbox(label="Harmless prompts: likewise", lines=2, elem_id=f"scdpo_{pane}_benign"),
        )


def dropped_prompts(pane: str) -> gr.File:
    """Take files of harmful prompts that are dropped."""
    return gr.File(
        label="Drop files of harmful prompts here",
        file_count="multiple",
        file_types=PROMPT_FILES,
        elem_id=f"scdpo_{pane}_files",
    )


def number(pane: str, name: str, label: str, value: int) -> gr.Number:
    """Take a whole number."""
    return gr.Number(label=label, value=value, precision=0, elem_id=f"scdpo_{pane}_{name}")


def start_row(pane: str, label: str, example: bool = True) -> tuple[gr.Button, gr.Button]:
    """Offer to start, and to fill in the example that comes with the project."""
    with gr.Row():
        return (
            gr.Button(label, variant="primary", elem_id=f"scdpo_{pane}_start"),
            gr.Button(
                "Fill in an example",
                visible=example and has_examples(),
                elem_id=f"scdpo_{pane}_example",
            ),
        )


@dataclass(frozen=True)
class RunControls:
    """The run that is looked at.

    Attributes:
        message: one sentence on what was clicked last.
        which: the run.
        stop: stops it, what is done is saved.
        resume: goes on with it.
        status: how it stands.
        marks: what the page shows, see `common.changed`.
        tick: is clicked by the page every two seconds.
    """

    message: gr.HTML
    which: gr.Dropdown
    stop: gr.Button
    resume: gr.Button
    status: gr.HTML
    marks: gr.State
    tick: gr.Button


def run_controls(desk: Desk, pane: str, label: str) -> RunControls:
    """Show a run, and let it be stopped and resumed."""
    message = gr.HTML("", elem_id=f"scdpo_{pane}_message")
    which = gr.Dropdown(label=label, choices=[], allow_custom_value=True, elem_id=f"scdpo_{pane}_run")
    with gr.Row():
        stop = gr.Button("Stop and save", elem_id=f"scdpo_{pane}_stop")
        resume = gr.Button("Resume", elem_id=f"scdpo_{pane}_resume")
    status = gr.HTML("", elem_id=f"scdpo_{pane}_status")
    for button, act in ((stop, desk.jobs.stop), (resume, desk.jobs.resume)):
        quick(button, guarded(1)(lambda run, act=act: said(act(run or ""))), [which], [message])
    return RunControls(message, which, stop, resume, status, gr.State(None), ticker(pane))


def current(chosen: Any, names: list[str]) -> str:
    """The run to look at: the chosen one, or else the one that changed last; '' for none."""
    return chosen if chosen in names else names[0] if names else ""


def menu_update(update: Any, names: list[str], value: str | None = None) -> Any:
    """An update of a menu, where the piece that stands for its names has one in `common.changed`."""
    if update == gr.update():
        return update
    return gr.update(choices=names) if value is None else gr.update(choices=names, value=value or None)
