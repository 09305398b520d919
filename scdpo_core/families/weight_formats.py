"""How a file stores its weights: as plain numbers, or as 8-bit codes beside a factor that scales them.

Codes without their factor look like weights, load like weights, and are none. So what is known is multiplied
out here, and whatever is not is refused by its name. Sources: ComfyUI's 'scaled' 8-bit files and its settings
of layers (`comfy_quant`), and DeepSeek's and transformers' blocks of 128 x 128 (`weight_scale_inv`).
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..io.files import name_for_safetensors
from ..io.safetensors_header import Header, read_header
from ..types import ScdpoError
from .component_layout import DENOISER_PREFIX
from .detect import read_config

# What the factor of 'x.weight' is called. All are multiplied with, that of the last name too.
_FACTORS = ("scale_weight", "weight_scale", "weight_scale_inv")
# What stands beside weights and is none.
_MARKS = (*(f".{name}" for name in _FACTORS), ".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
# Second factors, zero points and packed forms.
_UNREAD = {
    "weight_scale_2": "NVFP4 (4 bits)",
    "weight_zero_point": "codes with zero points",
    "zero_point": "codes with zero points",
    "pre_quant_scale": "AWQ (4 bits)",
    "qweight": "packed 4 bits",
    "SCB": "bitsandbytes' 8 bits",
    "weight.absmax": "bitsandbytes' 4 bits",
    "weight._data": "quanto's packed form",
    "svd_up": "SDNQ's packed form",
}
_PLAIN = ("F64", "F32", "F16", "BF16")
_CODES = ("F8_E4M3", "F8_E5M2", "I8")
# Settings of a layer that change nothing beyond what the factor's shape says.
_HARMLESS = ("format", "full_precision_matrix_mult", "group_size", "block_size", "orig_dtype", "orig_shape")
_COUNTS = ("position_ids", "mask")
_BLOCK = 128
_ADVICE = "Such codes are no weights to train on. Get this model in 16 bits, or as a 'scaled' fp8 file."


def check_stored(header: Header, prefix: str, *, factors: bool = True) -> None:
    """Whether the weights of a part of a file can be read as what they stand for.

    Args:
        header: of the file.
        prefix: how the names of the part begin.
        factors: whether codes will be multiplied with their factors; else those are refused too.

    Raises:
        ScdpoError: they cannot; names the first that is in the way.
    """
    names = [name for name in header.shapes if name.startswith(prefix)]
    for name in names:
        unread = next((form for end, form in _UNREAD.items() if name.endswith(f".{end}")), None)
        if unread is not None:
            raise ScdpoError(f"'{name}' shows that the weights are stored as {unread}. {_ADVICE}")
    for name in names:
        if is_weight(name):
            _check_weight(header, name, factors)


def read_tensors(
    path: Path, prefix: str, dtype: torch.dtype, only: Container[str] | None = None
) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names; floats become `dtype`.

    8 bits are a way to store weights; nothing is computed in them. What has a factor is multiplied with it.

    Args:
        path: of the file.
        prefix: how the names begin.
        dtype: of the floats.
        only: the rests of the names that are wanted; None: all.

    Raises:
        ScdpoError: the weights are unknown codes, see `weight_formats.check_stored`, or hold NaN.
    """
    header = read_header(path)
    check_stored(header, prefix)
    tensors = {}
    with name_for_safetensors(path) as opened, safe_open(opened, framework="pt") as handle:
        for name in header.shapes:
            if not name.startswith(prefix) or not is_weight(name):
                continue
            if only is not None and name.removeprefix(prefix) not in only:
                continue
            tensor = handle.get_tensor(name)
            factor = factor_of(header, name)
            if factor is not None:
                tensor = multiplied(tensor, handle.get_tensor(factor))
            if name.endswith(("weight", "bias")) and is_nan(tensor):
                raise ScdpoError(f"'{name}' holds NaN, so the file is damaged. Download or copy it again.")
            tensors[name.removeprefix(prefix)] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensors


def check_folder(folder: Path) -> None:
    """Whether the weights of a diffusers or transformers folder stand for themselves, as those libraries read
    them.

    Raises:
        ScdpoError: they do not; names the first that is in the way.
    """
    config = folder / "config.json"
    settings = read_config(config).get("quantization_config") if config.is_file() else None
    if settings:
        method = (
            settings.get("quant_method", "a way unknown here") if isinstance(settings, dict) else settings
        )
        raise ScdpoError(
            f"{folder.name}/config.json says that the weights are compressed by {method}. {_ADVICE}"
        )
    for file in sorted(folder.glob("*.safetensors")):
        try:
            check_stored(read_header(file), "", factors=False)
        except ScdpoError as error:
            raise ScdpoError(f"{file.name}: {error}") from error


def is_weight(name: str) -> bool:
    """Whether a tensor is a network's own, not something that stands beside one."""
    return not name.endswith(_MARKS)


def factor_of(header: Header, name: str) -> str | None:
    """The name of the tensor that a weight is multiplied with; None where it stands for itself."""
    if not name.endswith(".weight"):
        return None
    found = (name.removesuffix("weight") + factor for factor in _FACTORS)
    return next((factor for factor in found if factor in header.shapes), None)


def multiplied(weight: Tensor, factor: Tensor) -> Tensor:
    """Codes times their factor, in float32: one for all, one a row, or one a block.

    Raises:
        ScdpoError: the factor has a shape that is not known.
    """
    blocks = _blocks(tuple(weight.shape), tuple(factor.shape))
    if blocks is None:
        raise ScdpoError(
            f"a factor of shape {tuple(factor.shape)} does not fit {tuple(weight.shape)} weights"
        )
    factor = factor.float()
    factor = factor.reshape(*factor.shape[: weight.ndim], *[1] * (weight.ndim - factor.ndim))
    for axis, (size, length) in enumerate(zip(weight.shape, blocks, strict=True)):
        if factor.shape[axis] > 1 and length > 1:
            factor = factor.repeat_interleave(length, axis).narrow(axis, 0, size)
    return weight.float() * factor


def is_nan(weight: Tensor) -> bool:
    """Whether any of its numbers is NaN: one pass, without a mask of the weight's size."""
    if not weight.is_floating_point() or weight.numel() == 0:
        return False
    values = weight.float() if weight.element_size() == 1 else weight
    return bool(values.aminmax().max.isnan())


def _blocks(weight: tuple[int, ...], factor: tuple[int, ...]) -> tuple[int, ...] | None:
    """How many weights in each direction share a number of the factor; None where that cannot be told."""
    if math.prod(factor) == 1:
        return weight
    if factor == weight[:1]:
        factor = (*factor, *[1] * (len(weight) - 1))
    if len(factor) != len(weight):
        return None
    lengths = []
    for size, count in zip(weight, factor, strict=True):
        if count == 1:
            lengths.append(size)
        elif count == math.ceil(size / _BLOCK):
            lengths.append(_BLOCK)
        elif count and size % count == 0:
            lengths.append(size // count)
        else:
            return None
    return tuple(lengths)


def _check_weight(header: Header, name: str, factors: bool) -> None:
    shape, form = header.shapes[name], header.dtypes.get(name, "F32")
    if 0 in shape:
        raise ScdpoError(f"'{name}' is empty, so the file is damaged. Download or copy it again.")
    layer = name.removesuffix(".weight")
    settings = header.quantized.get(layer, header.quantized.get(layer.removeprefix(DENOISER_PREFIX)))
    if settings is not None and name.endswith(".weight"):
        _check_settings(name, settings)
    factor = factor_of(header, name)
    if factor is None:
        # Positions and counters are whole numbers by nature.
        counts = not name.endswith(("weight", "bias")) and (len(shape) < 2 or name.endswith(_COUNTS))
        if form not in (*_PLAIN, "F8_E4M3", "F8_E5M2") and not counts:
            raise ScdpoError(f"'{name}' is stored as {form} without a factor. {_ADVICE}")
        if settings is not None and name.endswith(".weight") and form not in _PLAIN:
            raise ScdpoError(f"The factor of '{name}' is missing. {_ADVICE}")
        return
    if not factors:
        raise ScdpoError(f"'{name}' has a factor, which is not read in a folder. {_ADVICE}")
    if 0 in header.shapes[factor]:
        raise ScdpoError(f"'{factor}' is empty, so nothing says how large the weights are. {_ADVICE}")
    if form not in (*_PLAIN, *_CODES) or header.dtypes.get(factor, "F32") not in _PLAIN:
        raise ScdpoError(f"'{name}' is stored as {form} in a way that is not read here. {_ADVICE}")
    if _blocks(shape, header.shapes[factor]) is None:
        raise ScdpoError(f"'{factor}' has {header.shapes[factor]} numbers for {shape} weights. {_ADVICE}")


def _check_settings(name: str, settings: Mapping[str, Any]) -> None:
    form = str(settings.get("format", ""))
    extra = next((key for key, value in settings.items() if value and key not in _HARMLESS), None)
    if extra is not None or not form.startswith(("float8_e", "int8")):
        more = f" with '{extra}'" if extra else ""
        raise ScdpoError(f"'{name}' is stored as {form or 'codes'}{more}. {_ADVICE}")
