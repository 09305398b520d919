"""Where a denoiser's modules lie: diffusers' paths, and those of the original checkpoints (LDM, SD3, BFL).

Part of `keys`, which spells these paths in the dialects of files. Canonical are diffusers' paths. The
original layouts of SD3 and FLUX keep as one matrix what diffusers splits (queries, keys, values and, in
FLUX's single blocks, the first layer of the MLP), so one original module may hold several of diffusers'
(see `fused`). Sources: the module names of diffusers' own classes, and of CompVis' and Stability's UNet,
Stability's MMDiT and Black Forest Labs' transformer as their checkpoints have them; tests compare with
both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping

from ...family_info import names_of, trainable
from .tables import TABLES

UNETS = names_of(info for info in trainable() if info.denoiser == "unet")
"""Families whose denoiser is a UNet with the layout of latent diffusion."""
TRANSFORMERS = names_of(info for info in trainable() if info.denoiser == "transformer")
"""Families whose denoiser is a transformer."""

_LAYERS = 2  # residual blocks of a level, in every Stable Diffusion UNet

_TRANSFORMER = (
    r"(?:proj_in|proj_out|transformer_blocks\.\d+\.(?:attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2)))"
)
_RESIDUAL = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_RESIDUAL_BACK = {original: name for name, original in _RESIDUAL.items()}
_RESNET = f"(?:{'|'.join(_RESIDUAL)})"
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_UNET = re.compile(
    rf"(?P<side>down|up)_blocks\.(?P<level>\d+)\.(?:resnets\.(?P<residual>\d+)\.(?P<resnet>{_RESNET})"
    rf"|attentions\.(?P<attention>\d+)\.(?P<inner>{_TRANSFORMER})|(?P<sampler>down|up)samplers\.0\.conv)"
    rf"|mid_block\.(?:resnets\.(?P<middle>[01])\.(?P<mid_resnet>{_RESNET})"
    rf"|attentions\.0\.(?P<mid_inner>{_TRANSFORMER}))"
    rf"|(?P<end>{'|'.join(re.escape(name) for name in _UNET_ENDS)})"
)
_LDM_RESNET = "|".join(re.escape(name) for name in _RESIDUAL_BACK)
_LDM = re.compile(
    rf"(?P<side>input|output)_blocks\.(?P<block>\d+)\.(?:0\.(?P<resnet>{_LDM_RESNET})|1\.(?P<inner>{_TRANSFORMER})"
    r"|(?P<down>0\.op)|(?P<up>[12]\.conv))"
    rf"|middle_block\.(?:(?P<middle>[02])\.(?P<mid_resnet>{_LDM_RESNET})|1\.(?P<mid_inner>{_TRANSFORMER}))"
    rf"|(?P<end>{'|'.join(re.escape(name) for name in _UNET_ENDS.values())})"
)

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def original_place(module: str, family: str) -> tuple[str, tuple[str, ...]] | None:
    """Where the original layout of a family has a module of diffusers', or None when it has none.

    Args:
        module: diffusers' path.
        family: one of `UNETS` or `TRANSFORMERS`.

    Returns:
        The original path, and diffusers' paths of all modules that it holds, in the order of its rows.

    Raises:
        ValueError: no original layout of such a family is known.
    """
    if family in UNETS:
        path = _ldm_path(module, family)
        return None if path is None else (path, (module,))
    if family not in TRANSFORMERS:
        raise ValueError(f"No original layout is known for family '{family}'.")
    template, number = _template(module)
    found = _TO_ORIGINAL[family].get(template)
    if found is None:
        return None
    path, members = found
    return path.replace("#", number), tuple(member.replace("#", number) for member in members)


def diffusers_modules(path: str, families: Collection[str] = TRANSFORMERS) -> tuple[str, ...] | None:
    """Diffusers' paths of the modules that an original path holds, or None for a path of no original layout.

    Args:
        path: of a module in its original layout.
        families: of transformers that may be meant; the first that has it counts.
    """
    template, number = _template(path)
    for family in TRANSFORMERS:
        members = _FROM_ORIGINAL[family].get(template) if family in families else None
        if members is not None:
            return tuple(member.replace("#", number) for member in members)
    module = _from_ldm(path)
    return None if module is None else (module,)


def transformers_with(path: str) -> frozenset[str]:
    """Families of transformers that have a module of that path, in diffusers or in their original layout."""
    template, _ = _template(path)
    return frozenset(
        family
        for family in TRANSFORMERS
        if template in _TO_ORIGINAL[family] or template in _FROM_ORIGINAL[family]
    )


def template_of(path: str) -> str:
    """A path with '#' for the number of its block."""
    return _template(path)[0]


def is_diffusers_module(module: str) -> bool:
    """Whether a path is that of a linear layer or convolution of a denoiser in diffusers."""
    return bool(_UNET.fullmatch(module)) or any(
        _template(module)[0] in table for table in _TO_ORIGINAL.values()
    )


def swaps_halves(module: str, family: str, sides: Callable[[], tuple[int, int]]) -> bool:
    """Whether the original layout has the two halves of a module's rows in the other order.

    Diffusers keeps the scale before the shift in the last normalisation, the originals the shift first. SD3's
    last block normalises its text like that too; its rows tell: twice the width there, six times elsewhere.

    Args:
        module: diffusers' path.
        family: of the model; '' where any of those with such a module may be meant.
        sides: gives rows and inputs of the module, where they matter.
    """
    if family and original_place(module, family) in (None, (module, (module,))):
        return False
    if module == "norm_out.linear":
        return True
    if not module.endswith(".norm1_context.linear"):
        return False
    rows, inputs = sides()
    return rows == 2 * inputs


def families_of(module: str) -> frozenset[str]:
    """Families that have a module of that (diffusers') path, by its name alone."""
    if _UNET.fullmatch(module):
        if module.startswith("add_embedding."):
            return frozenset({"sdxl"})
        blocks = [int(number) for number in re.findall(r"transformer_blocks\.(\d+)", module)]
        if any(blocks):
            return frozenset({"sdxl"})
        if re.match(r"(down|up)_blocks\.3\.|down_blocks\.0\.attentions\.|up_blocks\.2\.attentions\.", module):
            return frozenset({"sd1", "sd2"})
        if re.match(r"up_blocks\.0\.attentions\.", module):
            return frozenset({"sdxl"})
        return frozenset(UNETS)
    template, _ = _template(module)
    return frozenset(family for family, table in _TO_ORIGINAL.items() if template in table)


def kernel_of(module: str) -> int:
    """How many pixels wide a UNet's module looks: 3 for its convolutions, 1 for everything else."""
    wide = module in ("conv_in", "conv_out") or module.endswith((".conv1", ".conv2", "samplers.0.conv"))
    return 3 if wide else 1


def block_of(module: str) -> str:
    """The block that a canonical module lies in, for figures and ranks: 'down_blocks.1',
    'text_encoder' ..."""
    if module.startswith("text_encoder"):
        return module.split(".")[0]
    found = re.match(
        r"(?:down_blocks|up_blocks|transformer_blocks|single_transformer_blocks|noise_refiner|context_refiner|layers)\.\d+"
        r"|mid_block",
        module,
    )
    return found[0] if found else "other"


def _ldm_path(module: str, family: str) -> str | None:
    match = _UNET.fullmatch(module)
    if match is None:
        return None
    if match["end"]:
        return _UNET_ENDS[match["end"]]
    if match["mid_resnet"]:
        return f"middle_block.{2 * int(match['middle'])}.{_RESIDUAL[match['mid_resnet']]}"
    if match["mid_inner"]:
        return f"middle_block.1.{match['mid_inner']}"
    down, level = match["side"] == "down", int(match["level"])
    side = "input_blocks" if down else "output_blocks"
    first = level * (_LAYERS + 1) + down  # conv_in is the first input block
    if match["sampler"]:
        if (match["sampler"] == "down") != down:
            return None
        # An upsampler follows what its block has: a residual block, and attention where the level attends.
        attends = level in ((0, 1) if family == "sdxl" else (1, 2, 3))
        return f"{side}.{first + _LAYERS}.{'0.op' if down else f'{1 + attends}.conv'}"
    number = int(match["residual"] or match["attention"])
    if number > (_LAYERS - 1 if down else _LAYERS):
        return None
    inner = f"0.{_RESIDUAL[match['resnet']]}" if match["resnet"] else f"1.{match['inner']}"
    return f"{side}.{first + number}.{inner}"


def _from_ldm(path: str) -> str | None:
    match = _LDM.fullmatch(path)
    if match is None:
        return None
    if match["end"]:
        return {original: name for name, original in _UNET_ENDS.items()}[match["end"]]
    if match["mid_resnet"]:
        return f"mid_block.resnets.{int(match['middle']) // 2}.{_RESIDUAL_BACK[match['mid_resnet']]}"
    if match["mid_inner"]:
        return f"mid_block.attentions.0.{match['mid_inner']}"
    down = match["side"] == "input"
    level, number = divmod(int(match["block"]) - down, _LAYERS + 1)
    side = "down_blocks" if down else "up_blocks"
    if match["down"]:
        return f"{side}.{level}.downsamplers.0.conv" if down and number == _LAYERS and level >= 0 else None
    if match["up"]:
        return f"{side}.{level}.upsamplers.0.conv" if not down and number == _LAYERS else None
    if level < 0 or (down and number == _LAYERS):
        return None
    if match["resnet"]:
        return f"{side}.{level}.resnets.{number}.{_RESIDUAL_BACK[match['resnet']]}"
    return f"{side}.{level}.attentions.{number}.{match['inner']}"


def _template(path: str) -> tuple[str, str]:
    """A path with '#' for the number of its block (the first one), and that number."""
    found = _NUMBER.search(path)
    if found is None:
        return path, ""
    return f"{path[: found.start()]}#{path[found.end() :]}", found[0]


def _members(text: str) -> tuple[str, ...]:
    head, bracket, rest = text.partition("(")
    return tuple(head + name for name in rest.rstrip(")").split(",")) if bracket else (text,)


def _inverse(table: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, tuple[str, ...]]]]:
    for path, text in table.items():
        for member in _members(text):
            yield member, (path, _members(text))


_TO_ORIGINAL = {family: dict(_inverse(TABLES[family])) for family in TRANSFORMERS}
_FROM_ORIGINAL = {
    family: {path: _members(text) for path, text in TABLES[family].items()} for family in TRANSFORMERS
}
