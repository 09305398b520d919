"""The prompt that an image was made for, as programs write it into their files and beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .comfyui_graph import prompt_of_graph
from .image_texts import texts_in
from .infotext import MAX_PROMPT, loads, plain, prompt_in, prompt_of_settings

PROMPT_SUFFIXES = (".txt", ".caption")
"""Endings of files that hold a prompt beside their image, the better known first."""

_SETTINGS = ("invokeai_metadata", "sd-metadata", "Comment", "generation_data")

__all__ = ["PROMPT_SUFFIXES", "files_beside", "plain", "prompt_of"]


def prompt_of(path: Path) -> str:
    """Return the prompt in an image's own metadata, else in a text file beside it; '' if there is none.

    Tags that load networks, and weights such as (red:1.2), are taken out: trainers read plain words.
    Never raises because of what a file holds.
    """
    prompt = _from_texts(texts_in(path))
    if prompt:
        return prompt
    for beside in files_beside(path):
        try:
            if beside.is_file():
                with beside.open("rb") as stream:
                    content = stream.read(4 * MAX_PROMPT)
                return prompt_in(content.decode("utf-8-sig"))
        except (OSError, ValueError):
            continue
    return ""


def files_beside(path: Path) -> list[Path]:
    """Return the text files that may hold an image's prompt: a.txt, a.caption, a.png.txt, a.png.caption."""
    names = [path.with_suffix(suffix) for suffix in PROMPT_SUFFIXES]
    return [*names, *(path.with_name(path.name + suffix) for suffix in PROMPT_SUFFIXES)]


def _from_texts(texts: Mapping[str, str]) -> str:
    """Try A1111's text first, then ComfyUI's graph, then the settings of other programs."""
    prompt = prompt_in(texts.get("parameters", ""))
    if prompt:
        return prompt
    graph = loads(texts.get("prompt", ""))
    if graph is not None:
        return prompt_of_graph(graph)
    # Easy Diffusion keeps the bare words under this name.
    if "prompt" in texts:
        return prompt_in(texts["prompt"])
    for name in _SETTINGS:
        settings = loads(texts.get(name, ""))
        prompt = prompt_of_settings(settings) if settings is not None else ""
        if prompt:
            return prompt
    return ""
