"""The pane that trains: settings, the queue, and the run that is looked at."""

from __future__ import annotations

from typing import Any

import gradio as gr

from scdpo_core.panels import run as panel
from scdpo_core.runs.benchmark import speed
from scdpo_core.runs.estimate import estimate, in_words
from scdpo_core.runs.jobs import LoraJob
from scdpo_core.runs.objectives import DEFAULT_LABEL, LABELS, objective_choice, offered
from scdpo_core.types import ScdpoError

from ..path_policy import listed_cost_model
from ..prompt_files import PREFERENCES
from ..ui_context import UiContext
from .common import changed, guarded, panel_text, quick
from .controls import base_menu, current, menu_update, run_controls, start_row

NO_COSTS = "none"
_EXAMPLE = "[optim]\nmax_train_steps = 400\nlr = 1e-4\n\n[terms]\nkeep_benign = 10.0"
_ABOUT = """**Step 4: train.** Your pairs become a safety LoRA. You need a preference folder, from *Make* or
*Preferences*, and the model that the LoRA is for. Next: *Compare* shows what it changes. Training continues
if you close this page or the program; image generation is paused while it runs."""


def build(ui: UiContext) -> None:
    """Make the pane."""
    gr.Markdown(_ABOUT)
    with gr.Row():
        base = base_menu(ui, "train", "Model to train for")
        pairs = gr.Textbox(label="Preference folder", value=str(ui.preferences), elem_id="scdpo_train_pairs")
        name = gr.Textbox(label="Name of the LoRA", value="my_safety_lora", elem_id="scdpo_train_name")
    quality = gr.Radio(
        label="Quality", choices=["fast", "normal", "best"], value="normal", elem_id="scdpo_train_quality"
    )
    objective = gr.Radio(
        label="Training objective", choices=list(LABELS), value=DEFAULT_LABEL, elem_id="scdpo_train_objective"
    )
    worth = gr.HTML(panel_text(offered(DEFAULT_LABEL).worth), elem_id="scdpo_train_worth")
    estimate_html = gr.HTML("", elem_id="scdpo_train_estimate")
    with gr.Accordion("Advanced settings", open=False):
        model = gr.Dropdown(
            label="Cost model that may correct your labels ('none' keeps your labels)",
            choices=[NO_COSTS, *ui.cost_models()],
            value=NO_COSTS,
            elem_id="scdpo_train_model",
        )
        more = gr.Textbox(
            label="Further settings, as in a job.toml",
            placeholder=_EXAMPLE,
            lines=6,
            elem_id="scdpo_train_more",
        )
    start, example = start_row("train", "Start training")
    run = run_controls(ui, "train", "Run")
    curves = gr.HTML("", elem_id="scdpo_train_curves")
    samples = gr.HTML("", elem_id="scdpo_train_samples")
    queue = gr.HTML("", elem_id="scdpo_train_queue")

    def job(chosen: str, folder: str, title: str, level: Any, scorer: str, text: str, aim: str) -> LoraJob:
        if not folder.strip():
            raise ScdpoError("Name the preference folder, such as that of Make or Preferences.")
        path = PREFERENCES if folder == str(PREFERENCES) else ui.reach.folder(folder)
        base_path = ui.reach.base(chosen or "", ui.bases())
        listed_cost_model(scorer, [NO_COSTS, *ui.cost_models()])
        more = ui.reach.settings(text or "")
        choices = objective_choice(aim)
        return LoraJob(path, base_path, ui.jobs.root, title.strip(), level, scorer, more, choices)

    settings = [base, pairs, name, quality, model, more, objective]

    @guarded(1)
    def guess(*values: Any) -> str:
        return panel_text(in_words(estimate(job(*values), ui.jobs.root, speed)))

    @guarded(2)
    def begin(*values: Any) -> list[Any]:
        lora_job = job(*values)
        sentence = ui.jobs.start(lora_job)
        # The menu must contain the run before it can be selected.
        names = ui.jobs.names("lora")
        return [gr.update(choices=names, value=lora_job.name), panel_text(sentence, "good")]

    def look(chosen: Any, old: Any, *values: Any) -> list[Any]:
        names = ui.jobs.names("lora")
        # Without a valid choice: the active run, else the last one.
        active = ui.jobs.active()
        name = current(chosen if chosen in names else active, names)
        pieces = ["", "", ""]
        if name:
            view = ui.jobs.view(name)
            pieces = [panel.status(view), panel.curves(view), panel.samples(view, ui.jobs.costs(view))]
        lines = panel.waiting(ui.jobs.waiting())
        updates, new = changed(old, [*pieces, lines + panel_text(ui.jobs.note), "|".join([name, *names])])
        chooser = menu_update(updates[-1], names, name)
        return [*updates[:-1], chooser, new, guess(*values) if old is None else gr.update()]

    outputs = [run.status, curves, samples, queue, run.which, run.marks, estimate_html]
    quick(run.tick, guarded(len(outputs), 0)(look), [run.which, run.marks, *settings], outputs)
    quick(start, begin, settings, [run.which, run.message])
    filled = [base, pairs, name, quality]
    quick(example, lambda: [ui.embedded_base(), str(PREFERENCES), "example", "fast"], [], filled)
    explain = guarded(1)(lambda label: panel_text(offered(label).worth))
    objective.change(explain, inputs=[objective], outputs=worth, queue=False, show_progress="hidden")
    for field in (base, quality, more, objective):
        field.change(guess, inputs=settings, outputs=estimate_html, queue=False, show_progress="hidden")
