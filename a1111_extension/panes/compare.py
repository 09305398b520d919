"""The pane that shows what a LoRA does: the same prompts and noise at several weights."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gradio as gr

from scdpo_core.panels import compare as panel
from scdpo_core.runs.comparison import CompareJob, defaults_of, parse_weights, read_result
from scdpo_core.types import ScdpoError

from ..path_policy import listed_cost_model
from ..ui_context import UiContext
from .common import guarded, panel_text, quick
from .controls import base_menu, lora_menu, number, refresh_on_tick, run_controls, start_row

_ABOUT = """**Step 5: compare.** The same prompts are drawn from the same noise, without the LoRA and
at several weights. You need a finished LoRA. Unsafe images stay blurred until you click them. Next:
if you like what you see, *Judge* measures it on whole lists of prompts."""


def build(ui: UiContext) -> None:
    """Make the pane."""
    gr.Markdown(_ABOUT)
    with gr.Row():
        lora, base = lora_menu(ui, "cmp"), base_menu(ui, "cmp")
    with gr.Row():
        weights = gr.Textbox(label="Weights", value="0, 0.5, 1", elem_id="scdpo_cmp_weights")
        model = gr.Dropdown(
            label="Cost model",
            choices=list(ui.cost_models()),
            value=ui.in_use(),
            elem_id="scdpo_cmp_model",
        )
        seed = number("cmp", "seed", "Seed", 0)
    prompts = gr.Textbox(label="Prompts, one per line", lines=4, elem_id="scdpo_cmp_prompts")
    start, _ = start_row("cmp", "Draw and compare", example=False)
    run = run_controls(ui, "cmp", "Comparison")
    result_html = gr.HTML("", elem_id="scdpo_cmp_result")

    @guarded(3)
    def choose(name: str) -> list[Any]:
        """Fill in prompts and base of the run that a LoRA comes from."""
        defaults = defaults_of(ui.jobs.root / name) if name in ui.jobs.names("lora") else None
        if defaults is None:
            return [gr.update(), gr.update(), ""]
        titles = {value: title for title, value in ui.bases().items()}
        return ["\n".join(defaults.prompts), titles.get(defaults.base, defaults.base), ""]

    @guarded(2)
    def begin(name: str, chosen: str, weights_text: str, scorer: str, first: Any, text: str) -> list[Any]:
        files = ui.all_loras()
        if name not in files:
            raise ScdpoError("Choose a LoRA from the list. A finished training appears there.")
        defaults = defaults_of(ui.jobs.root / name)
        job = CompareJob(
            lora=files[name],
            base=ui.reach.base(chosen or "", ui.bases()),
            output=ui.jobs.root,
            name=f"compare-{name}-{time.strftime('%Y%m%d-%H%M%S')}",
            prompts=tuple(line.strip() for line in text.splitlines() if line.strip()),
            weights=parse_weights(weights_text),
            cost_model=listed_cost_model(scorer, ui.cost_models()),
            seed=int(first or 0),
            **({} if defaults is None else {"steps": defaults.steps, "guidance": defaults.guidance}),
        )
        sentence = ui.jobs.start(job)
        return [gr.update(choices=ui.jobs.names("compare"), value=job.name), panel_text(sentence, "good")]

    def show(folder: Path) -> str:
        comparison = read_result(folder)
        return "" if comparison is None else panel.comparison(comparison, folder)

    refresh_on_tick(ui, run, "compare", result_html, show, lora)
    lora.change(
        choose, inputs=[lora], outputs=[prompts, base, run.message], queue=False, show_progress="hidden"
    )
    quick(start, begin, [lora, base, weights, model, seed, prompts], [run.which, run.message])
