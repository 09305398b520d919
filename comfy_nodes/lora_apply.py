"""A LoRA checked against a loaded model of ComfyUI, and applied to it through ComfyUI's own loader."""

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
        file: what it says of itself.
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
    """What came of applying.

    Attributes:
        model: ComfyUI's model, changed or, where there was nothing to change, the very same.
        clip: likewise, or None.
        note: what was applied, in a sentence or two.
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
        ScdpoError: it is for another family, or a weight has no place in the model or does not fit there.
    """
    name, has = lora.file.path.name, _family(model)
    if lora.file.family and has != lora.file.family:
        raise ScdpoError(
            f"{name} is for {FAMILY_INFO[lora.file.family].title}, but the model is "
            f"{FAMILY_INFO[has].title if has in FAMILY_INFO else has}. Choose a LoRA for this model, or load "
            "the checkpoint that it was trained on."
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
        notes.append("its weights for the text encoders are left out, because no clip is connected")
    said = "; ".join(notes) or "nothing is changed"
    return Applied(changed, clip, f"Applied: {said}.")


def _family(model: Any) -> str:
    kind = type(model.model.model_config).__name__
    info = family_by_class(kind, "comfy_classes")
    return info.name if info else f"a model of another kind ({kind})"


def _patches(
    name: str, tensors: Mapping[str, Tensor], places: Mapping[str, Any], owner: Any
) -> dict[Any, Any]:
    """ComfyUI's patches for all of these weights.

    Raises:
        ScdpoError: one has no place, or another shape than its place.
    """
    stems = dict.fromkeys(key.split(".", 1)[0] for key in tensors)
    homeless = [stem for stem in stems if stem not in places]
    if homeless:
        raise ScdpoError(
            f"{name}: {len(homeless)} of its {len(stems)} layers have no place in this model, "
            f"'{homeless[0]}' for one, so the LoRA is for another model, even if it is of the same family. "
            "ComfyUI's own loader would leave them out without a word."
        )
    patches = comfy.lora.load_lora(dict(tensors), {stem: places[stem] for stem in stems}, log_missing=False)
    if len(patches) < len(stems):
        raise ScdpoError(f"{name}: ComfyUI could read only {len(patches)} of its {len(stems)} layers.")
    _check_sizes(name, tensors, places, owner.model)
    return patches


def _check_sizes(name: str, tensors: Mapping[str, Tensor], places: Mapping[str, Any], network: Any) -> None:
    """ComfyUI would log a misfit at sampling and go on without it."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        stem, part = split_key(key)
        modules.setdefault(stem, {})[part] = tensor
    for stem, parts in modules.items():
        place, found = places[stem], math.prod(shape_of(parts))
        # A place that is a part of a fused weight comes as a tuple.
        if not isinstance(place, str):
            continue
        # Not from the state dict, which has a quantized weight as it is stored: two numbers a byte, padded.
        there = math.prod(comfy.utils.get_attr(network, place).shape)
        if found != there:
            raise ScdpoError(
                f"{name} does not fit: '{stem}' changes {found} numbers, the model has "
                f"{there} there. It was trained on a model of another size."
            )
