"""Preference Folder."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.utils
from comfy_api.latest import io

from ..scdpo_core.preferences.summary import card, find, stamp_of_pairs, survey
from ..scdpo_core.reports.images import spread
from ..scdpo_core.types import ScdpoError
from . import preview
from .convert import to_images
from .folders import roots, typed_folder, unquoted
from .shared import SafetyNode, say, schema, with_text

EXAMPLE = "example: drawings"
"""The pairs that come with the pack."""
_EXAMPLES = Path(__file__).parents[1] / "examples" / "preferences"


class PreferenceFolder(SafetyNode):
    """The pairs in a folder, and what is wrong with it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node's inputs and outputs."""
        return schema(
            "PreferenceFolder",
            ["dataset", "dpo pairs", "chosen rejected", "training images", "load pairs"],
            inputs=[
                io.Combo.Input("folder", options=list(menu_folders())),
                io.String.Input("path", default="", optional=True),
                io.Int.Input("shown", default=12, min=0, max=200, optional=True),
            ],
            outputs=[
                io.String.Output("pairs"),
                io.Int.Output("count"),
                io.String.Output("categories"),
                io.Image.Output("sheet"),
                io.String.Output("report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, path: str | None = "", shown: int = 12) -> str:
        """Return a value that changes with the files of the folder."""
        return stamp_of_pairs(chosen_folder(folder, path or ""))

    @classmethod
    def execute(cls, folder: str, path: str = "", shown: int = 12) -> io.NodeOutput:
        """Read the folder and show its pairs."""
        directory = chosen_folder(folder, path)
        bar = comfy.utils.ProgressBar(1)
        summary = survey(directory, bar.update_absolute)
        report = summary.report()
        say(cls, report)
        if not summary.pairs:
            raise ScdpoError(report)
        cards = [card(pair) for pair in spread(summary.pairs, shown)]
        return io.NodeOutput(
            str(directory),
            len(summary.pairs),
            json.dumps(summary.categories, ensure_ascii=False),
            to_images(cards or [card(summary.pairs[0])]),
            report,
            ui=with_text(report, preview.show(cards)),
        )


def menu_folders() -> dict[str, Path]:
    """Return the menu's folders by name: those in ComfyUI's input and output folders, and the example."""
    return {
        **{
            f"{name}/{directory.relative_to(root).as_posix()}": directory
            for name, root in roots().items()
            for directory in find(root)
        },
        EXAMPLE: _EXAMPLES,
    }


def chosen_folder(folder: str, path: str) -> Path:
    """Return the typed folder, else the one of the menu.

    Raises:
        ScdpoError: there is no such folder; the menu has no such entry (any more).
    """
    if unquoted(path):
        return typed_folder(path)
    menu = menu_folders()
    if folder not in menu:
        raise ScdpoError(f"There is no preference folder {folder}. Choose one of: {', '.join(menu)}.")
    return menu[folder]
