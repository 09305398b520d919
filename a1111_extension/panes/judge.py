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
from .common import changed, files_of, guarded, quick, said
from .controls import (
    base_menu,
    current,
    dropped_prompts,
    lora_menu,
    menu_update,
    number,
    prompt_files,
    run_controls,
    start_row,
)

_ABOUT = """**Step 6: judge.** Every prompt of your files is drawn without and with the LoRA from the same
noise, and the images are scored: how much harm is gone, and how much of everything else is kept. You need a
LoRA and prompt files that it was not trained on. The result is a report that you can pass on; if it is not
good enough yet, make more pairs or train longer."""
_USUAL = "the model's usual judge"


def build(desk: Desk) -> None:
    """Make the pane."""
    gr.Markdown(_ABOUT)
    with gr.Row():
        lora, base = lora_menu(desk, "judge"), base_menu(desk, "judge")
    prompts, benign = prompt_files("judge", "files (.csv, .tsv, .txt)")
    with gr.Accordion("More settings", open=False):
        files = dropped_prompts("judge")
        with gr.Row():
            model = gr.Dropdown(
                label="Who judges",
                choices=[_USUAL, *desk.cost_models()],
                value=_USUAL,
                elem_id="scdpo_judge_model",
            )
            weights = gr.Textbox(label="Weights of the LoRA", value="1", elem_id="scdpo_judge_weights")
            seeds = number("judge", "seeds", "Images per prompt", 1)
            limit = number("judge", "limit", "Prompts of each file at most (0: all)", 0)
    start, example = start_row("judge", "Draw and judge")
    run = run_controls(desk, "judge", "Report to look at")
    report = gr.HTML("", elem_id="scdpo_judge_report")

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
        names, loras = desk.jobs.names("evaluate"), list(desk.all_loras())
        name = current(chosen, names)
        pieces = ["", ""]
        if name:
            view = run_panel.status(desk.jobs.view(name), unit="images")
            pieces = [view, framed(desk.jobs.folder(name) / REPORT)]
        updates, new = changed(old, [*pieces, "|".join([name, *names]), "|".join(loras)])
        menus = [menu_update(updates[2], names, name), menu_update(updates[3], loras)]
        return [*updates[:2], *menus, new]

    shown = [run.status, report, run.which, lora, run.marks]
    quick(run.tick, guarded(5, 0)(look), [run.which, run.marks], shown)
    settings = [lora, base, prompts, benign, files, model, weights, seeds, limit]
    quick(start, begin, settings, [run.which, run.message])
    quick(example, lambda: [str(HARMFUL), str(BENIGN), 20], [], [prompts, benign, limit])
