"""A finished LoRA put where a host looks for LoRAs, with the preview and description that hosts show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..io.files import atomic_path, copy_file, sha256_of, write_json
from ..io.json_schema import SchemaError, read_json
from ..types import ScdpoError
from .file import read_lora_info
from .identity import sidecar_version

MARK = "published.json"
"""In the run folder: where its LoRA was put."""

_MOST = 1000


@dataclass(frozen=True)
class _Published:
    path: Path


def published(run: Path) -> Path | None:
    """Where a run's LoRA was put; None if it was not, or is no longer there."""
    try:
        path = read_json(run / MARK, _Published).path
        return path if path.is_file() else None
    except (OSError, SchemaError):
        return None


def publish(
    run: Path, folder: Path, *, others: Sequence[Path] = (), versions: Iterable[str] = (), weight: float = 1.0
) -> Path:
    """Copy a run's LoRA into a host's folder; the same LoRA is never put there twice.

    Beside it go NAME.json (description, base model, preferred weight: what A1111 and Forge show on its card)
    and NAME.png (the last sample images). A file of another LoRA is never replaced: then a number is added.

    Args:
        run: the run folder, with NAME.safetensors in it.
        folder: the host's.
        others: further folders in which the host looks for LoRAs. It knows a LoRA by its file's name alone,
            so one that lies there stays there, and a name that another one has there is not used again.
        versions: what a card's "sd version" can be in that host; none for A1111's.
        weight: that the card proposes.

    Returns:
        The file in the host's folder.

    Raises:
        ScdpoError: the run has no LoRA, or the folder cannot be written to.
    """
    source = run / f"{run.name}.safetensors"
    info = read_lora_info(source)
    content = sha256_of(source)
    target = _place([folder, *others], run.name, content)
    try:
        if not target.exists():
            copy_file(source, target)
        preview = _preview(run)
        if preview is not None:
            with atomic_path(target.with_suffix(".png")) as temporary:
                preview.save(temporary, "PNG")
        about = target.with_suffix(".json")
        # What the artist has written there since is the artist's.
        if not about.exists():
            write_json(about, _card(sidecar_version(info.family, versions), info.metadata, weight))
        write_json(run / MARK, {"path": str(target), "sha256": content})
    except OSError as error:
        raise ScdpoError(
            f"The LoRA could not be put into {folder} ({error.strerror or error}). It lies in {source}; copy "
            "it there yourself."
        ) from error
    return target


def _place(folders: Sequence[Path], name: str, content: str) -> Path:
    """The file that holds this LoRA already, else the first name that is free in all folders."""
    for number in range(1, _MOST):
        file = f"{name}.safetensors" if number == 1 else f"{name}-{number}.safetensors"
        there = [folder / file for folder in folders if (folder / file).exists()]
        same = next((path for path in there if sha256_of(path) == content), None)
        if same is not None or not there:
            return same or folders[0] / file
    raise ScdpoError(f"There are too many LoRAs named {name} in {folders[0]}.")


def _card(version: str, said: Any, weight: float) -> dict[str, Any]:
    pairs, steps = said.get("scdpo_train_pairs", "?"), said.get("scdpo_train_steps", "?")
    return {
        "description": said.get("modelspec.description", "") or "Safety LoRA.",
        "sd version": version,
        "activation text": "",
        "preferred weight": weight,
        "notes": f"Trained on {pairs} preference pairs in {steps} steps. It needs no word in the prompt.",
    }


def _preview(run: Path) -> Image.Image | None:
    """The images of the last drawing, two by two."""
    samples = sorted((run / "samples").glob("step-*.png"))
    last = [path for path in samples if path.name[:11] == samples[-1].name[:11]][:4]
    images = [Image.open(path).convert("RGB") for path in last]
    if not images:
        return None
    width, height = images[0].size
    columns = 1 if len(images) == 1 else 2
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * width, number // columns * height))
    factor = max(1, 512 // max(sheet.size))
    return sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST)
