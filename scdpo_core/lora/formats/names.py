"""How LoRA keys are spelled: the beginnings and endings of every dialect, and dots out of underscores.

Part of `keys`, which knows what a spelling means.
"""

from __future__ import annotations

import re

from ...types import ScdpoError


class KeyNameError(ScdpoError):
    """A weight whose name nobody here understands; the message names it."""


PARTS = ("down", "up", "alpha")
"""What a LoRA holds for each module: [rank, in], [out, rank], a number; it adds up @ down * alpha / rank."""

LOHA_PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
"""Of a LoHa, in LyCORIS' names: (w1_a @ w1_b) * (w2_a @ w2_b), with kernels t1 and t2 in convolutions."""
LOKR_PARTS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
"""Of a LoKr: the Kronecker product of w1 and w2, either of which may be a product of two."""
ALL_PARTS = (*PARTS, "mid", "dora_scale", *LOHA_PARTS, *LOKR_PARTS)
"""Also a plain LoRA's kernel of a convolution (`mid`, Tucker), and DoRA's magnitudes ([out, 1] or [1,
in])."""

TEXT_ENCODERS = ("text_encoder.", "text_encoder_2.")
"""How canonical module paths outside the denoiser begin."""

FLAT_PREFIXES = {
    "lora_unet_": "",
    "lora_transformer_": "",
    "lycoris_": "",
    "lora_te_": TEXT_ENCODERS[0],
    "lora_te1_": TEXT_ENCODERS[0],
    "lora_te2_": TEXT_ENCODERS[1],
}
DOTTED_PREFIXES = {
    "base_model.model.": "",
    "unet.": "",
    "transformer.": "",
    "diffusion_model.": "",
    "text_encoders.clip_l.transformer.": TEXT_ENCODERS[0],
    "text_encoders.clip_h.transformer.": TEXT_ENCODERS[0],
    "text_encoders.clip_g.transformer.": TEXT_ENCODERS[1],
    TEXT_ENCODERS[0]: TEXT_ENCODERS[0],
    TEXT_ENCODERS[1]: TEXT_ENCODERS[1],
}
_LYCORIS = "|".join((*LOHA_PARTS, *LOKR_PARTS))
# In this order: kohya's and LyCORIS', peft's (with or without the adapter's name), diffusers' layers,
# diffusers' attention processors.
_SUFFIXES = (
    re.compile(r"(?P<module>.+)\.lora_(?P<part>down|up|mid)\.weight"),
    re.compile(rf"(?P<module>.+)\.(?P<part>alpha|dora_scale|{_LYCORIS})"),
    re.compile(rf"(?P<module>.+)\.(?P<part>{_LYCORIS})\.[^.]+"),
    re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(\.[^.]+)?\.weight"),
    re.compile(r"(?P<module>.+)\.lora_(?P<part>magnitude_vector)(\.[^.]+)?(\.weight)?"),
    re.compile(r"(?P<module>.+)\.lora(_linear_layer)?\.(?P<part>down|up)\.weight"),
    re.compile(r"(?P<module>.+)\.processor\.(?P<layer>to_[qkv]|to_out)_lora\.(?P<part>down|up)\.weight"),
)
_PART = {"A": "down", "B": "up", "magnitude_vector": "dora_scale"}
_OTHER_KINDS = {
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "a1.weight": "GLoRA",
    "diff": "a full difference",
    "w_norm": "a norm's difference",
    "diff_b": "a bias' difference",
    "on_input": "IA3",
}

# Words with an underscore of their own in the modules of the denoisers and CLIP. An underscore or the edge
# stands on either side of a word.
_WORDS = re.compile(
    r"(?<![^_])(?:"
    + "|".join(
        (
            r"single_transformer_blocks|(?:down|up|transformer|input|output|double|single|joint)_blocks",
            r"mid_block|middle_block|x_block|context_block|(?:noise|context)_refiner",
            r"all_x_embedder|all_final_layer|cap_embedder|feed_forward",
            r"time_text_embed|(?:timestep|text|guidance|context|x|t|y)_embedder|pos_embed",
            r"(?:time|add|class)_embedding|(?:time|add)_emb_proj|time_embed|label_emb|time_proj|linear_[12]",
            r"conv_(?:in|out|shortcut)|skip_connection|(?:in|emb|out)_layers|(?:in|out)_layer|final_layer",
            r"distilled_guidance_layer|in_proj|linear_(?:in|out)|to_qkv_mlp_proj|time_guidance_embed|(?:double|single)_stream_modulation(?:_(?:img|txt))?|(?:img|txt)_(?:attn|mlp|mod|in)|(?:time|vector|guidance)_in|adaLN_modulation",
            r"norm1_context|norm_out|ff_context|add_[qkv]_proj|to_add_out|proj_(?:in|out|mlp)|to_(?:q|k|v|out)",
            r"text_(?:model|projection)|self_attn|(?:q|k|v|out)_proj",
        )
    )
    + r")(?![^_])"
)


def split_key(name: str) -> tuple[str, str]:
    """The stem of a key, without its prefix' meaning, and its part."""
    for form in _SUFFIXES:
        match = form.fullmatch(name)
        if match is None:
            continue
        fields = match.groupdict()
        module, layer = fields["module"], fields.get("layer")
        if layer is not None:
            # The processors had no Sequential round the output projection.
            module = f"{module}.{'to_out.0' if layer == 'to_out' else layer}"
        return module, _PART.get(fields["part"], fields["part"])
    kind = next((kind for end, kind in _OTHER_KINDS.items() if name.endswith(f".{end}")), None)
    if kind is not None:
        raise KeyNameError(
            f"'{name}' belongs to {kind}, which is not read here; LoRA, LoHa, LoKr and DoRA are."
        )
    if name.startswith("bundle_emb."):
        raise KeyNameError(
            "the file carries textual inversion embeddings beside the LoRA ('bundle_emb'), which are not "
            "read here. Use the LoRA without them (on Civitai often a separate download), or take them out "
            "with the trainer that made it."
        )
    raise KeyNameError(f"'{name}' is not a LoRA weight's name in any dialect known here.")


def strip_prefix(stem: str) -> tuple[str, str]:
    """Owner and path of a stem with dots, whatever stands before them."""
    owner, path = "", stem
    while prefix := next((prefix for prefix in DOTTED_PREFIXES if path.startswith(prefix)), None):
        # `transformer.` is a prefix of the pipeline's part once, never a module's name.
        owner, path = DOTTED_PREFIXES[prefix] or owner, path.removeprefix(prefix)
    return owner, path


def flat(path: str) -> str:
    """A path as kohya's forms have it."""
    return path.replace(".", "_")


def unflatten(text: str) -> str:
    """Put the dots back that kohya's form turned into underscores."""
    protected = _WORDS.sub(lambda word: word[0].replace("_", "\0"), text)
    return protected.replace("_", ".").replace("\0", "_")
