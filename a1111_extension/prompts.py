"""The safety LoRA in the prompts: checked first, then written into those of both passes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

from scdpo_core.lora.file import read_lora_info
from scdpo_core.lora.identity import BASES
from scdpo_core.types import ScdpoError

_TRANSFORMERS = ("sd3", "flux")


def check(path: Path, family: str) -> None:
    """Make sure that the host will really apply a LoRA; it ignores what it does not understand.

    Args:
        path: its file.
        family: of the checkpoint in use; '' if the host does not say.

    Raises:
        ScdpoError: the file is missing, damaged or no LoRA, has names that the host does not read, or is for
            another base model.
    """
    found = read_lora_info(path)
    if found.family == "micro":
        raise ScdpoError(f"{path} was trained on the embedded model and fits no checkpoint of yours.")
    if found.family and family and found.family != family:
        raise ScdpoError(
            f"{path} is for {BASES[found.family].title}, but the checkpoint in use is "
            f"{BASES[family].title}. Choose another LoRA or another checkpoint."
        )
    if found.family in _TRANSFORMERS:
        return
    with safe_open(str(path), framework="pt") as file:
        unread = next((key for key in file.keys() if not key.startswith("lora_")), None)  # noqa: SIM118
    if unread is not None:
        raise ScdpoError(
            f"{path} has the names of another program ('{unread}'), which this host leaves unread: the "
            f"picture would not change. Convert it: python trainer/lora.py convert {path.name} --to kohya "
            f"--output {path.stem}-kohya.safetensors"
        )


def tag(name: str, weight: float) -> str:
    """What stands for a LoRA in a prompt.

    Raises:
        ScdpoError: the name has a character that ends it there.
    """
    if set(name) & set(":<>"):
        raise ScdpoError(f"A LoRA with ':', '<' or '>' in its name does not work in a prompt: '{name}'.")
    return f"<lora:{name}:{weight:g}>"


def without_tag(prompt: str, name: str) -> str:
    """The prompt without any mention of the LoRA."""
    return re.sub(rf"\s*<lora:{re.escape(name)}(:[^>]*)?>", "", prompt)


def add_to(p: Any, name: str, weight: float) -> None:
    """Write the LoRA into every prompt of a generation, of the hires pass too.

    Here, before the prompts are cut into batches: later it would be missing from the hires pass and from the
    infotext. One that a pasted prompt brings along gives way, so that it never counts twice.

    Raises:
        ScdpoError: see `tag`; or this generation reads no LoRA at all.
    """
    if getattr(p, "disable_extra_networks", False):
        raise ScdpoError("LoRAs are switched off for this picture, so the safety LoRA cannot be applied.")
    mention = tag(name, weight)

    def changed(prompt: str) -> str:
        return f"{without_tag(prompt, name)} {mention}".strip()

    p.all_prompts = [changed(prompt) for prompt in p.all_prompts]
    p.main_prompt = changed(p.main_prompt)
    if getattr(p, "all_hr_prompts", None):
        p.all_hr_prompts = [changed(prompt) for prompt in p.all_hr_prompts]
