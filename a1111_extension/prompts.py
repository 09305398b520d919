"""The safety LoRA in the prompts: checked first, then written into those of both passes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

from scdpo_core.family_info import FAMILY_INFO
from scdpo_core.lora.file import read_lora_info
from scdpo_core.lora.formats.layouts import UNETS
from scdpo_core.types import ScdpoError

from .checkpoints import Checkpoint


def check(path: Path, checkpoint: Checkpoint) -> str:
    """Check that the host will apply a LoRA; hosts ignore what they do not recognise.

    Args:
        path: its file.
        checkpoint: that the host draws with.

    Returns:
        What could not be checked, a sentence for the artist; '' if nothing is left open.

    Raises:
        ScdpoError: the file is missing, damaged or no LoRA, has names that the host does not read, or is for
            another base model.
    """
    info = read_lora_info(path)
    if info.family == "micro":
        raise ScdpoError(f"{path} was trained on the embedded model and does not fit any checkpoint.")
    if info.family and checkpoint.title and info.family != checkpoint.family:
        raise ScdpoError(
            f"{path} is for {FAMILY_INFO[info.family].title}, but the checkpoint in use is "
            f"{checkpoint.title}. Choose another LoRA or another checkpoint."
        )
    if (info.family or checkpoint.family) in UNETS:
        _check_names(path)
    if info.family and checkpoint.title:
        return ""
    if checkpoint.title:
        return (
            f"{path.name} does not name its base model, so it could not be checked whether it fits "
            f"{checkpoint.title}. Compare an image with and without it."
        )
    what = f"the checkpoint in use ('{checkpoint.engine}')" if checkpoint.engine else "the checkpoint in use"
    return (
        f"The base model of {what} is unknown, so it could not be checked whether {path.name} fits. "
        "Compare an image with and without it."
    )


def _check_names(path: Path) -> None:
    """Make sure that hosts read the names in a file for a UNet; for transformers they read several kinds.

    Raises:
        ScdpoError: they do not.
    """
    with safe_open(str(path), framework="pt") as file:
        unread = next((key for key in file.keys() if not key.startswith("lora_")), None)  # noqa: SIM118
    if unread is not None:
        raise ScdpoError(
            f"{path} has the names of another program ('{unread}'), which this host leaves unread: the "
            f"image would not change. Convert it: python trainer/lora.py convert {path.name} --to kohya "
            f"--output {path.stem}-kohya.safetensors"
        )


def tag(name: str, weight: float) -> str:
    """Return a LoRA's tag in a prompt.

    Raises:
        ScdpoError: the name has a character that ends it there.
    """
    if set(name) & set(":<>"):
        raise ScdpoError(f"A LoRA with ':', '<' or '>' in its name does not work in a prompt: '{name}'.")
    return f"<lora:{name}:{weight:g}>"


def without_tag(prompt: str, name: str) -> str:
    """Remove all tags of the LoRA from a prompt."""
    return re.sub(rf"\s*<lora:{re.escape(name)}(:[^>]*)?>", "", prompt)


def add_to(p: Any, name: str, weight: float) -> None:
    """Write the LoRA into every prompt of a generation, of the hires pass too.

    Here, before the prompts are cut into batches: later it would be missing from the hires pass and from the
    infotext. One that a pasted prompt brings along gives way, so that it never counts twice.

    Raises:
        ScdpoError: see `tag`; or this generation reads no LoRA at all.
    """
    if getattr(p, "disable_extra_networks", False):
        raise ScdpoError("LoRAs are switched off for this image, so the safety LoRA cannot be applied.")
    mention = tag(name, weight)

    def changed(prompt: str) -> str:
        return f"{without_tag(prompt, name)} {mention}".strip()

    p.all_prompts = [changed(prompt) for prompt in p.all_prompts]
    p.main_prompt = changed(p.main_prompt)
    if getattr(p, "all_hr_prompts", None):
        p.all_hr_prompts = [changed(prompt) for prompt in p.all_hr_prompts]
