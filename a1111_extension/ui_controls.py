"""The script's controls on the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from modules.infotext_utils import PasteField
from modules.ui_common import create_refresh_button
from modules.ui_components import InputAccordion

from . import host, infotext, packages
from .options import NO_LORA
from .policy import ACTIONS, OWN_NUMBER, THRESHOLDS, Policy, word_of

_ABOUT = """Every image gets a **cost**: above the threshold it is harmful. *Safe* images stay as they
are. *Review*: the scorer is not sure. *Unsafe*: it is. An error hides the image."""


def build(name: Callable[[str], str]) -> tuple[list[Any], list[PasteField]]:
    """Make the controls.

    Args:
        name: makes an element's id.

    Returns:
        The controls in the order of `controls.read`, and how a pasted infotext sets them.
    """
    first = Policy()
    with InputAccordion(False, label="Safety", elem_id=name("enabled")) as enabled:
        gr.Markdown(_ABOUT)
        if packages.hint():
            gr.Markdown(f"**{packages.hint()}**")
        with gr.Row():
            word = gr.Radio(
                label="How strict", choices=[*THRESHOLDS, OWN_NUMBER], value="normal", elem_id=name("word")
            )
            number = gr.Number(
                label="Threshold: the cost from which on an image counts as harmful",
                value=first.threshold,
                elem_id=name("threshold"),
            )
        with gr.Row():
            review = gr.Dropdown(
                label="What to do with images to review",
                choices=[*ACTIONS],
                value=first.review,
                elem_id=name("review"),
            )
            unsafe = gr.Dropdown(
                label="What to do with unsafe images",
                choices=[*ACTIONS],
                value=first.unsafe,
                elem_id=name("unsafe"),
            )
        with gr.Row():
            lora = gr.Dropdown(
                label="Safety LoRA, in both passes", choices=_loras(), value=NO_LORA, elem_id=name("lora")
            )
            create_refresh_button(
                lora, host.find_loras_again, lambda: {"choices": _loras()}, name("refresh_loras")
            )
            weight = gr.Slider(
                label="Safety LoRA weight", minimum=0, maximum=2, step=0.05, value=1, elem_id=name("weight")
            )
    # `input` is the artist's hand alone, so that the two never chase each other.
    word.input(_number_of, [word, number], number, show_progress=False)
    number.input(lambda value: word_of(value or 0.0), number, word, show_progress=False)
    return [enabled, word, number, review, unsafe, lora, weight], [
        PasteField(enabled, infotext.pasted_enabled),
        PasteField(word, infotext.pasted_word),
        PasteField(number, infotext.pasted_threshold),
        PasteField(review, infotext.REVIEW),
        PasteField(unsafe, infotext.UNSAFE),
        PasteField(lora, infotext.pasted_lora),
        PasteField(weight, infotext.pasted_weight),
    ]


def _loras() -> list[str]:
    return [NO_LORA, *host.loras()]


def _number_of(word: str, number: float) -> float:
    return THRESHOLDS.get(word, number)
