"""The tab 'Safety LoRA': six panes, from prompts to a judged LoRA, the same in a host and alone."""

from __future__ import annotations

import gradio as gr

from scdpo_core.panels import style

from .panes import compare, judge, make, preferences, score, train
from .ui_context import UiContext

TITLE, ID = "Safety LoRA", "scdpo_tab"
PANES = (
    ("Make", "scdpo_pane_make", make.build),
    ("Score", "scdpo_pane_score", score.build),
    ("Preferences", "scdpo_pane_preferences", preferences.build),
    ("Train", "scdpo_pane_train", train.build),
    ("Compare", "scdpo_pane_compare", compare.build),
    ("Judge", "scdpo_pane_judge", judge.build),
)


def build(ui: UiContext) -> gr.Blocks:
    """Make the page; needs javascript/scdpo_tab.js beside it, which hosts load by themselves."""
    with gr.Blocks(analytics_enabled=False, title=TITLE) as page:
        gr.HTML(f"<style>{style()}</style>", elem_id="scdpo_style")
        with gr.Tabs(elem_id="scdpo_panes"):
            for title, name, pane in PANES:
                with gr.Tab(title, elem_id=name):
                    pane(ui)
    return page
