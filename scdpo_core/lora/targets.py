"""Which modules of a network a LoRA trains, and with which rank."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from ..types import ScdpoError
from .formats.layouts import block_of

TargetPreset = Literal["attention", "self-attention", "attention+ff", "all-linear", "conv"]

# UNets have attn1 and attn2, SD3 attn and attn2, FLUX attn, Z-Image attention; CLIP has self_attn.
_ATTENTION = (
    r"(attn[12]?|attention)\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out|to_qkv_mlp_proj)"
    r"|single_transformer_blocks\.\d+\.attn\.to_out"
    r"|self_attn\.(q|k|v|out)_proj"
)
# A UNet's attention to the prompt is attn2. Transformers see image and prompt in one attention, called attn.
_SELF_ATTENTION = r"attn1\.(to_q|to_k|to_v|to_out\.0)|self_attn\.(q|k|v|out)_proj"
_FEED_FORWARD = (
    r"ff(_context)?\.net\.(0\.proj|2)|single_transformer_blocks\.\d+\.(proj_mlp|proj_out)|mlp\.fc[12]"
    r"|feed_forward\.w[123]|(img|txt)_mlp\.net\.(0\.proj|2)|ff(_context)?\.linear_(in|out)"
)
_REST = (
    r"proj_in|proj_out|time_emb_proj|(time|add)_embedding\.linear_[12]"
    r"|norm1(_context)?\.linear|norm\.linear|norm_out\.linear|(context|x)_embedder"
    r"|time_(text|guidance)_embed\.\w+\.linear_[12]|(double|single)_stream_modulation(_img|_txt)?\.linear"
    r"|adaLN_modulation\.[01]|all_final_layer\.2-1\.linear|all_x_embedder\.2-1|cap_embedder\.1|t_embedder\.mlp\.[02]"
)
_CONVOLUTIONS = r"resnets\.\d+\.(conv1|conv2|conv_shortcut)|(down|up)samplers\.0\.conv"
_PRESETS: dict[str, re.Pattern[str]] = {
    "attention": re.compile(rf"(.*\.)?({_ATTENTION})"),
    "self-attention": re.compile(rf"(.*\.)?({_SELF_ATTENTION})"),
    "attention+ff": re.compile(rf"(.*\.)?({_ATTENTION}|{_FEED_FORWARD})"),
    "all-linear": re.compile(rf"(.*\.)?({_ATTENTION}|{_FEED_FORWARD}|{_REST})"),
    "conv": re.compile(rf"(.*\.)?({_ATTENTION}|{_FEED_FORWARD}|{_REST}|{_CONVOLUTIONS})"),
}


def target_modules(network: nn.Module, targets: TargetPreset) -> list[str]:
    """Paths of the modules that a preset trains, in the network's order.

    attention: queries, keys, values and output of every attention. self-attention: in a UNet, of those alone
    that see no prompt. attention+ff: every attention and the feed-forward layers beside them. all-linear:
    also the projections into and out of each transformer (linear or 1x1 convolution), the time embedding with
    its projection in every residual block, and a transformer's modulations and embedders. conv: also the
    convolutions of the residual blocks and between the levels, which look at neighbours; they gain a safety
    LoRA little for their size, and older loaders skip them.

    Args:
        network: a denoiser or a CLIP text encoder, with modules of diffusers' or transformers' names.
        targets: the preset.

    Raises:
        ValueError: there is no such preset.
        ScdpoError: the network has no such modules.
    """
    if targets not in _PRESETS:
        raise ValueError(f"There is no target preset '{targets}'; choose one of {', '.join(_PRESETS)}.")
    trainable = is_convolution if targets == "conv" else is_linear
    names = [
        name
        for name, module in network.named_modules()
        if _PRESETS[targets].fullmatch(name) and trainable(module)
    ]
    if not names:
        raise ScdpoError(f"This model has no modules that a LoRA on '{targets}' could train.")
    return names


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix: linear, or a 1x1 convolution."""
    return isinstance(module, nn.Linear) or (is_convolution(module) and module.kernel_size == (1, 1))


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is linear or a convolution of whatever kernel that mixes all channels."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def module_ranks(modules: Sequence[str], rank: int, by_block: Mapping[str, int]) -> dict[str, int]:
    """The rank of each module.

    Args:
        modules: canonical paths.
        rank: of every module in no block of `by_block`.
        by_block: block (see `layouts.block_of`), or the beginning of a module's path -> rank; the longest
            that fits counts, and 0 leaves the block out.

    Raises:
        ScdpoError: a block has no module here, or a rank is negative, or none is left.
    """
    ranks = {}
    used = set()
    for module in modules:
        fitting = [block for block in by_block if block == block_of(module) or _begins(module, block)]
        block = max(fitting, key=len, default=None)
        used.update(fitting)
        ranks[module] = rank if block is None else by_block[block]
    unused = sorted(set(by_block) - used)
    if unused:
        blocks = ", ".join(dict.fromkeys(block_of(module) for module in modules))
        raise ScdpoError(
            f"There is a rank for '{unused[0]}', where the LoRA trains nothing. Blocks: {blocks}."
        )
    if min(ranks.values()) < 0:
        raise ScdpoError("A rank cannot be negative; 0 leaves a block out.")
    if not any(ranks.values()):
        raise ScdpoError("Every block has rank 0, so there is nothing to train.")
    return {module: own for module, own in ranks.items() if own}


def _begins(module: str, path: str) -> bool:
    return module == path or module.startswith(f"{path}.")
