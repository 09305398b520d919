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
from .common import changed, guarded, quick, said
from .controls import base_menu, current, lora_menu, menu_update, number, run_controls, start_row

_ABOUT = """**Step 5: compare.** The same prompts are drawn from the same noise, without the LoRA and
at several weights. You need a finished LoRA. Unsafe images stay blurred until you click them. Next:
if you like what you see, *Judge* measures it on whole lists of prompts."""


def build(desk: Desk) -> None:
    """Make the pane."""
    gr.Markdown(_ABOUT)
    with gr.Row():
        lora, base = lora_menu(desk, "cmp"), base_menu(desk, "cmp")
    with gr.Row():
        weights = gr.Textbox(label="Weights", value="0, 0.5, 1", elem_id="scdpo_cmp_weights")
        model = gr.Dropdown(
            label="Cost model",
            choices=list(desk.cost_models()),
            value=desk.in_use(),
            elem_id="scdpo_cmp_model",
        )
        seed = number("cmp", "seed", "Seed", 0)
    prompts = gr.Textbox(label="Prompts, one per line", lines=4, elem_id="scdpo_cmp_prompts")
    start, _ = start_row("cmp", "Draw and compare", example=False)
    run = run_controls(desk, "cmp", "Comparison to look at")
    shown = gr.HTML("", elem_id="scdpo_cmp_result")

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
        names, loras = desk.jobs.names("compare"), list(desk.all_loras())
        name = current(chosen, names)
        pieces = ["", ""]
        if name:
            result = read_result(desk.jobs.folder(name))
            drawn = "" if result is None else panel.comparison(result, desk.jobs.folder(name))
            pieces = [run_panel.status(desk.jobs.view(name), unit="images"), drawn]
        updates, new = changed(old, [*pieces, "|".join([name, *names]), "|".join(loras)])
        menus = [menu_update(updates[2], names, name), menu_update(updates[3], loras)]
        return [*updates[:2], *menus, new]

    outputs = [run.status, shown, run.which, lora, run.marks]
    quick(run.tick, guarded(5, 0)(look), [run.which, run.marks], outputs)
    lora.change(
        choose, inputs=[lora], outputs=[prompts, base, run.message], queue=False, show_progress="hidden"
    )
    quick(start, begin, [lora, base, weights, model, seed, prompts], [run.which, run.message])
