"""Write scores into the files of ComfyUI's save nodes: each file gets the score of its own pixels.

Save Image writes one text for all images of a run, so its input cannot distinguish two images of a
batch, a list or two branches. The score of an image is therefore stored under a fingerprint of its
pixels, and written into the file after saving, when the pixels are known. An image that was not scored, or
was changed after scoring, has another fingerprint and gets no score.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import folder_paths

from ..scdpo_core.io.files import atomic_path
from ..scdpo_core.io.image_containers import ContainerError, with_score
from ..scdpo_core.reports.wording import score_json
from ..scdpo_core.types import CostScore
from .convert import fingerprints

SAVE_NODES = {"SaveImage": "save_images", "SaveImageAdvanced": "execute"}
"""ComfyUI's nodes that write one file per image -> their method; Preview Image inherits it."""

_MOST = 16384
"""Remembered images; about half a kilobyte each."""
_notes: OrderedDict[str, dict[str, dict[str, Any]]] = OrderedDict()
_lock = threading.Lock()


def note(score: CostScore, action: str = "") -> dict[str, Any]:
    """Return what is written for one image, as `trainer/score.py` writes it.

    Args:
        score: of the image, before it was hidden.
        action: what hid it, such as 'blur'; '' for an image as it was scored.
    """
    scorer = {"scorer": f"{score.scorer}@{score.scorer_hash}"}
    if action == "replace":
        # One card replaces all held images, so it has no cost of its own.
        return {"action": action, **scorer}
    return {**score_json(score), **scorer, **({"action": action} if action else {})}


def remember(fingerprint: str, new_note: dict[str, Any]) -> None:
    """Store a note for the files that are saved of an image; the newest note of a scorer counts."""
    with _lock:
        by_scorer = _notes.setdefault(fingerprint, {})
        by_scorer.pop(new_note["scorer"], None)
        by_scorer[new_note["scorer"]] = new_note
        _notes.move_to_end(fingerprint)
        while len(_notes) > _MOST:
            _notes.popitem(last=False)


def recall(fingerprint: str) -> dict[str, Any] | None:
    """Return the note of an image, those of other scorers under 'others'; None if it was never scored."""
    with _lock:
        *others, newest = _notes.get(fingerprint, {}).values() or (None,)
    return newest if newest is None or not others else {**newest, "others": others[::-1]}


def belongs(fingerprint: str, score: CostScore) -> bool:
    """Return whether this score was computed for this image."""
    expected = note(score)
    with _lock:
        return _notes.get(fingerprint, {}).get(expected["scorer"]) == expected


def watch_saving(node_classes: Mapping[str, Any]) -> None:
    """Patch ComfyUI's save nodes to write each image's note into its file.

    Args:
        node_classes: ComfyUI's node classes by their ids.
    """
    for name, method in SAVE_NODES.items():
        node = node_classes.get(name)
        saving = None if node is None else vars(node).get(method)
        if isinstance(saving, classmethod):
            setattr(node, method, classmethod(_noting(saving.__func__)))
        elif callable(saving):
            setattr(node, method, _noting(saving))


def _noting(saving: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(saving)
    def saves(*args: Any, **named: Any) -> Any:
        result = saving(*args, **named)
        try:
            images = named["images"] if "images" in named else args[1]
            ui = result["ui"] if isinstance(result, Mapping) else result.ui
            write(images, ui["images"])
        except Exception:
            # The image is saved; a failing note must not fail the run.
            logging.warning("The safety cost could not be written into a saved image.", exc_info=True)
        return result

    return saves


def write(images: Any, saved: Sequence[Mapping[str, str]]) -> None:
    """Write the note of each image into its file.

    Args:
        images: [B, H, W, C], as they were saved.
        saved: the file of each, in the same order, as ComfyUI's nodes report them.
    """
    from comfy.cli_args import args

    if args.disable_metadata or not _notes or len(saved) != len(images):
        return
    for fingerprint, entry in zip(fingerprints(images), saved, strict=True):
        image_note = recall(fingerprint)
        if image_note is None:
            continue
        folder = Path(folder_paths.get_directory_by_type(entry["type"]))
        path = folder / entry["subfolder"] / entry["filename"]
        try:
            content = with_score(path.read_bytes(), json.dumps(image_note).encode("ascii"))
        except ContainerError:
            continue  # an EXR file has no place for it
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
