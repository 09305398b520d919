"""Controls of several panes: model, LoRA, prompt files, and the selected run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from scdpo_core.panels.run import status
from scdpo_core.run_store.folder import Kind

from ..prompt_files import has_examples
from ..ui_context import UiContext
from .common import changed, guarded, panel_text, quick, ticker

PROMPT_FILES = [".csv", ".tsv", ".txt"]


def base_menu(ui: UiContext, pane: str, label: str = "Model that draws") -> gr.Dropdown:
    """Offer the base models that the program knows."""
    return gr.Dropdown(
        label=label,
        choices=list(ui.bases()),
        value=ui.base(),
        allow_custom_value=True,
        min_width=260,
        elem_id=f"scdpo_{pane}_base",
    )


def lora_menu(ui: UiContext, pane: str) -> gr.Dropdown:
    """Offer the LoRAs of finished runs and of the program."""
    return gr.Dropdown(
        label="LoRA",
        choices=list(ui.all_loras()),
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
            gr.Textbox(label="Harmless prompts, in the same form", lines=2, elem_id=f"scdpo_{pane}_benign"),
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
    """The controls of the selected run.

    Attributes:
        message: result of the last click, a sentence.
        which: menu of runs.
        stop: saves and stops it.
        resume: continues it.
        status: its state.
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


def run_controls(ui: UiContext, pane: str, label: str) -> RunControls:
    """Show a run, and let it be stopped and resumed."""
    message = gr.HTML("", elem_id=f"scdpo_{pane}_message")
    which = gr.Dropdown(label=label, choices=[], allow_custom_value=True, elem_id=f"scdpo_{pane}_run")
    with gr.Row():
        stop = gr.Button("Stop and save", elem_id=f"scdpo_{pane}_stop")
        resume = gr.Button("Resume", elem_id=f"scdpo_{pane}_resume")
    status = gr.HTML("", elem_id=f"scdpo_{pane}_status")
    for button, act in ((stop, ui.jobs.stop), (resume, ui.jobs.resume)):
        quick(button, guarded(1)(lambda run, act=act: panel_text(act(run or ""))), [which], [message])
    return RunControls(message, which, stop, resume, status, gr.State(None), ticker(pane))


def refresh_on_tick(
    ui: UiContext,
    run: RunControls,
    kind: Kind,
    result: gr.HTML,
    show: Callable[[Path], str],
    lora: gr.Dropdown | None = None,
) -> None:
    """Refresh a run's status and result, and the menus, at every tick.

    Args:
        ui: the page's context.
        run: the pane's controls.
        kind: of the runs in the menu.
        result: where the result is shown.
        show: makes the result's HTML from the run folder; '' while there is none.
        lora: the pane's menu of LoRAs, if it has one.
    """
    outputs = [run.status, result, run.which, *([] if lora is None else [lora]), run.marks]

    def refresh(chosen: Any, old: Any) -> list[Any]:
        names = ui.jobs.names(kind)
        loras = [] if lora is None else [list(ui.all_loras())]
        name = current(chosen, names)
        pieces = ["", ""]
        if name:
            folder = ui.jobs.folder(name)
            pieces = [status(ui.jobs.view(name), unit="images"), show(folder)]
        updates, new = changed(old, [*pieces, "|".join([name, *names]), *map("|".join, loras)])
        menus = [menu_update(updates[2], names, name)]
        menus += [menu_update(update, each) for update, each in zip(updates[3:], loras, strict=True)]
        return [*updates[:2], *menus, new]

    quick(run.tick, guarded(len(outputs), 0)(refresh), [run.which, run.marks], outputs)


def current(chosen: Any, names: list[str]) -> str:
    """Return the selected run, else the most recently changed one; '' for none."""
    return chosen if chosen in names else names[0] if names else ""


def menu_update(update: Any, names: list[str], value: str | None = None) -> Any:
    """Update a menu if `common.changed` found its names changed."""
    if update == gr.update():
        return update
    return gr.update(choices=names) if value is None else gr.update(choices=names, value=value or None)
