"""Convert MobileNetV2Mid of the npm package nsfwjs 4.4.0 to the ONNX file that the embedded scorer reads.

    npm pack nsfwjs@4.4.0
    python tools/convert_nsfwjs.py nsfwjs-4.4.0.tgz scdpo_core/cost/weights/nsfwjs-mid.onnx

None of the package's code runs: its `dist/models/mobilenet_v2_mid/*.min.js` hold the manifest of the
tensors and their bytes in base64, and this reads both as text. A tensor's value is `byte * scale + min`;
the file keeps the bytes, so it is no larger than the package's. The graph is MobileNetV2 (arXiv
1801.04381), width 1.4, its batch norms folded; opset 13 and IR version 7, which onnxruntime has read since
1.8. No ONNX library is needed: an ONNX file is a protocol buffer, and `_field` and `_int` write all that it
takes. The same package gives the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import struct
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PACKAGE_SHA256 = "585cd178f3b994337c4d10a87b080d342fc52f8b9bf0085c4d1f345a3a1c5382"
"""Of nsfwjs-4.4.0.tgz."""
FOLDER = "package/dist/models/mobilenet_v2_mid/"
SHARDS = ("group1-shard1of2", "group1-shard2of2")

BLOCKS = ((1, 1, 24), (2, 2, 32), (3, 2, 48), (4, 2, 88), (3, 1, 136), (3, 2, 224), (1, 1, 448))
"""Repeats, stride of the first one and output channels of the inverted residual blocks."""
STEM, LAST, CLASSES = 48, 1792, 5

_FLOAT, _UINT8, _INT64, _DOUBLE = 1, 2, 7, 11


class ConversionError(Exception):
    """The package is not the one that this converts."""


@dataclass(frozen=True)
class Quantized:
    """A tensor as the package keeps it: value = data * scale + minimum."""

    data: NDArray[np.uint8]
    scale: float
    minimum: float


# --- the package -------------------------------------------------------------------------------------------


def read_package(path: Path) -> dict[str, Quantized]:
    """Read all tensors of the network by their short names, such as 'expanded_conv_3/expand/Conv2D_weights'.

    Args:
        path: nsfwjs-4.4.0.tgz as npm gives it.

    Raises:
        ConversionError: it is another file, or its manifest and its bytes do not fit.
    """
    members = hashlib.sha256(path.read_bytes()).hexdigest()
    if members != PACKAGE_SHA256:
        raise ConversionError(f"{path} is not nsfwjs-4.4.0.tgz (SHA-256 {members}, wanted {PACKAGE_SHA256}).")
    with tarfile.open(path) as archive:

        def text(name: str) -> str:
            file = archive.extractfile(f"{FOLDER}{name}.min.js")
            if file is None:
                raise ConversionError(f"{path} has no {FOLDER}{name}.min.js.")
            return file.read().decode("utf-8")

        manifest = text("model")
        data = b"".join(base64.b64decode(_longest_string(text(name))) for name in SHARDS)
    tensors: dict[str, Quantized] = {}
    start = 0
    for name, shape, minimum, scale in re.findall(
        r'\{name:"([^"]+)",shape:\[([\d,]*)\],dtype:"float32",'
        r'quantization:\{min:([-.\de]+),scale:([-.\de]+),dtype:"uint8"\}\}',
        manifest,
    ):
        sides = [int(side) for side in shape.split(",") if side]
        length = int(np.prod(sides, dtype=int))
        values = np.frombuffer(data, np.uint8, length, start).reshape(sides)
        short = re.sub(r".*/(MobilenetV2|predict|input)/", "", name)
        tensors[short] = Quantized(values, float(scale), float(minimum))
        start += length
    if start != len(data):
        raise ConversionError(f"The manifest names {start} bytes, and the package has {len(data)}.")
    return tensors


def _longest_string(script: str) -> str:
    """Return the longest string literal in double quotes: the weights in base64."""
    return str(max(re.findall(r'"([A-Za-z0-9+/=]*)"', script), key=len))


# --- protocol buffers --------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _int(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _field(number: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _tensor(name: str, kind: int, shape: Sequence[int], data: bytes) -> bytes:
    dims = b"".join(_int(1, side) for side in shape)
    return dims + _int(2, kind) + _field(8, name) + _field(9, data)


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return _field(5, _field(1, name) + _int(3, value) + _int(20, 2))
    return _field(5, _field(1, name) + b"".join(_int(8, each) for each in value) + _int(20, 7))


def _value_info(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    sides = b"".join(_field(1, _field(2, side) if isinstance(side, str) else _int(1, side)) for side in shape)
    return _field(1, name) + _field(2, _field(1, _int(1, kind) + _field(2, sides)))


# --- the graph ---------------------------------------------------------------------------------------------


class Graph:
    """An ONNX graph being written, node by node.

    Args:
        tensors: the network's, by short name.
    """

    def __init__(self, tensors: dict[str, Quantized]) -> None:
        """Start without any node."""
        self._tensors, self._used = tensors, set[str]()
        self._nodes: list[bytes] = []
        self._weights: list[bytes] = []

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: int | Sequence[int]) -> str:
        """Add a node; return the name of its output."""
        names = b"".join(_field(1, name) for name in inputs) + _field(2, output)
        self._nodes.append(
            names + _field(4, kind) + b"".join(_attribute(n, v) for n, v in attributes.items())
        )
        return output

    def constant(self, name: str, value: float) -> str:
        """Add a number."""
        self._weights.append(_tensor(name, _FLOAT, (), struct.pack("<f", value)))
        return name

    def double(self, name: str, value: float) -> str:
        """Add a number of double precision."""
        self._weights.append(_tensor(name, _DOUBLE, (), struct.pack("<d", value)))
        return name

    def shape(self, name: str, values: Sequence[int]) -> str:
        """Add a list of whole numbers."""
        self._weights.append(_tensor(name, _INT64, (len(values),), struct.pack(f"<{len(values)}q", *values)))
        return name

    def weight(self, name: str, axes: Sequence[int]) -> str:
        """Add a tensor of the package as float: its bytes, and what makes numbers of them.

        onnxruntime computes these four nodes once, when it loads the file. In double, as TensorFlow.js does:
        in float a weight that is near 0 loses its last digits, and the chances change in the fifth.

        Args:
            name: its short name.
            axes: the order that its axes get.
        """
        tensor = self._tensors[name]
        self._used.add(name)
        values = np.ascontiguousarray(tensor.data.transpose(axes))
        self._weights.append(_tensor(f"{name}:bytes", _UINT8, values.shape, values.tobytes()))
        plain = self.node("Cast", [f"{name}:bytes"], f"{name}:cast", to=_DOUBLE)
        scaled = self.node("Mul", [plain, self.double(f"{name}:scale", tensor.scale)], f"{name}:scaled")
        exact = self.node("Add", [scaled, self.double(f"{name}:min", tensor.minimum)], f"{name}:exact")
        return self.node("Cast", [exact], name, to=_FLOAT)

    def convolve(
        self, data: str, prefix: str, *, kernel: int, stride: int = 1, groups: int = 1, bounded: bool = True
    ) -> str:
        """Add a convolution with TensorFlow's SAME padding, and ReLU6 behind it if it is bounded."""
        kind, axes = ("Conv2D", (3, 2, 0, 1)) if groups == 1 else ("depthwise", (2, 3, 0, 1))
        weights = self.weight(f"{prefix}/{kind}_weights", axes)
        bias = self.weight(f"{prefix}/{kind}_bn_offset", (0,))
        # Every side is even: with stride 2 SAME adds one row below and one column at the right, and no other.
        before, after = (0, 1) if stride == 2 else (kernel // 2, kernel // 2)
        output = self.node(
            "Conv",
            [data, weights, bias],
            prefix,
            kernel_shape=(kernel, kernel),
            strides=(stride, stride),
            pads=(before, before, after, after),
            group=groups,
        )
        return self.node("Clip", [output, "zero", "six"], f"{prefix}:relu6") if bounded else output

    def model(self, inputs: bytes, outputs: Sequence[bytes]) -> bytes:
        """Encode the whole file.

        Raises:
            ConversionError: a tensor of the package was left out.
        """
        if left := set(self._tensors) - self._used:
            raise ConversionError(f"These tensors have no place in the network: {', '.join(sorted(left))}")
        graph = (
            b"".join(_field(1, node) for node in self._nodes)
            + _field(2, "nsfwjs-4.4.0-MobileNetV2Mid")
            + b"".join(_field(5, weight) for weight in self._weights)
            + _field(11, inputs)
            + b"".join(_field(12, output) for output in outputs)
        )
        notice = (
            "nsfwjs: Copyright (c) 2019 Infinite Red, Inc. nsfw_model: Copyright (c) 2020 The nsfw_model "
            "Developers. MIT License."
        )
        return (
            _int(1, 7)
            + _field(2, "convert_nsfwjs")
            + _field(6, notice)
            + _field(7, graph)
            + _field(8, _int(2, 13))
        )


def build(tensors: dict[str, Quantized]) -> bytes:
    """Build the network as an ONNX file.

    Input `image`: uint8 [N, 224, 224, 3], RGB. Outputs: `logits` float32 [N, 5] of drawing, hentai, neutral,
    porn and sexy, before the softmax, whose rounding would lose what is near 0 and 1; `features` float32
    [N, 1792].

    Args:
        tensors: as `read_package` gives them.

    Raises:
        ConversionError: a tensor was left out.
    """
    two, one = (tensors.pop(f"hub_input/{name}/y") for name in ("Mul", "Sub"))
    graph = Graph(tensors)
    graph.constant("zero", 0), graph.constant("six", 6)
    planes = graph.node("Transpose", ["image"], "planes", perm=(0, 3, 1, 2))
    levels = graph.node("Cast", [planes], "levels", to=_FLOAT)
    unit = graph.node("Div", [levels, graph.constant("white", 255)], "unit")
    doubled = graph.node("Mul", [unit, graph.constant("two", two.minimum)], "doubled")
    data = graph.node("Sub", [doubled, graph.constant("one", one.minimum)], "centred")
    data, channels, number = graph.convolve(data, "Conv", kernel=3, stride=2), STEM, 0
    for repeats, first_stride, width in BLOCKS:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            prefix = f"expanded_conv_{number}" if number else "expanded_conv"
            inner = channels * (6 if number else 1)
            before = data
            if number:
                data = graph.convolve(data, f"{prefix}/expand", kernel=1)
            data = graph.convolve(data, f"{prefix}/depthwise", kernel=3, stride=stride, groups=inner)
            data = graph.convolve(data, f"{prefix}/project", kernel=1, bounded=False)
            if stride == 1 and channels == width:
                data = graph.node("Add", [before, data], f"{prefix}:sum")
            channels, number = width, number + 1
    data = graph.convolve(data, "Conv_1", kernel=1)
    mean = graph.node("GlobalAveragePool", [data], "mean")
    graph.node("Reshape", [mean, graph.shape("flat", (-1, LAST))], "features")
    weights, bias = graph.weight("_262", (0, 1)), graph.weight("_263", (0,))
    graph.node("Gemm", ["features", weights, bias], "logits")
    return graph.model(
        _value_info("image", _UINT8, ("N", 224, 224, 3)),
        [_value_info("logits", _FLOAT, ("N", CLASSES)), _value_info("features", _FLOAT, ("N", LAST))],
    )


def main() -> int:
    """Convert the package that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path, help="nsfwjs-4.4.0.tgz")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    try:
        model = build(read_package(options.package))
    except (OSError, ConversionError, KeyError) as error:
        print(f"Nothing was written: {error}", file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(model)
    print(f"{options.output}: {len(model)} bytes, SHA-256 {hashlib.sha256(model).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
