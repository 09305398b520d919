"""Names of LoRA weights: one canonical form in memory, dialects at the edge of files.

    canonical  down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.down | .up | .alpha
               text_encoder.text_model.encoder.layers.0.self_attn.q_proj.down (text_encoder_2. for the second)
    kohya      lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
               lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha     (lora_te1_, lora_te2_ with two)
    peft       unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight

No other file knows a dialect. Kohya's form, which every host reads, turns dots into underscores, and
underscores were there before: going back needs the list of the model's modules, or failing that a
vocabulary of their words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..types import ScdpoError


class KeyNameError(ScdpoError):
    """A weight whose name nobody here understands; the message names it."""


PARTS = ("down", "up", "alpha")
"""What a LoRA holds for each module: [rank, in], [out, rank], a number; it adds up @ down * alpha / rank."""

TEXT_ENCODERS = ("text_encoder.", "text_encoder_2.")
"""How canonical module paths outside the denoiser begin."""

_KOHYA_SUFFIX = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
_KOHYA_PART = {suffix: part for part, suffix in _KOHYA_SUFFIX.items()}
_KOHYA_PREFIX = {
    "lora_unet_": "",
    "lora_te_": TEXT_ENCODERS[0],
    "lora_te1_": TEXT_ENCODERS[0],
    "lora_te2_": TEXT_ENCODERS[1],
}
_PEFT_SUFFIX = {"down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha"}
_PEFT_PART = {"A": "down", "B": "up", "down": "down", "up": "up"}

# Newest first: peft (with or without the adapter's name), diffusers' layers, diffusers' attention processors.
_PEFT_FORMS = (
    re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(\.[^.]+)?\.weight"),
    re.compile(r"(?P<module>.+)\.lora(_linear_layer)?\.(?P<part>down|up)\.weight"),
    re.compile(r"(?P<module>.+)\.processor\.(?P<layer>to_[qkv]|to_out)_lora\.(?P<part>down|up)\.weight"),
    re.compile(r"(?P<module>.+)\.alpha"),
)

# Words with an underscore of their own in the modules of diffusers' UNets and CLIP text encoders.
_WORDS = re.compile(
    "|".join(
        (
            "(?:down|up|transformer)_blocks|mid_block",
            "(?:time|add)_embedding|(?:time|add)_emb_proj|time_proj|linear_[12]",
            "conv_(?:in|out|shortcut)|proj_(?:in|out)|to_(?:q|k|v|out)|class_embedding",
            "text_(?:model|projection)|self_attn|(?:q|k|v|out)_proj",
        )
    )
)
_ROOTS = {
    "": re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)(\.|$)"),
    TEXT_ENCODERS[0]: re.compile(r"text_(model|projection)(\.|$)"),
    TEXT_ENCODERS[1]: re.compile(r"text_(model|projection)(\.|$)"),
}


def split(name: str) -> tuple[str, str]:
    """Module path and part of a canonical name.

    Raises:
        KeyNameError: it is not canonical.
    """
    module, _, part = name.rpartition(".")
    if not module or part not in PARTS:
        raise KeyNameError(f"'{name}' is not a canonical LoRA name (module path, then one of {PARTS}).")
    return module, part


def to_kohya(name: str, *, two_text_encoders: bool = False) -> str:
    """Kohya's name for a canonical one.

    Args:
        name: canonical.
        two_text_encoders: whether the model has two (SDXL), which renames the first one's weights.

    Raises:
        KeyNameError: `name` is not canonical.
    """
    module, part = split(name)
    prefix = "lora_unet_"
    if module.startswith(TEXT_ENCODERS[0]):
        prefix = "lora_te1_" if two_text_encoders else "lora_te_"
        module = module.removeprefix(TEXT_ENCODERS[0])
    elif module.startswith(TEXT_ENCODERS[1]):
        prefix = "lora_te2_"
        module = module.removeprefix(TEXT_ENCODERS[1])
    return f"{prefix}{module.replace('.', '_')}.{_KOHYA_SUFFIX[part]}"


def to_peft(name: str) -> str:
    """The name that peft and diffusers use for a canonical one.

    Raises:
        KeyNameError: `name` is not canonical.
    """
    module, part = split(name)
    prefix = "" if module.startswith(TEXT_ENCODERS) else "unet."
    return f"{prefix}{module}.{_PEFT_SUFFIX[part]}"


def canonical_names(keys: Iterable[str], modules: Iterable[str] | None = None) -> dict[str, str]:
    """The canonical name of each key of a file, in whichever dialect it is.

    Args:
        keys: names as they stand in the file.
        modules: paths of the modules that the model has (text encoders' with their prefix of
            `TEXT_ENCODERS`). None: read kohya's names with the vocabulary of diffusers' UNets and CLIP,
            and trust the others.

    Raises:
        KeyNameError: a key is in no dialect, or names a module that is not in `modules`; or two
            keys mean the same weight.
    """
    known = None if modules is None else frozenset(modules)
    by_kohya_name = None if known is None else _kohya_table(known)
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for key in keys:
        if key.startswith(tuple(_KOHYA_PREFIX)):
            name = _from_kohya(key, by_kohya_name)
        else:
            name = _from_peft(key, known)
        if name in owners:
            raise KeyNameError(f"'{owners[name]}' and '{key}' are two names for the same weight.")
        owners[name] = key
        names[key] = name
    return names


def _kohya_table(modules: frozenset[str]) -> dict[str, str]:
    table: dict[str, str] = {}
    for module in sorted(modules):
        for two in (False, True):
            flat = to_kohya(f"{module}.alpha", two_text_encoders=two).removesuffix(".alpha")
            if table.setdefault(flat, module) != module:
                raise KeyNameError(f"Modules '{table[flat]}' and '{module}' share the kohya name '{flat}'.")
    return table


def _from_kohya(key: str, by_kohya_name: dict[str, str] | None) -> str:
    flat, _, suffix = key.partition(".")
    part = _KOHYA_PART.get(suffix)
    if part is None:
        raise KeyNameError(
            f"'{key}' is not a weight of a plain LoRA (those end in {', '.join(_KOHYA_PART)}). "
            "LoHa, LoKr and DoRA files cannot be read."
        )
    if by_kohya_name is not None:
        module = by_kohya_name.get(flat)
        if module is None:
            raise KeyNameError(f"'{key}' names no module of this model: the LoRA is for another one.")
        return f"{module}.{part}"
    prefix = next(prefix for prefix in _KOHYA_PREFIX if flat.startswith(prefix))
    module = _spell(flat.removeprefix(prefix))
    owner = _KOHYA_PREFIX[prefix]
    if not _ROOTS[owner].match(module):
        raise KeyNameError(f"'{key}' names no module of a model with diffusers' names.")
    return f"{owner}{module}.{part}"


def _spell(flat: str) -> str:
    """Put the dots back that kohya's form turned into underscores."""
    protected = _WORDS.sub(lambda word: word[0].replace("_", "\0"), flat)
    return protected.replace("_", ".").replace("\0", "_")


def _from_peft(key: str, known: frozenset[str] | None) -> str:
    path = key.removeprefix("base_model.model.").removeprefix("unet.")
    for form in _PEFT_FORMS:
        match = form.fullmatch(path)
        if match is None:
            continue
        fields = match.groupdict()
        module = fields["module"]
        layer = fields.get("layer")
        if layer is not None:
            # The processors had no Sequential round the output projection.
            module = f"{module}.{'to_out.0' if layer == 'to_out' else layer}"
        if known is not None and module not in known:
            raise KeyNameError(f"'{key}' names no module of this model: the LoRA is for another one.")
        return f"{module}.{_PEFT_PART[fields['part']] if 'part' in fields else 'alpha'}"
    raise KeyNameError(f"'{key}' is not a LoRA weight's name, neither kohya's nor peft's nor diffusers'.")
