"""The pane that shows what a LoRA does: the same prompts and noise at several weights."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from scdpo_core.panels import compare as panel
from scdpo_core.panels import run as run_panel
from scdpo_core.runs.comparison import CompareJob, parse_weights, read_result, usual
from scdpo_core.types import ScdpoError

from ..path_policy import listed_cost_model
from ..ui_context import Desk
from .common import changed, guarded, quick, said, ticker

_ABOUT = """**Step 5: compare.** The same prompts are drawn from the same noise, without the LoRA and
at several weights. You need a finished LoRA. Unsafe images stay blurred until you click them. Next:
if you like what you see, *Judge* measures it on whole lists of prompts."""


def build(desk: Desk) -> None:
    """Make the pane."""
    gr.Markdown(_ABOUT)
    with gr.Row():
        lora = gr.Dropdown(
            label="LoRA",
            choices=list(desk.all_loras()),
            allow_custom_value=True,
            min_width=260,
            elem_id="scdpo_cmp_lora",
        )
        base = gr.Dropdown(
            label="Model that draws",
            choices=list(desk.bases()),
            value=desk.base(),
            allow_custom_value=True,
            min_width=260,
            elem_id="scdpo_cmp_base",
        )
    with gr.Row():
        weights = gr.Textbox(label="Weights", value="0, 0.5, 1", elem_id="scdpo_cmp_weights")
        model = gr.Dropdown(
            label="Cost model",
            choices=list(desk.cost_models()),
            value=desk.in_use(),
            elem_id="scdpo_cmp_model",
        )
        seed = gr.Number(label="Seed", value=0, precision=0, elem_id="scdpo_cmp_seed")
    prompts = gr.Textbox(label="Prompts, one per line", lines=4, elem_id="scdpo_cmp_prompts")
    with gr.Row():
        start = gr.Button("Draw and compare", variant="primary", elem_id="scdpo_cmp_start")
        stop = gr.Button("Stop", elem_id="scdpo_cmp_stop")
    message = gr.HTML("", elem_id="scdpo_cmp_message")
    which = gr.Dropdown(
        label="Comparison to look at", choices=[], allow_custom_value=True, elem_id="scdpo_cmp_run"
    )
    status = gr.HTML("", elem_id="scdpo_cmp_status")
    shown = gr.HTML("", elem_id="scdpo_cmp_result")
    marks = gr.State(None)
    tick = ticker("cmp")

    @guarded(3)
    def choose(name: str) -> list[Any]:
        """Prompts and base of the run that a LoRA comes from."""
        found = usual(desk.jobs.root / name) if name in desk.jobs.names("lora") else None
        if found is None:
            return [gr.update(), gr.update(), ""]
        titles = {value: title for title, value in desk.bases().items()}
        return ["\n".join(found.prompts), titles.get(found.base, found.base), ""]

    @guarded(2)
    def begin(name: str, chosen: str, wanted: str, scorer: str, first: Any, text: str) -> list[Any]:
        files = desk.all_loras()
        if name not in files:
            raise ScdpoError("Choose a LoRA from the list. A finished training appears there.")
        found = usual(desk.jobs.root / name)
        job = CompareJob(
            lora=files[name],
            base=desk.reach.base(chosen or "", desk.bases()),
            output=desk.jobs.root,
            name=f"compare-{name}-{time.strftime('%Y%m%d-%H%M%S')}",
            prompts=tuple(line.strip() for line in text.splitlines() if line.strip()),
            weights=parse_weights(wanted),
            cost_model=listed_cost_model(scorer, desk.cost_models()),
            seed=int(first or 0),
            **({} if found is None else {"steps": found.steps, "guidance": found.guidance}),
        )
        sentence = desk.jobs.compare(job)
        return [gr.update(choices=desk.jobs.names("compare"), value=job.name), said(sentence, "good")]

    def look(chosen: Any, old: Any) -> list[Any]:
        names = desk.jobs.names("compare")
        run = chosen if chosen in names else names[0] if names else ""
        pieces = ["", ""]
        if run:
            result = read_result(desk.jobs.folder(run))
            drawn = "" if result is None else panel.comparison(result, desk.jobs.folder(run))
            pieces = [run_panel.status(desk.jobs.view(run)), drawn]
        files = list(desk.all_loras())
        updates, new = changed(old, [*pieces, "|".join([run, *names]), "|".join(files)])
        still = gr.update()
        chooser = still if updates[2] == still else gr.update(choices=names, value=run or None)
        loras = still if updates[3] == still else gr.update(choices=files)
        return [*updates[:2], chooser, loras, new]

    quick(tick, guarded(5, 0)(look), [which, marks], [status, shown, which, lora, marks])
    lora.change(choose, inputs=[lora], outputs=[prompts, base, message], queue=False, show_progress="hidden")
    quick(start, begin, [lora, base, weights, model, seed, prompts], [which, message])
    quick(stop, guarded(1)(lambda run: said(desk.jobs.stop(run or ""))), [which], [message])
