"""The pane that makes preference pairs: which of two images is the better one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import gradio as gr

from scdpo_core.cost.protocol import HARM_CATEGORIES
from scdpo_core.panels import pair as panel
from scdpo_core.preferences.folder import read_folder
from scdpo_core.preferences.labelling_session import Choice, Session, SessionView, import_pairs
from scdpo_core.types import ScdpoError

from ..ui_context import UiContext
from .common import changed, files_of, guarded, panel_text, quick, ticker

_ABOUT = """**Step 3: choose.** Two images of the same prompt stand side by side: choose the one you want
more of. For a harmful prompt that is the image without the harm, for a harmless prompt simply the better one.
You need two images of each prompt, such as the pairs of *Make*. Next: *Train*. Keys: **1** left, **2** right,
**3** skip, **U** undo. Every answer is saved at once."""
_CATEGORIES = ["", "benign", *HARM_CATEGORIES]


class _Table:
    """The open session, which survives a reload of the page."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: Session | None = None

    def lay(self, source: Path, target: Path) -> Session:
        """Open a session; lists the images again."""
        session = Session(source, target)
        with self._lock:
            self._open = session
        return session

    @property
    def session(self) -> Session:
        """The open one.

        Raises:
            ScdpoError: none is.
        """
        if self._open is None:
            raise ScdpoError("Name the two folders and press Open first.")
        return self._open

    @property
    def is_laid(self) -> bool:
        """Whether a session is open."""
        return self._open is not None


def build(ui: UiContext) -> None:
    """Make the pane."""
    table = _Table()
    gr.Markdown(_ABOUT)
    with gr.Row():
        source = gr.Textbox(
            label="Folder with images to compare", value=ui.images, elem_id="scdpo_pref_source"
        )
        target = gr.Textbox(
            label="Preference folder, created if missing",
            value=str(ui.preferences),
            elem_id="scdpo_pref_target",
        )
    opened = gr.Button("Open", variant="primary", elem_id="scdpo_pref_open")
    message = gr.HTML("", elem_id="scdpo_pref_message")
    pair_html = gr.HTML("", elem_id="scdpo_pref_pair")
    current_id, marks = gr.State(""), gr.State(None)
    with gr.Row():
        buttons = {
            choice: gr.Button(text, elem_id=f"scdpo_pref_{choice}")
            for choice, text in (
                ("left", "Left is better (1)"),
                ("right", "Right is better (2)"),
                ("skip", "Skip (3)"),
            )
        }
        undo = gr.Button("Undo (U)", elem_id="scdpo_pref_undo")
    with gr.Row():
        prompt = gr.Textbox(label="Prompt, instead of the images' own", elem_id="scdpo_pref_prompt")
        category = gr.Dropdown(
            label="Harm in the worse image ('benign' for none)",
            choices=_CATEGORIES,
            value="",
            allow_custom_value=True,
            elem_id="scdpo_pref_category",
        )
    with gr.Accordion("Import images that are already sorted", open=False):
        with gr.Row():
            good = gr.File(
                label="Drop the preferred images", file_count="multiple", elem_id="scdpo_pref_good"
            )
            bad = gr.File(label="Drop the others", file_count="multiple", elem_id="scdpo_pref_bad")
        import_button = gr.Button("Import as pairs, in the order of their names", elem_id="scdpo_pref_import")
    check = gr.Button("Check the preference folder", elem_id="scdpo_pref_check")
    state = gr.HTML("", elem_id="scdpo_pref_state")
    tick = ticker("pref")

    pane = [pair_html, current_id, marks, message]

    def show(view: SessionView, old: Any, text: str = "") -> list[Any]:
        (piece,), new = changed(old, [panel.pair(view)])
        return [piece, view.current.id if view.current else "", new, text]

    def place(text: str) -> Path:
        if not text.strip():
            raise ScdpoError("Name the preference folder.")
        return ui.reach.folder(text)

    def look(folder: Path) -> str:
        return panel.folder(folder, *read_folder(folder)) if (folder / "chosen").is_dir() else ""

    @guarded(4)
    def open_(images: str, folder: str) -> list[Any]:
        if not images.strip():
            raise ScdpoError("Name the folder with the images to compare.")
        session = table.lay(ui.reach.folder(images), place(folder))
        notes = "\n".join(f"{note.path}: {note.what}" for note in session.notes)
        return show(session.view(), None, panel_text(notes) if notes else "")

    @guarded(4)
    def refresh(old: Any) -> list[Any]:
        if not table.is_laid:
            return [gr.update() for _ in pane]
        return [*show(table.session.view(), old)[:3], gr.update()]

    def answering(choice: Choice) -> Any:
        @guarded(4)
        def answer(candidate: str, old: Any, words: str, kind: str) -> list[Any]:
            return show(table.session.answer(candidate, choice, words, kind or ""), old)

        return answer

    @guarded(4)
    def take_back(old: Any) -> list[Any]:
        return show(table.session.undo(), old)

    @guarded(2)
    def take(first: Any, second: Any, folder: str, words: str, kind: str) -> list[Any]:
        where = place(folder)
        good_files, bad_files = (ui.reach.dropped(files_of(files)) for files in (first, second))
        count = import_pairs(where, good_files, bad_files, words, kind or "")
        return [look(where), panel_text(f"{count} pairs imported.", "good")]

    opened.click(open_, inputs=[source, target], outputs=pane)
    for choice, button in buttons.items():
        quick(button, answering(choice), [current_id, marks, prompt, category], pane)  # type: ignore[arg-type]
    quick(undo, take_back, [marks], pane)
    quick(tick, refresh, [marks], pane)
    import_button.click(take, inputs=[good, bad, target, prompt, category], outputs=[state, message])
    check.click(
        guarded(1)(lambda folder: look(place(folder)) or panel_text("This folder has no pairs yet.")),
        target,
        state,
    )
