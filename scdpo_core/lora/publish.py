"""A finished LoRA put where a host looks for LoRAs, with the preview and description that hosts show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import atomic_path, copy_file, sha256_of, write_json
from ..schema import SchemaError, read_json
from ..types import ScdpoError
from .file import read_lora_info

MARK = "published.json"
"""In the run folder: where its LoRA was put."""

_VERSIONS = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL", "sd3": "SD3", "flux": "Flux"}
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


def publish(run: Path, folder: Path, *, weight: float = 1.0) -> Path:
    """Copy a run's LoRA into a host's folder; the same LoRA is never put there twice.

    Beside it go NAME.json (description, base model, preferred weight: what A1111 and Forge show on its card)
    and NAME.png (the last sample pictures). A file of another LoRA is never replaced: then a number is added.

    Args:
        run: the run folder, with NAME.safetensors in it.
        folder: the host's.
        weight: that the card proposes.

    Returns:
        The file in the host's folder.

    Raises:
        ScdpoError: the run has no LoRA, or the folder cannot be written to.
    """
    source = run / f"{run.name}.safetensors"
    info = read_lora_info(source)
    content = sha256_of(source)
    target = _place(folder, run.name, content)
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
            write_json(about, _card(info.family, info.metadata, weight))
        write_json(run / MARK, {"path": str(target), "sha256": content})
    except OSError as error:
        raise ScdpoError(
            f"The LoRA could not be put into {folder} ({error.strerror or error}). It lies in {source}; copy "
            "it there yourself."
        ) from error
    return target


def _place(folder: Path, name: str, content: str) -> Path:
    for number in range(1, _MOST):
        path = folder / (f"{name}.safetensors" if number == 1 else f"{name}-{number}.safetensors")
        if not path.exists() or sha256_of(path) == content:
            return path
    raise ScdpoError(f"There are too many LoRAs named {name} in {folder}.")


def _card(family: str, said: Any, weight: float) -> dict[str, Any]:
    pairs, steps = said.get("scdpo_train_pairs", "?"), said.get("scdpo_train_steps", "?")
    return {
        "description": said.get("modelspec.description", "") or "Safety LoRA.",
        "sd version": _VERSIONS.get(family, "Unknown"),
        "activation text": "",
        "preferred weight": weight,
        "notes": f"Trained on {pairs} preference pairs in {steps} steps. It needs no word in the prompt.",
    }


def _preview(run: Path) -> Image.Image | None:
    """The pictures of the last drawing, two by two."""
    samples = sorted((run / "samples").glob("step-*.png"))
    last = [path for path in samples if path.name[:11] == samples[-1].name[:11]][:4]
    pictures = [Image.open(path).convert("RGB") for path in last]
    if not pictures:
        return None
    width, height = pictures[0].size
    columns = 1 if len(pictures) == 1 else 2
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * width, number // columns * height))
    factor = max(1, 512 // max(sheet.size))
    return sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST)
