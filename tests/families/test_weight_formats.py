"""Base models whose weights are stored in 8 bits: the very weights, or a refusal by name, never the codes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scdpo_core.families import FAMILIES, LoadOptions
from scdpo_core.families.weight_formats import check_stored, factor_of, is_nan, multiplied, read_tensors
from scdpo_core.io.files import unshared
from scdpo_core.io.safetensors_header import Header, read_header
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_pipeline, write_single_file

D = "model.diffusion_model."
CPU = torch.device("cpu")
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as a folder, and beside it as a file."""
    home = tmp_path_factory.mktemp("model")
    pipeline = tiny_pipeline(home / "words")
    pipeline.save_pretrained(home / "folder")
    write_single_file(pipeline, home / "plain.safetensors")
    return home


def layers(tensors: Tensors) -> list[str]:
    return [
        name for name, t in tensors.items() if name.startswith(D) and name.endswith(".weight") and t.ndim == 2
    ]


def coded(tensors: Tensors, dtype: torch.dtype, factor: str, shape: Callable[[Tensor], Tensor]) -> Tensors:
    """Every matrix of the denoiser as codes; `shape` makes the factor of a matrix."""
    result = dict(tensors)
    top = 127 if dtype == torch.int8 else torch.finfo(dtype).max
    for name in layers(tensors):
        scale = (shape(tensors[name]) / top).clamp_min(1e-12)
        codes = tensors[name] / (multiplied(torch.ones_like(tensors[name]), scale))
        result[name] = (codes.round() if dtype == torch.int8 else codes).to(dtype)
        result[name.removesuffix("weight") + factor] = scale
    return result


def blocks(weight: Tensor) -> Tensor:
    rows, columns = (math.ceil(size / 128) for size in weight.shape)
    return weight.abs().max().expand(rows, columns).clone()


def marked(tensors: Tensors, settings: dict[str, object]) -> Tensors:
    text = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
    return tensors | {name.removesuffix("weight") + "comfy_quant": text for name in layers(tensors)}


CODED: dict[str, Callable[[Tensors], Tensors]] = {
    "int8, one factor": lambda t: coded(t, torch.int8, "weight_scale", lambda w: w.abs().max().reshape(1)),
    "int8, one a row": lambda t: coded(t, torch.int8, "weight_scale", lambda w: w.abs().amax(1)),
    "int8, one a row, upright": lambda t: coded(
        t, torch.int8, "weight_scale", lambda w: w.abs().amax(1, True)
    ),
    "fp8": lambda t: coded(t, torch.float8_e4m3fn, "scale_weight", lambda w: w.abs().max()),
    "fp8, newer name": lambda t: coded(t, torch.float8_e4m3fn, "weight_scale", lambda w: w.abs().max()),
    "fp8, blocks": lambda t: coded(t, torch.float8_e4m3fn, "weight_scale_inv", blocks),
    "fp8, inv": lambda t: coded(t, torch.float8_e4m3fn, "weight_scale_inv", lambda w: w.abs().max()),
    "fp8, e5m2": lambda t: coded(t, torch.float8_e5m2, "weight_scale", lambda w: w.abs().amax(1)),
    "fp8, settings": lambda t: marked(
        coded(t, torch.float8_e4m3fn, "weight_scale", lambda w: w.abs().max()),
        {"format": "float8_e4m3fn", "full_precision_matrix_mult": True},
    ),
    "plain fp8": lambda t: t | {name: t[name].to(torch.float8_e4m3fn) for name in layers(t)},
}


@pytest.mark.parametrize("kind", CODED)
def test_known_codes_are_multiplied_out(model: Path, tmp_path: Path, kind: str) -> None:
    plain = load_file(model / "plain.safetensors")
    path = tmp_path / "coded.safetensors"
    save_file(unshared(CODED[kind](plain)), path)
    assert FAMILIES["sd1"].check(path) == []
    found = read_tensors(path, D, torch.float32)
    assert found.keys() == read_tensors(model / "plain.safetensors", D, torch.float32).keys()
    for name in layers(plain):
        weight, exact = found[name.removeprefix(D)], plain[name]
        # e4m3 keeps 3 bits behind the first, e5m2 two; int8 127 steps up to the largest; plain e4m3 ends at
        # steps of 2^-9.
        room = 0.13 * exact.abs() + max(float(exact.abs().max()) / 120, 2**-9)
        assert bool(((weight - exact).abs() <= room).all()), name
    FAMILIES["sd1"].load(path, CPU, torch.float32, LoadOptions(configs=model / "folder"))


def without(tensors: Tensors, end: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(end)}


def first(tensors: Tensors, tensor: Tensor, end: str = "") -> Tensors:
    name = layers(tensors)[0]
    return tensors | {name.removesuffix("weight") + end if end else name: tensor}


INT8 = CODED["int8, one factor"]
FP8 = CODED["fp8, newer name"]
REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "int8 alone": (lambda t: without(INT8(t), "weight_scale"), "stored as I8 without a factor"),
    "empty factors": (
        lambda t: FP8(t) | {n.removesuffix("weight") + "weight_scale": torch.zeros(0) for n in layers(t)},
        "nothing says how large",
    ),
    "nvfp4": (
        lambda t: first(first(t, torch.ones(()), "weight_scale_2"), torch.zeros(8, 4, dtype=torch.uint8)),
        "NVFP4",
    ),
    "packed": (lambda t: first(t, torch.zeros(8, 4, dtype=torch.uint8)), "stored as U8"),
    "bitsandbytes": (lambda t: first(INT8(t), torch.ones(8), "SCB"), "bitsandbytes' 8 bits"),
    "zero points": (lambda t: first(INT8(t), torch.ones(8), "weight_zero_point"), "zero points"),
    "empty weight": (lambda t: first(t, torch.zeros(0)), "is empty, so the file is damaged"),
    "8-bit factor": (
        lambda t: first(FP8(t), torch.ones(1).to(torch.float8_e4m3fn), "weight_scale"),
        "not read here",
    ),
    "odd factor": (lambda t: first(FP8(t), torch.ones(7, 3, 2), "weight_scale"), "numbers for"),
    "rotated": (
        lambda t: marked(INT8(t), {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}),
        "int8_tensorwise with 'convrot'",
    ),
    "unknown settings": (lambda t: marked(INT8(t), {"format": "svdquant_w4a4"}), "svdquant_w4a4"),
    "damaged settings": (lambda t: first(INT8(t), torch.zeros(9, dtype=torch.uint8), "comfy_quant"), "codes"),
    "settings without a factor": (
        lambda t: without(marked(FP8(t), {"format": "float8_e4m3fn"}), "weight_scale"),
        "factor of .* is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_unknown_codes_are_refused_by_name_before_and_at_loading(
    model: Path, tmp_path: Path, kind: str
) -> None:
    make, message = REFUSED[kind]
    path = tmp_path / "coded.safetensors"
    save_file(unshared(make(load_file(model / "plain.safetensors"))), path)
    (problem,) = FAMILIES["sd1"].check(path)
    assert problem.fatal and D in problem.what
    with pytest.raises(ScdpoError, match=message):
        raise ScdpoError(problem.what)
    with pytest.raises(ScdpoError, match=message):
        read_tensors(path, D, torch.float32)


def test_settings_may_stand_in_the_header(model: Path, tmp_path: Path) -> None:
    tensors = INT8(load_file(model / "plain.safetensors"))
    layer = layers(tensors)[0].removesuffix(".weight")
    path = tmp_path / "coded.safetensors"
    for name in (layer, layer.removeprefix(D)):
        settings = {"layers": {name: {"format": "int8_tensorwise", "convrot": True}}}
        save_file(tensors, path, {"_quantization_metadata": json.dumps(settings)})
        (problem,) = FAMILIES["sd1"].check(path)
        assert "convrot" in problem.what and layer in problem.what
    for text in ("[", "[]", '{"layers": 3}', '{"layers": {"x": 1}}', "[" * 100_000):
        save_file(tensors, path, {"_quantization_metadata": text})
        assert FAMILIES["sd1"].check(path) == []


def test_parts_that_are_not_used_may_be_stored_as_they_like(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "plain.safetensors")
    path = tmp_path / "extra.safetensors"
    save_file(
        tensors | {"model_ema.x.weight": torch.zeros(2, 2, dtype=torch.int8), "v_pred": torch.zeros(0)}, path
    )
    assert FAMILIES["sd1"].check(path) == []


def test_weights_that_are_nan_are_refused(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "plain.safetensors")
    tensors[layers(tensors)[3]][0, 0] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(ScdpoError, match=r"could not be loaded: .* holds NaN"):
        FAMILIES["sd1"].load(
            tmp_path / "nan.safetensors", CPU, torch.float32, LoadOptions(configs=model / "folder")
        )
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2):
        assert is_nan(torch.tensor([0.0, torch.nan]).to(dtype)) and not is_nan(torch.ones(2).to(dtype))
    assert not is_nan(torch.ones(2, dtype=torch.int64)) and not is_nan(torch.zeros(0))


def test_folders_of_compressed_weights_are_refused(model: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(model / "folder", tmp_path / "folder")
    assert FAMILIES["sd1"].check(folder) == []
    config = folder / "unet" / "config.json"
    plain = config.read_text("utf-8")
    config.write_text(
        json.dumps(json.loads(plain) | {"quantization_config": {"quant_method": "bitsandbytes"}})
    )
    (problem,) = FAMILIES["sd1"].check(folder)
    assert problem.path == folder / "unet" and "compressed by bitsandbytes" in problem.what
    config.write_text(plain)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = next(key for key, tensor in tensors.items() if tensor.ndim == 2 and key.endswith(".weight"))
    for change, message in (
        ({name: tensors[name].to(torch.int8)}, "stored as I8"),
        ({f"{name}_scale": torch.ones(1)}, "has a factor, which is not read in a folder"),
        ({name: torch.zeros(0)}, "is empty"),
    ):
        save_file(tensors | change, weights, {"format": "pt"})
        (problem,) = FAMILIES["sd1"].check(folder)
        assert message in problem.what and "diffusion_pytorch_model.safetensors" in problem.what


def test_factors_by_hand() -> None:
    codes = torch.tensor([[2, -4], [6, 8]], dtype=torch.int8)
    assert multiplied(codes, torch.tensor(0.5)).tolist() == [[1, -2], [3, 4]]
    assert multiplied(codes, torch.tensor([0.5, 2.0])).tolist() == [[1, -2], [12, 16]]
    assert multiplied(codes, torch.tensor([[0.5], [2.0]])).tolist() == [[1, -2], [12, 16]]
    assert multiplied(codes, torch.tensor([[0.5, 2.0]])).tolist() == [[1, -8], [3, 16]]
    kernel = torch.ones(2, 1, 3, 3, dtype=torch.int8)
    assert multiplied(kernel, torch.tensor([1.0, 2.0]))[:, 0, 0, 0].tolist() == [1, 2]
    # 130 rows are a block of 128 and one of 2; 6 columns are two blocks of 3.
    large = multiplied(torch.ones(130, 6), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert (large[0].tolist(), large[127].tolist()) == ([1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2])
    assert large[128].tolist() == [3, 3, 3, 4, 4, 4]
    for shape in ((3,), (2, 2, 1), (4, 2)):
        with pytest.raises(ScdpoError, match="does not fit"):
            multiplied(codes, torch.ones(shape))


def test_only_weights_have_factors() -> None:
    header = Header({"a.weight": (1,), "a.weight_scale": (1,), "a.bias": (1,), "b.weight": (1,)})
    assert factor_of(header, "a.weight") == "a.weight_scale"
    assert factor_of(header, "a.bias") is factor_of(header, "b.weight") is None
    check_stored(
        Header({"x.position_ids": (1, 77), "n": ()}, dtypes={"x.position_ids": "I64", "n": "I32"}), ""
    )


def test_number_formats_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1).half(), "b": torch.zeros(1, dtype=torch.int8)}, tmp_path / "x.safetensors")
    assert read_header(tmp_path / "x.safetensors").dtypes == {"a": "F16", "b": "I8"}
