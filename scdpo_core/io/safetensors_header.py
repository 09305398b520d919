"""What a safetensors file says of itself in its header, without reading a single weight."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..types import ScdpoError
from .files import is_lfs_pointer, is_pickle, name_for_safetensors

Shapes = Mapping[str, tuple[int, ...]]
"""The name and shape of every tensor of a file."""

_PICKLES = {".ckpt", ".pt", ".pth", ".bin"}
_PREDICTIONS = {
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v_pred": "v_prediction",
    "vpred": "v_prediction",
    "velocity": "v_prediction",
    "epsilon": "epsilon",
    "eps": "epsilon",
    "noise": "epsilon",
}
# Metadata that names what is predicted: the standard's, an older one, and what people write by hand.
_PREDICTS = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type")
# sd-scripts' own, and the marks' names as metadata.
_SAYS_V = ("ss_v_parameterization", "v_parameterization", "v_pred")
_SAYS_ZERO_SNR = ("ss_zero_terminal_snr", "zero_terminal_snr", "ztsnr")

_LAYER_SETTINGS = ".comfy_quant"
_ALL_SETTINGS = "_quantization_metadata"
_MOST_SETTINGS = 4096  # bytes of a layer's; they have some fifty


@dataclass(frozen=True)
class Header:
    """The header of a file.

    Attributes:
        shapes: of every tensor.
        metadata: what was written beside them.
        dtypes: number format of every tensor, as safetensors calls it ('F16', 'I8').
        quantized: ComfyUI's settings of the layers that it stores as codes, by the layer's name.
    """

    shapes: Shapes
    metadata: Mapping[str, str] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    quantized: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def begins(self, *prefixes: str) -> bool:
        """Return whether any tensor's name begins with one of these."""
        return any(name.startswith(prefixes) for name in self.shapes)

    def shape(self, *names: str) -> tuple[int, ...]:
        """Return the shape of the first of these tensors that is there; () if none is."""
        return next((self.shapes[name] for name in names if name in self.shapes), ())

    @property
    def prediction(self) -> str | None:
        """What the file says it predicts, by an empty tensor 'v_pred' or in its metadata; else None."""
        if "v_pred" in self.shapes:
            return "v_prediction"
        prediction = next((_PREDICTIONS[text] for text in self._predicts() if text in _PREDICTIONS), None)
        return prediction or ("v_prediction" if self._says(_SAYS_V) else None)

    @property
    def unknown_prediction(self) -> str | None:
        """What the metadata says it predicts, where that is nothing known here; else None."""
        return None if self.prediction else next(self._predicts(), None)

    @property
    def zero_snr(self) -> bool:
        """Whether the file says that its schedule ends in pure noise, by an empty tensor 'ztsnr' or in its
        metadata."""
        return "ztsnr" in self.shapes or self._says(_SAYS_ZERO_SNR)

    def _predicts(self) -> Iterator[str]:
        for key in _PREDICTS:
            text = self.metadata.get(key, "").strip().lower().replace("-", "_").replace(" ", "_")
            if text:
                yield text

    def _says(self, keys: Iterable[str]) -> bool:
        return any(self.metadata.get(key, "").strip().lower() in ("true", "1", "yes") for key in keys)


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file.

    Raises:
        ScdpoError: it is a pickle or another foreign format, or it is damaged or cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise ScdpoError(
            "Pickle files (.ckpt, .pt, .bin) can run code when they are opened, so they are not read. "
            "Use the .safetensors version of this model."
        )
    if suffix in (".gguf", ".sft.gguf"):
        raise ScdpoError("GGUF files are made for drawing only. Use the .safetensors version of this model.")
    try:
        with name_for_safetensors(path) as name, safe_open(name, framework="pt") as handle:
            shapes = {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118
            metadata = dict(handle.metadata() or {})
            dtypes = _dtypes(path)
            return Header(shapes, metadata, dtypes, _settings(handle, shapes, dtypes, metadata))
    except (SafetensorError, OSError) as error:
        try:
            pickled = is_pickle(path)
        except OSError as refused:
            raise ScdpoError(f"This file cannot be read ({refused.strerror or refused}).") from refused
        if is_lfs_pointer(path):
            what = "This is a Git LFS pointer, not the file itself. Run 'git lfs pull' in its repository."
        elif pickled:
            what = "This is a renamed pickle file, which can run code. Get a .safetensors one."
        else:
            what = f"This file is damaged or incomplete ({error}). Download or copy it again."
        raise ScdpoError(what) from error


def _dtypes(path: Path) -> dict[str, str]:
    """Read the dtypes of a file that safetensors accepted; older versions of it report shapes only."""
    with path.open("rb") as stream:
        entries = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return {name: entry["dtype"] for name, entry in entries.items() if name != "__metadata__"}


def _settings(
    handle: Any, shapes: Shapes, dtypes: Mapping[str, str], metadata: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    layers = _object(metadata.get(_ALL_SETTINGS, "")).get("layers")
    settings = dict(layers) if isinstance(layers, dict) else {}
    for name, shape in shapes.items():
        if name.endswith(_LAYER_SETTINGS) and dtypes[name] == "U8" and math.prod(shape) <= _MOST_SETTINGS:
            text = bytes(handle.get_tensor(name).flatten().tolist()).decode("utf-8", "replace")
            settings[name.removesuffix(_LAYER_SETTINGS)] = _object(text)
    return {name: value if isinstance(value, dict) else {} for name, value in settings.items()}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def numbers(names: Iterable[str], before: str) -> set[int]:
    """Return the block numbers that follow `before`, as in 'joint_blocks.7.x_block'."""
    indexes = (name.split(before, 1)[1].split(".", 1)[0] for name in names if before in name)
    return {int(number) for number in indexes if number.isdecimal() and len(number) < 9}


def block_count(names: Iterable[str], before: str) -> int:
    """Return how many blocks follow `before`.

    Raises:
        ScdpoError: some are missing; a name with a huge number must not make a huge network.
    """
    indexes = numbers(names, before)
    missing = next((number for number in range(len(indexes)) if number not in indexes), None)
    if missing is not None or not indexes:
        raise ScdpoError(f"{before}{missing or 0} is missing: the file is incomplete")
    return len(indexes)
