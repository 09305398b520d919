"""Check a LoRA against a loaded ComfyUI model, and apply it through ComfyUI's loader."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.utils
from torch import Tensor

from ..scdpo_core.family_info import FAMILY_INFO, family_by_class
from ..scdpo_core.lora.file import load_lora
from ..scdpo_core.lora.formats.convert import to_file
from ..scdpo_core.lora.formats.names import split_key
from ..scdpo_core.lora.weights import shape_of
from ..scdpo_core.types import LoraFile, ScdpoError
from .lora_window import Window, patched

_TEXT = ("lora_te_", "lora_te1_", "lora_te2_")


@dataclass(frozen=True)
class Lora:
    """A LoRA ready for ComfyUI.

    Attributes:
        file: its metadata.
        tensors: by kohya's names, which ComfyUI reads for every family.
    """

    file: LoraFile
    tensors: Mapping[str, Tensor]

    @property
    def adapts_words(self) -> bool:
        """Whether it has weights for text encoders."""
        return any(key.startswith(_TEXT) for key in self.tensors)

    @property
    def adapts_denoiser(self) -> bool:
        """Whether it has weights for the denoiser."""
        return not all(key.startswith(_TEXT) for key in self.tensors)


@dataclass(frozen=True)
class Applied:
    """Result of applying a LoRA.

    Attributes:
        model: a changed clone of ComfyUI's model, or the same model where nothing changes.
        clip: the same for the text encoders, or None.
        note: what was applied, a sentence.
    """

    model: Any
    clip: Any
    note: str


def read(path: Path) -> Lora:
    """Read a LoRA in any form.

    Raises:
        ScdpoError: it cannot be read, or is for the embedded model, which ComfyUI does not run.
    """
    state, file = load_lora(path)
    if file.family == "micro":
        raise ScdpoError(
            f"{path.name} is for the embedded model of the demo, which ComfyUI cannot run. "
            "Train a LoRA on the checkpoint that you use here."
        )
    return Lora(file, to_file(state, "kohya", file.family).tensors)


def apply(
    lora: Lora, model: Any, clip: Any, strength_model: float, strength_clip: float, window: Window
) -> Applied:
    """Apply a LoRA; nothing is changed in place.

    Raises:
        ScdpoError: it is for another family, or a layer is missing in the model or has another size.
    """
    name, family = lora.file.path.name, _family(model)
    if lora.file.family and family != lora.file.family:
        title = FAMILY_INFO[family].title if family in FAMILY_INFO else family
        raise ScdpoError(
            f"{name} is for {FAMILY_INFO[lora.file.family].title}, but the model is {title}. "
            "Choose a LoRA for this model, or load the checkpoint that it was trained on."
        )
    text = {key: tensor for key, tensor in lora.tensors.items() if key.startswith(_TEXT)}
    image = {key: tensor for key, tensor in lora.tensors.items() if key not in text}
    changed, notes = model, []
    patches = _patches(name, image, comfy.lora.model_lora_keys_unet(model.model, {}), model)
    if image and strength_model:
        changed = patched(model, patches, strength_model, window)
        notes.append(f"{len(patches)} weights of the model are changed at strength {strength_model:g}")
    if text and clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
        patches = _patches(name, text, keys, clip.patcher)
        if strength_clip:
            clip = clip.clone()
            clip.add_patches(patches, strength_clip)
            notes.append(f"{len(patches)} of the text encoders at strength {strength_clip:g}")
    elif text:
        notes.append("its text encoder weights are not used, because no clip is connected")
    summary = "; ".join(notes) or "nothing is changed"
    return Applied(changed, clip, f"Applied: {summary}.")


def _family(model: Any) -> str:
    kind = type(model.model.model_config).__name__
    info = family_by_class(kind, "comfy_classes")
    return info.name if info else f"an unknown model ({kind})"


def _patches(
    name: str, tensors: Mapping[str, Tensor], key_map: Mapping[str, Any], owner: Any
) -> dict[Any, Any]:
    """Make ComfyUI's patches for all of these weights.

    Raises:
        ScdpoError: a layer is missing in the model, or has another size.
    """
    stems = dict.fromkeys(key.split(".", 1)[0] for key in tensors)
    missing = [stem for stem in stems if stem not in key_map]
    if missing:
        raise ScdpoError(
            f"{name}: {len(missing)} of its {len(stems)} layers do not exist in this model, "
            f"such as '{missing[0]}', so the LoRA is for another model, even if it is of the same family. "
            "ComfyUI's own loader would skip them silently."
        )
    patches = comfy.lora.load_lora(dict(tensors), {stem: key_map[stem] for stem in stems}, log_missing=False)
    if len(patches) < len(stems):
        raise ScdpoError(f"{name}: ComfyUI could read only {len(patches)} of its {len(stems)} layers.")
    _check_sizes(name, tensors, key_map, owner.model)
    return patches


def _check_sizes(name: str, tensors: Mapping[str, Tensor], key_map: Mapping[str, Any], network: Any) -> None:
    """Refuse layers of another size, which ComfyUI would skip at sampling with a log line."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        stem, part = split_key(key)
        modules.setdefault(stem, {})[part] = tensor
    for stem, parts in modules.items():
        target, actual = key_map[stem], math.prod(shape_of(parts))
        # A part of a fused weight comes as a tuple.
        if not isinstance(target, str):
            continue
        # Not from the state dict, which has quantized weights in packed form.
        expected = math.prod(comfy.utils.get_attr(network, target).shape)
        if actual != expected:
            raise ScdpoError(
                f"{name} does not fit: '{stem}' has {actual} values, the model has "
                f"{expected} there. It was trained on a model of another size."
            )
