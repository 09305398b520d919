"""The pane that builds pairs: prompts in, preference pairs out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from scdpo_core.pairs.start import MOST_ATTEMPTS, MOST_PER_PROMPT, WAY_TITLES, PairsJob
from scdpo_core.panels import run as run_panel
from scdpo_core.panels.built_pairs import built_pairs

from ..path_policy import listed_cost_model
from ..prompt_files import BENIGN, HARMFUL, named_files
from ..ui_context import Desk
from .common import changed, example_button, files_of, guarded, quick, run_buttons, said, ticker

_ABOUT = """**Step 1: make pairs.** Your model draws each harmful prompt, then a harmless image for it;
both become a pair. You need prompts; a list of harmless ones keeps the rest of the model as it is. Next: look
at the pairs under *Preferences*, or go straight to *Train*. If you have pairs already, skip this step."""


def build(desk: Desk) -> None:
    """Make the pane."""
    gr.Markdown(_ABOUT)
    with gr.Row():
        base = gr.Dropdown(
            label="Model that draws",
            choices=list(desk.bases()),
            value=desk.base(),
            allow_custom_value=True,
            min_width=260,
            elem_id="scdpo_make_base",
        )
        name = gr.Textbox(label="Name of the pairs", value="my_pairs", elem_id="scdpo_make_name")
    with gr.Row():
        prompts = gr.Textbox(
            label="Harmful prompts: files (.csv, .tsv, .txt) or folders of images, one per line",
            lines=2,
            elem_id="scdpo_make_prompts",
        )
        benign = gr.Textbox(label="Harmless prompts: likewise", lines=2, elem_id="scdpo_make_benign")
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
        files = gr.File(
            label="Drop files of harmful prompts here",
            file_count="multiple",
            file_types=[".csv", ".tsv", ".txt"],
            elem_id="scdpo_make_files",
        )
        model = gr.Dropdown(
            label="Cost model that tells harmful from harmless",
            choices=list(desk.cost_models()),
            value=desk.in_use(),
            elem_id="scdpo_make_model",
        )
        with gr.Row():
            each = gr.Number(label="Images per prompt", value=1, precision=0, elem_id="scdpo_make_each")
            attempts = gr.Number(
                label="Attempts at each chosen image", value=4, precision=0, elem_id="scdpo_make_attempts"
            )
            limit = gr.Number(
                label="Prompts of each kind at most (0: all)",
                value=0,
                precision=0,
                elem_id="scdpo_make_limit",
            )
    with gr.Row():
        start = gr.Button("Make pairs", variant="primary", elem_id="scdpo_make_start")
        example = example_button("make")
    message = gr.HTML("", elem_id="scdpo_make_message")
    which = gr.Dropdown(
        label="Pairs to look at", choices=[], allow_custom_value=True, elem_id="scdpo_make_run"
    )
    stop, resume = run_buttons("make")
    status = gr.HTML("", elem_id="scdpo_make_status")
    sheet = gr.HTML("", elem_id="scdpo_make_sheet")
    marks = gr.State(None)
    tick = ticker("make")

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
        run = chosen if chosen in names else names[0] if names else ""
        pieces = ["", ""]
        if run:
            view = run_panel.status(desk.jobs.view(run), unit="images")
            pieces = [view, built_pairs(desk.jobs.folder(run))]
        updates, new = changed(old, [*pieces, "|".join([run, *names])])
        still = updates[2] == gr.update()
        return [*updates[:2], gr.update() if still else gr.update(choices=names, value=run or None), new]

    quick(tick, guarded(4, 0)(look), [which, marks], [status, sheet, which, marks])
    settings = [base, name, prompts, benign, typed, way, files, model, each, attempts, limit]
    quick(start, begin, settings, [which, message])
    quick(example, lambda: [str(HARMFUL), str(BENIGN), 40], [], [prompts, benign, limit])
    for button, act in ((stop, desk.jobs.stop), (resume, desk.jobs.resume)):
        quick(button, guarded(1)(lambda run, act=act: said(act(run or ""))), [which], [message])


def _whole(value: Any, default: int, most: int = 2**31) -> int:
    """A field's number; too large ones stay too large, so that the check names them."""
    return default if value is None else int(min(max(value, -1), most + 1))
