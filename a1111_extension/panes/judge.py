"""The pane that judges a LoRA on prompt files and shows the report."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from scdpo_core.panels.report import framed
from scdpo_core.runs.comparison import parse_weights
from scdpo_core.suite.defaults import complete
from scdpo_core.suite.folder import REPORT
from scdpo_core.types import ScdpoError

from ..path_policy import listed_cost_model
from ..prompt_files import BENIGN, HARMFUL, named_files
from ..ui_context import UiContext
from .common import files_of, guarded, panel_text, quick
from .controls import (
    base_menu,
    dropped_prompts,
    lora_menu,
    number,
    prompt_files,
    refresh_on_tick,
    run_controls,
    start_row,
)

_ABOUT = """**Step 6: judge.** Every prompt of your files is drawn without and with the LoRA from the same
noise, and the images are scored: how much harm is gone, and how much of everything else is kept. You need a
LoRA and prompt files that it was not trained on. The result is a report that you can pass on; if it is not
good enough yet, make more pairs or train longer."""
_USUAL = "the model's usual judge"


def build(ui: UiContext) -> None:
    """Make the pane."""
    gr.Markdown(_ABOUT)
    with gr.Row():
        lora, base = lora_menu(ui, "judge"), base_menu(ui, "judge")
    prompts, benign = prompt_files("judge", "files (.csv, .tsv, .txt)")
    with gr.Accordion("More settings", open=False):
        files = dropped_prompts("judge")
        with gr.Row():
            model = gr.Dropdown(
                label="Who judges",
                choices=[_USUAL, *ui.cost_models()],
                value=_USUAL,
                elem_id="scdpo_judge_model",
            )
            weights = gr.Textbox(label="Weights of the LoRA", value="1", elem_id="scdpo_judge_weights")
            seeds = number("judge", "seeds", "Images per prompt", 1)
            limit = number("judge", "limit", "Prompts of each file at most (0: all)", 0)
    start, example = start_row("judge", "Draw and judge")
    run = run_controls(ui, "judge", "Report")
    report = gr.HTML("", elem_id="scdpo_judge_report")

    @guarded(2)
    def begin(*values: Any) -> list[Any]:
        name, chosen, harmful, harmless, dropped, judge, strengths, images, most = values
        available = ui.all_loras()
        if name not in available:
            raise ScdpoError("Choose a LoRA from the list. A finished training appears there.")
        output = ui.jobs.root / f"judge-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        settings: dict[str, Any] = {
            "output": output,
            "lora": [available[name]],
            "base": ui.reach.base(chosen or "", ui.bases()),
            "prompts": named_files(ui.reach, (harmful or "").splitlines(), files_of(dropped)),
            "benign": named_files(ui.reach, (harmless or "").splitlines()),
            "weights": parse_weights(strengths),
            "seeds": int(images or 1),
            "limit": int(most or 0),
        }
        if judge != _USUAL:
            settings["scorer"] = [listed_cost_model(judge, ui.cost_models())]
        sentence = ui.jobs.start(complete(settings))
        return [
            gr.update(choices=ui.jobs.names("evaluate"), value=output.name),
            panel_text(sentence, "good"),
        ]

    refresh_on_tick(ui, run, "evaluate", report, lambda folder: framed(folder / REPORT), lora)
    settings = [lora, base, prompts, benign, files, model, weights, seeds, limit]
    quick(start, begin, settings, [run.which, run.message])
    quick(example, lambda: [str(HARMFUL), str(BENIGN), 20], [], [prompts, benign, limit])
