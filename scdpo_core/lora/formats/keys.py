"""Names of LoRA weights: one canonical form in memory, dialects at the edge of files.

    canonical   down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.down | .up | .alpha
                text_encoder.text_model.encoder.layers.0.self_attn.q_proj.down (text_encoder_2. for the
                second)
    kohya       lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
                lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha     (lora_te1_, lora_te2_ with two)
                lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight        (SD3 and FLUX: original names)
                lycoris_transformer_blocks_0_attn_to_q.hada_w1_a               (a part of such a fused matrix)
    kohya-ldm   lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight
    peft        unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight
    comfyui     diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_down.weight

This file, its tables (`layouts`) and its spelling (`spelling`) are all that knows a name. Kohya's forms turn
dots into underscores, and underscores were there before: going back needs the list of the model's modules, or
failing that a vocabulary of their words, which knows every module of diffusers' and of the original denoisers
and of CLIP. What a change of dialect does to the numbers (FLUX's and SD3's fused matrices) is in `dialects`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from ...family_info import names_of, trainable
from .layouts import (
    TRANSFORMERS,
    UNETS,
    diffusers_modules,
    families_of,
    is_diffusers_module,
    original_place,
    transformers_with,
)
from .names import (
    ALL_PARTS,
    FLAT_PREFIXES,
    LOHA_PARTS,
    LOKR_PARTS,
    PARTS,
    TEXT_ENCODERS,
    KeyNameError,
    flat,
    split_key,
    strip_prefix,
    unflatten,
)

__all__ = [
    "ALL_PARTS",
    "DIALECTS",
    "LOHA_PARTS",
    "LOKR_PARTS",
    "PARTS",
    "TEXT_ENCODERS",
    "Address",
    "Dialect",
    "KeyNameError",
    "addresses",
    "apart",
    "key",
    "place",
    "split",
    "text_module",
]


Dialect = Literal["kohya", "kohya-ldm", "peft", "comfyui"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
"""What a file can be written in; all of them, and older and rarer forms, are read."""

_COMFYUI_CLIP = {"sd2": "clip_h"}  # of the first text encoder; clip_l in every other family

_SUFFIX = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
_PEFT_SUFFIX = {"down": "lora_A.weight", "up": "lora_B.weight", "dora_scale": "lora_magnitude_vector"}
_PEFT_LACKS = {"mid": "a convolution's kernel of its own (lora_mid)"}

_CLIP = re.compile(
    r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])|text_projection"
)


_MOST_SIGNS = 500
_WITH_CLIP = names_of(info for info in trainable() if "clip" in info.texts)


class Address(NamedTuple):
    """What a file's key means.

    Attributes:
        modules: canonical paths; more than one where the original layout fuses what diffusers splits.
        part: one of `ALL_PARTS`.
        original: whether the file has the module in its original layout.
        families: those whose models have a module of that name; none for a module of another kind of model.
    """

    modules: tuple[str, ...]
    part: str
    original: bool
    families: frozenset[str]

    @property
    def name(self) -> str:
        """The canonical name, of the first module."""
        return f"{self.modules[0]}.{self.part}"


def split(name: str) -> tuple[str, str]:
    """Module path and part of a canonical name.

    Raises:
        KeyNameError: it is not canonical.
    """
    module, _, part = name.rpartition(".")
    if not module or part not in ALL_PARTS:
        raise KeyNameError(f"'{name}' is not a canonical LoRA name (module path, then one of {ALL_PARTS}).")
    return module, part


def text_module(owner: str, path: str) -> str:
    """Canonical path of a module of a live text encoder.

    transformers 5 dropped CLIPTextModel's outer `text_model`; files, and canonical names, keep it.

    Args:
        owner: one of `TEXT_ENCODERS`.
        path: as `named_modules` has it.
    """
    return owner + (f"text_model.{path}" if path.startswith("encoder.") else path)


def place(module: str, dialect: Dialect, family: str) -> tuple[str, tuple[str, ...]]:
    """The stem of the keys that a dialect gives a module, and the modules that share it.

    Args:
        module: canonical path.
        dialect: of the file.
        family: name of the base model's family; '' and 'micro' have no original layout.

    Raises:
        KeyNameError: the dialect has no name for the module.
    """
    owner = next((owner for owner in TEXT_ENCODERS if module.startswith(owner)), "")
    path = module.removeprefix(owner)
    if owner and not _CLIP.fullmatch(path):
        raise KeyNameError(f"'{module}' is no layer of a CLIP text encoder, and no other has names here.")
    if dialect == "peft":
        return (module if owner else f"{'transformer' if family in TRANSFORMERS else 'unet'}.{path}"), (
            module,
        )
    if owner:
        return _text_stem(owner, path, dialect, family), (module,)
    if dialect == "kohya" and family not in TRANSFORMERS:
        return f"lora_unet_{flat(path)}", (module,)
    try:
        found = original_place(path, family)
    except ValueError:
        raise KeyNameError(
            f"'{module}' cannot be named in '{dialect}': that needs the layout of the "
            "original checkpoint, and "
            "there is none for "
            f"{f'family {family!r}' if family else 'an unknown base model'}. Name the family."
        ) from None
    if found is None:
        raise KeyNameError(f"'{module}' names no module of a model of family '{family}'.")
    original, members = found
    stem = f"diffusion_model.{original}" if dialect == "comfyui" else f"lora_unet_{flat(original)}"
    return stem, members


def apart(module: str, dialect: Dialect) -> str:
    """The stem for a module of the denoiser that stays apart where `place` has it fused with others.

    LyCORIS' trainers write these names for SD3 and FLUX; ComfyUI (and Forge, with its loader) finds the rows.
    """
    return f"transformer.{module}" if dialect == "comfyui" else f"lycoris_{flat(module)}"


def key(stem: str, part: str, dialect: Dialect) -> str:
    """The key for a part of a module.

    Raises:
        KeyNameError: the dialect has no name for it.
    """
    if dialect != "peft":
        return f"{stem}.{_SUFFIX.get(part, part)}"
    if part in _PEFT_LACKS:
        raise KeyNameError(
            f"'{stem}' has {_PEFT_LACKS[part]}, which the dialect 'peft' has no name for. "
            "Resize the LoRA first: that makes it a plain one."
        )
    return f"{stem}.{_PEFT_SUFFIX.get(part, part)}"


def addresses(
    keys: Iterable[str],
    modules: Iterable[str] | None = None,
    likely: Collection[str] = TRANSFORMERS,
) -> dict[str, Address]:
    """What each key of a file means, in whichever dialect it is.

    Args:
        keys: names as they stand in the file.
        modules: canonical paths of the modules that the model has. None: every module that a denoiser of
            diffusers' or a CLIP text encoder can have.
        likely: families of transformers that are meant where the names alone leave several.

    Raises:
        KeyNameError: a key is in no dialect, or names a module that is not in `modules`; or two
            keys mean the same weight.
    """
    keys = list(keys)
    known = None if modules is None else frozenset(modules)
    by_flat_name = {} if known is None else _flat_table(known)
    families = _transformers(keys)
    families = families.intersection(likely) or families
    found: dict[str, Address] = {}
    owners: dict[tuple[str, str], str] = {}
    for name in keys:
        if len(name) > _MOST_SIGNS:
            raise KeyNameError(f"'{name[:60]}...' has {len(name):,} signs, and no weight's name has so many.")
        address = _address(name, known, by_flat_name, families)
        for module in address.modules:
            other = owners.setdefault((module, address.part), name)
            if other != name:
                raise KeyNameError(f"'{other}' and '{name}' are two names for the same weight.")
        found[name] = address
    return found


def _transformers(keys: Sequence[str]) -> frozenset[str]:
    """Families of transformers that a file's keys may mean: layouts share names, and not what they mean.

    All where the keys are of none or of several; the sentence about that is somebody else's.
    """
    possible = frozenset(TRANSFORMERS)
    for name in keys:
        if len(name) > _MOST_SIGNS:
            break
        owner, path = _path(split_key(name)[0], {})
        having = frozenset() if owner else transformers_with(path)
        possible = possible & having if having else possible
    return possible or frozenset(TRANSFORMERS)


def denoiser_path(stem: str) -> str:
    """Path of a stem's module in the denoiser, in diffusers' layout or the original; '' in a text encoder."""
    owner, path = _path(stem, {})
    return "" if owner else path


def _path(stem: str, by_flat_name: Mapping[str, str]) -> tuple[str, str]:
    """Owner and path of a stem, whatever its prefix and spelling."""
    prefix = next((prefix for prefix in FLAT_PREFIXES if stem.startswith(prefix)), None)
    if prefix is None or "." in stem:
        return strip_prefix(stem)
    owner = FLAT_PREFIXES[prefix]
    if stem in by_flat_name:
        return owner, by_flat_name[stem].removeprefix(owner)
    return owner, unflatten(stem.removeprefix(prefix))


def _address(
    name: str,
    known: frozenset[str] | None,
    by_flat_name: Mapping[str, str],
    transformers: frozenset[str],
) -> Address:
    stem, part = split_key(name)
    owner, path = _path(stem, by_flat_name)
    if owner:
        modules: tuple[str, ...] = (text_module(owner, path),)
        original, valid = False, bool(_CLIP.fullmatch(modules[0].removeprefix(owner)))
        families = frozenset(("sdxl", "sd3") if owner == TEXT_ENCODERS[1] else _WITH_CLIP)
    else:
        fused = None if known is not None and path in known else diffusers_modules(path, transformers)
        # A path that both layouts have (SD3's context_embedder) means the same module in both.
        original = fused is not None and fused != (path,)
        modules = fused if original and fused is not None else (path,)
        valid = original or is_diffusers_module(path)
        families = (_families_with(path, modules) if original else families_of(path)) & (
            transformers | frozenset(UNETS)
        )
    if known is not None and not known.issuperset(modules):
        raise KeyNameError(f"'{name}' names no module of this model: the LoRA is for another one.")
    if not valid and known is None:
        raise KeyNameError(f"'{name}' names no module of {_titles()}, nor of their CLIP text encoders.")
    return Address(modules, part, original, families)


def _families_with(path: str, modules: tuple[str, ...]) -> frozenset[str]:
    return frozenset(
        family
        for family in families_of(modules[0])
        if (found := original_place(modules[0], family)) is not None and found[0] == path
    )


def _titles() -> str:
    *most, last = (info.title for info in trainable())
    return f"{', '.join(most)} or {last}"


def _text_stem(owner: str, path: str, dialect: Dialect, family: str) -> str:
    first = owner == TEXT_ENCODERS[0]
    if dialect == "comfyui":
        clip = _COMFYUI_CLIP.get(family, "clip_l") if first else "clip_g"
        return f"text_encoders.{clip}.transformer.{path}"
    # Kohya numbers the text encoders of every family that has more than one, CLIP's of FLUX too.
    numbered = family in ("sdxl", *TRANSFORMERS)
    return f"lora_te{'' if first and not numbered else 1 if first else 2}_{flat(path)}"


def _flat_table(modules: frozenset[str]) -> dict[str, str]:
    """Every kohya stem with diffusers' words -> the module."""
    table: dict[str, str] = {}
    for module in sorted(modules):
        owner = next((owner for owner in TEXT_ENCODERS if module.startswith(owner)), "")
        for prefix, meaning in FLAT_PREFIXES.items():
            if meaning == owner:
                stem = prefix + flat(module.removeprefix(owner))
                if table.setdefault(stem, module) != module:
                    raise KeyNameError(
                        f"Modules '{table[stem]}' and '{module}' share the kohya name '{stem}'."
                    )
    return table
