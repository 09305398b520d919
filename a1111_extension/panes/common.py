"""Helpers of all panes, for every gradio from 3.41 on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from scdpo_core.io.printable import printable
from scdpo_core.panels import notice
from scdpo_core.types import ScdpoError

_LOG = logging.getLogger("scdpo")


def panel_text(text: str, kind: Literal["info", "good", "bad"] = "info") -> str:
    """Return a sentence as a panel; '' of nothing."""
    return notice(text, kind) if text else ""


def guarded(outputs: int, index: int = -1) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Show errors of a pane's function as a sentence in one of its outputs.

    Args:
        outputs: number of outputs; the others stay unchanged.
        place: index of the output for sentences.
    """

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def safe(*arguments: Any, **named: Any) -> Any:
            try:
                return _printable(function(*arguments, **named))
            except ScdpoError as error:
                sentence = str(error)
            except Exception as error:
                _LOG.exception("a pane failed")
                sentence = f"This did not work ({type(error).__name__}: {error}). See the log for details."
            answer: list[Any] = [gr.update() for _ in range(outputs)]
            answer[index] = panel_text(printable(sentence, lines=True), "bad")
            return answer if outputs > 1 else answer[0]

        return safe

    return around


def _printable(values: Any) -> Any:
    """Escape file names that are not UTF-8 in a pane's output, so that it can be sent."""
    if isinstance(values, str):
        return printable(values, lines=True)
    return [_printable(value) for value in values] if isinstance(values, list) else values


def changed(old: Any, new: Sequence[str]) -> tuple[list[Any], tuple[int, ...]]:
    """Update only the pieces of HTML that differ from the page, so that uncovered images stay uncovered.

    Args:
        old: what was returned last, None at first.
        new: the pieces.
    """
    marks = tuple(hash(text) for text in new)
    before = old if isinstance(old, tuple | list) and len(old) == len(marks) else (None,) * len(marks)
    updates = [
        gr.update() if mark == shown else text for text, mark, shown in zip(new, marks, before, strict=True)
    ]
    return updates, marks


def ticker(name: str) -> gr.Button:
    """Make a hidden button that the page's script clicks every two seconds while its pane is shown;
    timers differ between versions of gradio."""
    return gr.Button("refresh", elem_id=f"scdpo_{name}_tick", elem_classes=["scdpo-hidden", "scdpo-tick"])


def quick(button: gr.Button, function: Callable[..., Any], inputs: Any, outputs: Any) -> None:
    """Connect a button to a fast function, outside the host's queue."""
    button.click(function, inputs=inputs, outputs=outputs, queue=False, show_progress="hidden")


def files_of(dropped: Any) -> list[Path]:
    """Return the paths of dropped files: names in newer versions, open files in older ones."""
    return [Path(str(getattr(file, "name", file))) for file in dropped or ()]
