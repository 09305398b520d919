"""The pane that judges a LoRA on prompt files: a report comes out."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from scdpo_core.panels import run as run_panel
from scdpo_core.panels.report import framed
from scdpo_core.runs.comparison import parse_weights
from scdpo_core.suite.defaults import complete
from scdpo_core.suite.folder import REPORT
from scdpo_core.types import ScdpoError

from ..path_policy import listed_cost_model
from ..prompt_files import BENIGN, HARMFUL, named_files
from ..ui_context import Desk
from .common import changed, example_button, files_of, guarded, quick, run_buttons, said, ticker

_ABOUT = """**Step 6: judge.** Every prompt of your files is drawn without and with the LoRA from the same
noise, and the images are scored: how much harm is gone, and how much of everything else is kept. You need a
LoRA and prompt files that it was not trained on. The result is a report that you can pass on; if it is not
good enough yet, make more pairs or train longer."""
_USUAL = "the model's usual judge"


def build(desk: Desk) -> None:
    """Make the pane."""
    gr.Markdown(_ABOUT)
    with gr.Row():
        lora = gr.Dropdown(
            label="LoRA",
            choices=list(desk.all_loras()),
            allow_custom_value=True,
            min_width=260,
            elem_id="scdpo_judge_lora",
        )
        base = gr.Dropdown(
            label="Model that draws",
            choices=list(desk.bases()),
            value=desk.base(),
            allow_custom_value=True,
            min_width=260,
            elem_id="scdpo_judge_base",
        )
    with gr.Row():
        prompts = gr.Textbox(
            label="Harmful prompts: files (.csv, .tsv, .txt), one per line",
            lines=2,
            elem_id="scdpo_judge_prompts",
        )
        benign = gr.Textbox(label="Harmless prompts: likewise", lines=2, elem_id="scdpo_judge_benign")
    with gr.Accordion("More settings", open=False):
        files = gr.File(
            label="Drop files of harmful prompts here",
            file_count="multiple",
            file_types=[".csv", ".tsv", ".txt"],
            elem_id="scdpo_judge_files",
        )
        with gr.Row():
            model = gr.Dropdown(
                label="Who judges",
                choices=[_USUAL, *desk.cost_models()],
                value=_USUAL,
                elem_id="scdpo_judge_model",
            )
            weights = gr.Textbox(label="Weights of the LoRA", value="1", elem_id="scdpo_judge_weights")
            seeds = gr.Number(label="Images per prompt", value=1, precision=0, elem_id="scdpo_judge_seeds")
            limit = gr.Number(
                label="Prompts of each file at most (0: all)",
                value=0,
                precision=0,
                elem_id="scdpo_judge_limit",
            )
    with gr.Row():
        start = gr.Button("Draw and judge", variant="primary", elem_id="scdpo_judge_start")
        example = example_button("judge")
    message = gr.HTML("", elem_id="scdpo_judge_message")
    which = gr.Dropdown(
        label="Report to look at", choices=[], allow_custom_value=True, elem_id="scdpo_judge_run"
    )
    stop, resume = run_buttons("judge")
    status = gr.HTML("", elem_id="scdpo_judge_status")
    report = gr.HTML("", elem_id="scdpo_judge_report")
    marks = gr.State(None)
    tick = ticker("judge")

    @guarded(2)
    def begin(*values: Any) -> list[Any]:
        name, chosen, harmful, harmless, given, judge, strengths, images, most = values
        known = desk.all_loras()
        if name not in known:
            raise ScdpoError("Choose a LoRA from the list. A finished training appears there.")
        output = desk.jobs.root / f"judge-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        settings: dict[str, Any] = {
            "output": output,
            "lora": [known[name]],
            "base": desk.reach.base(chosen or "", desk.bases()),
            "prompts": named_files(desk.reach, (harmful or "").splitlines(), files_of(given)),
            "benign": named_files(desk.reach, (harmless or "").splitlines()),
            "weights": parse_weights(strengths),
            "seeds": int(images or 1),
            "limit": int(most or 0),
        }
        if judge != _USUAL:
            settings["scorer"] = [listed_cost_model(judge, desk.cost_models())]
        sentence = desk.jobs.evaluate(complete(settings))
        return [gr.update(choices=desk.jobs.names("evaluate"), value=output.name), said(sentence, "good")]

    def look(chosen: Any, old: Any) -> list[Any]:
        names = desk.jobs.names("evaluate")
        run = chosen if chosen in names else names[0] if names else ""
        pieces = ["", ""]
        if run:
            view = run_panel.status(desk.jobs.view(run), unit="images")
            pieces = [view, framed(desk.jobs.folder(run) / REPORT)]
        found = list(desk.all_loras())
        updates, new = changed(old, [*pieces, "|".join([run, *names]), "|".join(found)])
        still = gr.update()
        chooser = still if updates[2] == still else gr.update(choices=names, value=run or None)
        loras = still if updates[3] == still else gr.update(choices=found)
        return [*updates[:2], chooser, loras, new]

    quick(tick, guarded(5, 0)(look), [which, marks], [status, report, which, lora, marks])
    quick(start, begin, [lora, base, prompts, benign, files, model, weights, seeds, limit], [which, message])
    quick(example, lambda: [str(HARMFUL), str(BENIGN), 20], [], [prompts, benign, limit])
    for button, act in ((stop, desk.jobs.stop), (resume, desk.jobs.resume)):
        quick(button, guarded(1)(lambda run, act=act: said(act(run or ""))), [which], [message])
