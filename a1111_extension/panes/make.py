"""The pane that builds pairs: prompts in, preference pairs out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from scdpo_core.family_info import MICRO
from scdpo_core.pairs.start import MOST_ATTEMPTS, MOST_PER_PROMPT, WAY_TITLES, PairsJob
from scdpo_core.panels.built_pairs import built_pairs

from ..path_policy import listed_cost_model
from ..prompt_files import BENIGN, HARMFUL, named_files
from ..ui_context import UiContext
from .common import files_of, guarded, panel_text, quick
from .controls import (
    base_menu,
    dropped_prompts,
    number,
    prompt_files,
    refresh_on_tick,
    run_controls,
    start_row,
)

_ABOUT = """**Step 1: make pairs.** Your model draws each harmful prompt, then a harmless image for it;
both become a pair. You need prompts; a list of harmless ones keeps the rest of the model as it is. Next: look
at the pairs under *Preferences*, or go straight to *Train*. If you have pairs already, skip this step."""


def build(ui: UiContext) -> None:
    """Make the pane."""
    gr.Markdown(_ABOUT)
    with gr.Row():
        base = base_menu(ui, "make")
        name = gr.Textbox(label="Name of the pairs", value="my_pairs", elem_id="scdpo_make_name")
    prompts, benign = prompt_files("make", "files (.csv, .tsv, .txt) or folders of images")
    typed = gr.Textbox(
        label="Or write harmful prompts here, one per line",
        placeholder="a soldier with a rifle\na bloody knife on a table",
        lines=2,
        elem_id="scdpo_make_typed",
    )
    way = gr.Radio(
        label="How the chosen image is made",
        choices=list(WAY_TITLES),
        value=next(iter(WAY_TITLES)),
        elem_id="scdpo_make_way",
    )
    with gr.Accordion("More settings", open=False):
        files = dropped_prompts("make")
        model = gr.Dropdown(
            label="Cost model that decides what is harmful",
            choices=list(ui.cost_models()),
            value=ui.in_use(),
            elem_id="scdpo_make_model",
        )
        with gr.Row():
            each = number("make", "each", "Images per prompt", 1)
            attempts = number("make", "attempts", "Attempts at each chosen image", 4)
            limit = number("make", "limit", "Prompts of each kind at most (0: all)", 0)
    start, example = start_row("make", "Make pairs")
    run = run_controls(ui, "make", "Pairs")
    sheet = gr.HTML("", elem_id="scdpo_make_sheet")

    @guarded(2)
    def begin(*values: Any) -> list[Any]:
        chosen, pairs_name, harmful, harmless, lines, route, dropped, scorer, images, tries, most = values
        job = PairsJob(
            ui.jobs.root,
            (pairs_name or "").strip(),
            ui.reach.base(chosen or "", ui.bases()),
            named_files(ui.reach, (harmful or "").splitlines(), files_of(dropped)),
            named_files(ui.reach, (harmless or "").splitlines()),
            lines or "",
            WAY_TITLES[route],
            listed_cost_model(scorer, ui.cost_models()),
            per_prompt=_whole(images, 1, MOST_PER_PROMPT),
            attempts=_whole(tries, 4, MOST_ATTEMPTS),
            limit=_whole(most, 0),
        )
        sentence = ui.jobs.start(job)
        return [gr.update(choices=ui.jobs.names("pairs"), value=job.name), panel_text(sentence, "good")]

    refresh_on_tick(ui, run, "pairs", sheet, built_pairs)
    settings = [base, name, prompts, benign, typed, way, files, model, each, attempts, limit]
    quick(start, begin, settings, [run.which, run.message])
    filled = [base, prompts, benign, limit, model]
    # What the embedded model draws, its own cost model knows best.
    quick(example, lambda: [ui.embedded_base(), str(HARMFUL), str(BENIGN), 40, MICRO], [], filled)


def _whole(value: Any, default: int, most: int = 2**31) -> int:
    """Return a field's number; too large ones stay too large, so that the check names them."""
    return default if value is None else int(min(max(value, -1), most + 1))
