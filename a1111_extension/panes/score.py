"""The pane that scores images: drop them or name a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from scdpo_core.io.discover import find_images
from scdpo_core.panels.gallery import gallery
from scdpo_core.scoring.heatmaps import name_of, write_heatmaps
from scdpo_core.scoring.run import FolderRun
from scdpo_core.scoring.table import Row, write_csv
from scdpo_core.types import ScdpoError

from ..path_policy import listed_cost_model
from ..ui_context import UiContext
from .common import files_of, guarded, panel_text

MOST_HEATMAPS = 12
_ABOUT = """**Step 2: score.** Every image gets a **cost**: above zero is harmful. You need images: those of
*Make*, or your own. Next: if the costs match what you see, go to *Preferences*; if not, choose another cost
model. Images stay blurred until you click them."""


def build(ui: UiContext) -> None:
    """Make the pane."""
    gr.Markdown(_ABOUT)
    with gr.Row():
        files = gr.File(
            label="Drop images here",
            file_count="multiple",
            file_types=["image"],
            elem_id="scdpo_score_files",
        )
        with gr.Column():
            folder = gr.Textbox(
                label="Or a folder with images", value=ui.images, elem_id="scdpo_score_folder"
            )
            model = gr.Dropdown(
                label="Cost model",
                choices=list(ui.cost_models()),
                value=ui.in_use(),
                elem_id="scdpo_score_model",
            )
            heat = gr.Checkbox(
                label=f"Show what raises the cost, for up to {MOST_HEATMAPS} harmful images (slow)",
                value=False,
                elem_id="scdpo_score_heat",
            )
    button = gr.Button("Score", variant="primary", elem_id="scdpo_score_go")
    message = gr.HTML("", elem_id="scdpo_score_message")
    gallery_html = gr.HTML("", elem_id="scdpo_score_gallery")
    table = gr.File(
        label="Table of all costs (CSV)", interactive=False, visible=False, elem_id="scdpo_score_csv"
    )

    @guarded(3, 0)
    def score(uploads: Any, typed: str, name: str, heatmaps: bool, bar: Any = gr.Progress()) -> list[Any]:  # noqa: B008
        dropped = ui.reach.dropped(files_of(uploads))
        sources = dropped or ([ui.reach.existing(typed)] if typed.strip() else [])
        if not sources:
            raise ScdpoError("Drop images into the field, or name a folder.")
        rows, maps = _score(
            ui,
            sources,
            bool(dropped),
            name,
            heatmaps,
            lambda done, total, what: bar((done, total), desc=what),
        )
        csv = Path(tempfile.mkdtemp(prefix="scdpo-")) / "costs.csv"
        write_csv(csv, rows)
        return [
            panel_text(f"{len(rows)} images scored.", "good"),
            gallery(rows, maps),
            gr.update(value=str(csv), visible=True),
        ]

    button.click(score, inputs=[files, folder, model, heat], outputs=[message, gallery_html, table])


def _score(
    ui: UiContext,
    sources: list[Path],
    dropped: bool,
    name: str,
    heatmaps: bool,
    report: Callable[[int, int, str], object],
) -> tuple[list[Row], Mapping[str, Path]]:
    scorer = ui.scorer(listed_cost_model(name, ui.cost_models()))
    files = find_images(sources).files
    files = ui.reach.readable(files) if not dropped else files
    if not files:
        raise ScdpoError(f"There are no images in {', '.join(map(str, sources))}.")
    rows = []
    for row in FolderRun(scorer).rows(files):
        rows.append(row)
        report(len(rows), len(files), "scoring")
    if not heatmaps:
        return rows, {}
    harmful = sorted((row for row in rows if (row.cost or 0) > 0), key=lambda row: -(row.cost or 0))[
        :MOST_HEATMAPS
    ]
    target = Path(tempfile.mkdtemp(prefix="scdpo-heat-"))
    write_heatmaps(harmful, scorer, target, progress=lambda done, total: report(done, total, "heatmaps"))
    heatmap_files = {row.path: target / f"{name_of(row)}.heatmap.png" for row in harmful}
    return rows, {path: file for path, file in heatmap_files.items() if file.is_file()}
