"""The pane that builds pairs: prompts in, preference pairs out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from scdpo_core.family_info import MICRO
from scdpo_core.pairs.start import MOST_ATTEMPTS, MOST_PER_PROMPT, WAY_TITLES, PairsJob
from scdpo_core.panels import run as run_panel
from scdpo_core.panels.built_pairs import built_pairs

from ..path_policy import listed_cost_model
from ..prompt_files import BENIGN, HARMFUL, named_files
from ..ui_context import Desk
from .common import changed, files_of, guarded, quick, said
from .controls import (
    base_menu,
    current,
    dropped_prompts,
    menu_update,
    number,
    prompt_files,
    run_controls,
    start_row,
)

_ABOUT = """**Step 1: make pairs.** Your model draws each harmful prompt, then a harmless image for it;
both become a pair. You need prompts; a list of harmless ones keeps the rest of the model as it is. Next: look
at the pairs under *Preferences*, or go straight to *Train*. If you have pairs already, skip this step."""


def build(desk: Desk) -> None:
    """Make the pane."""
    gr.Markdown(_ABOUT)
    with gr.Row():
        base = base_menu(desk, "make")
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
            label="Cost model that tells harmful from harmless",
            choices=list(desk.cost_models()),
            value=desk.in_use(),
            elem_id="scdpo_make_model",
        )
        with gr.Row():
            each = number("make", "each", "Images per prompt", 1)
            attempts = number("make", "attempts", "Attempts at each chosen image", 4)
            limit = number("make", "limit", "Prompts of each kind at most (0: all)", 0)
    start, example = start_row("make", "Make pairs")
    run = run_controls(desk, "make", "Pairs to look at")
    sheet = gr.HTML("", elem_id="scdpo_make_sheet")

    @guarded(2)
    def begin(*values: Any) -> list[Any]:
        chosen, own, harmful, harmless, lines, route, given, scorer, images, tries, most = values
        job = PairsJob(
            desk.jobs.root,
            (own or "").strip(),
            desk.reach.base(chosen or "", desk.bases()),
            named_files(desk.reach, (harmful or "").splitlines(), files_of(given)),
            named_files(desk.reach, (harmless or "").splitlines()),
            lines or "",
            WAY_TITLES[route],
            listed_cost_model(scorer, desk.cost_models()),
            per_prompt=_whole(images, 1, MOST_PER_PROMPT),
            attempts=_whole(tries, 4, MOST_ATTEMPTS),
            limit=_whole(most, 0),
        )
        sentence = desk.jobs.make_pairs(job)
        return [gr.update(choices=desk.jobs.names("pairs"), value=job.name), said(sentence, "good")]

    def look(chosen: Any, old: Any) -> list[Any]:
        names = desk.jobs.names("pairs")
        name = current(chosen, names)
        pieces = ["", ""]
        if name:
            view = run_panel.status(desk.jobs.view(name), unit="images")
            pieces = [view, built_pairs(desk.jobs.folder(name))]
        updates, new = changed(old, [*pieces, "|".join([name, *names])])
        return [*updates[:2], menu_update(updates[2], names, name), new]

    quick(run.tick, guarded(4, 0)(look), [run.which, run.marks], [run.status, sheet, run.which, run.marks])
    settings = [base, name, prompts, benign, typed, way, files, model, each, attempts, limit]
    quick(start, begin, settings, [run.which, run.message])
    filled = [base, prompts, benign, limit, model]
    # What the embedded model draws, its own cost model knows best.
    quick(example, lambda: [desk.embedded_base(), str(HARMFUL), str(BENIGN), 40, MICRO], [], filled)


def _whole(value: Any, default: int, most: int = 2**31) -> int:
    """A field's number; too large ones stay too large, so that the check names them."""
    return default if value is None else int(min(max(value, -1), most + 1))
