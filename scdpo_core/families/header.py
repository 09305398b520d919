"""What a safetensors file says of itself in its header, without reading a single weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..files import is_pickle
from ..types import ScdpoError
from .layout import Shapes

_PICKLES = {".ckpt", ".pt", ".pth", ".bin"}
_PREDICTIONS = {
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "epsilon": "epsilon",
    "eps": "epsilon",
}


@dataclass(frozen=True)
class Header:
    """The header of a file.

    Attributes:
        shapes: of every tensor.
        metadata: what was written beside them.
    """

    shapes: Shapes
    metadata: Mapping[str, str] = field(default_factory=dict)

    def begins(self, *prefixes: str) -> bool:
        """Whether any tensor's name begins with one of these."""
        return any(name.startswith(prefixes) for name in self.shapes)

    def shape(self, *names: str) -> tuple[int, ...]:
        """The shape of the first of these tensors that is there; () if none is."""
        return next((self.shapes[name] for name in names if name in self.shapes), ())

    @property
    def prediction(self) -> str | None:
        """What the file says it predicts, by an empty tensor 'v_pred' or in its metadata; else None."""
        if "v_pred" in self.shapes:
            return "v_prediction"
        said = self.metadata.get("modelspec.prediction_type", self.metadata.get("modelspec.predict_key", ""))
        return _PREDICTIONS.get(said.lower())

    @property
    def zero_snr(self) -> bool:
        """Whether the file says that its schedule ends in pure noise: an empty tensor 'ztsnr'."""
        return "ztsnr" in self.shapes


def read_header(path: Path) -> Header:
    """The header of a safetensors file.

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
        with safe_open(str(path), framework="pt") as handle:
            shapes = {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
            return Header(shapes, dict(handle.metadata() or {}))
    except (SafetensorError, OSError) as error:
        try:
            pickled = is_pickle(path)
        except OSError as refused:
            raise ScdpoError(f"This file cannot be read ({refused.strerror or refused}).") from refused
        if pickled:
            what = "This is a renamed pickle file, which can run code. Get a .safetensors one."
        else:
            what = f"This file is damaged or incomplete ({error}). Download or copy it again."
        raise ScdpoError(what) from error


def numbers(names: Iterable[str], before: str) -> set[int]:
    """The block numbers that follow `before`, as in 'joint_blocks.7.x_block'."""
    found = (name.split(before, 1)[1].split(".", 1)[0] for name in names if before in name)
    return {int(number) for number in found if number.isdigit()}
