"""What we export, judged by ComfyUI: by key lists recorded from it, and by itself when COMFYUI_DIR is set.

    COMFYUI_DIR=/path/to/ComfyUI python -m pytest -m "" tests/lora/test_comfyui.py

COMFYUI_PYTHON may name the Python that ComfyUI runs with; without it, this one runs ComfyUI's LoRA code.

The lists are facts, made by `tests/support/comfyui_oracle.py` with ComfyUI 0.33.0.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from scdpo_core.lora.formats.convert import from_file, to_file
from scdpo_core.lora.formats.keys import Dialect
from scdpo_core.lora.formats.layouts import TRANSFORMERS, UNETS
from scdpo_core.lora.formats.names import split_key
from scdpo_core.lora.weights import by_module, delta
from tests.support.lora_models import FAMILIES, ORIGINAL_ONLY, denoiser, lora_for, module_shapes

RECORDED = Path(__file__).resolve().parents[1] / "data" / "comfyui_lora_keys.json.gz"
COMFYUI = os.environ.get("COMFYUI_DIR", "")
HOST_DIALECTS: tuple[Dialect, ...] = ("kohya", "kohya-ldm", "comfyui")
with_comfyui = pytest.mark.skipif(not COMFYUI, reason="COMFYUI_DIR is not set")


@pytest.fixture(scope="module")
def accepted() -> dict[str, dict[str, list[object]]]:
    """Family -> stem of a key -> the weight that ComfyUI changes for it."""
    found: dict[str, dict[str, list[object]]] = json.loads(gzip.decompress(RECORDED.read_bytes()))
    return found


def oracle(*arguments: object) -> None:
    script = Path(__file__).resolve().parents[1] / "support" / "comfyui_oracle.py"
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(script), COMFYUI, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def patched_by_comfyui(
    family: str, files: Mapping[Dialect, Path]
) -> dict[Dialect, tuple[dict[str, Tensor], list[str]]]:
    """What ComfyUI makes of LoRA files, weight by weight, and the keys of each that it left alone."""
    outs = {dialect: file.with_name(f"{file.stem} patched.safetensors") for dialect, file in files.items()}
    oracle("patch", family, *(path for dialect in files for path in (files[dialect], outs[dialect])))
    found = {}
    for dialect, out in outs.items():
        with safe_open(str(out), framework="pt") as handle:
            found[dialect] = load_file(out), json.loads(handle.metadata()["left"])
    return found


def stems(state: dict[str, Tensor], dialect: Dialect, family: str) -> set[str]:
    return {
        split_key(key)[0] if dialect != "comfyui" else key.rsplit(".lora_", 1)[0].removesuffix(".alpha")
        for key in to_file(state, dialect, family).tensors
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dialect", HOST_DIALECTS)
def test_every_key_we_write_is_one_that_comfyui_takes(
    accepted: dict[str, dict[str, list[object]]], family: str, dialect: Dialect
) -> None:
    ours = stems(lora_for(module_shapes(family), rank=1), dialect, family)
    left = sorted(stem for stem in ours if stem not in accepted[family])
    assert left == []


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_it_takes_the_transformers_in_peft_too(
    accepted: dict[str, dict[str, list[object]]], family: str
) -> None:
    ours = stems(lora_for(module_shapes(family, text=False), rank=1), "peft", family)
    assert sorted(stem for stem in ours if stem not in accepted[family]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_different_modules_change_different_weights(
    accepted: dict[str, dict[str, list[object]]], family: str
) -> None:
    for dialect in HOST_DIALECTS:
        ours = stems(lora_for(module_shapes(family), rank=1), dialect, family)
        targets = [json.dumps(accepted[family][stem]) for stem in ours]
        assert len(set(targets)) == len(targets)


@pytest.mark.parametrize("dialect", ["kohya", "comfyui"])
@pytest.mark.parametrize(("family", "count"), [("chroma", 12), ("flux2", 5)])
def test_it_takes_some_modules_by_their_original_names_alone(
    accepted: dict[str, dict[str, list[object]]], family: str, count: int, dialect: Dialect
) -> None:
    linears = [name for name, part in denoiser(family).named_modules() if isinstance(part, nn.Linear)]
    shapes = {name: (8, 4) for name in linears if name.startswith(ORIGINAL_ONLY)}
    ours = stems(lora_for(shapes, rank=1), dialect, family)
    assert len(ours) == count
    assert sorted(stem for stem in ours if stem not in accepted[family]) == []


@with_comfyui
@pytest.mark.slow
def test_the_recorded_lists_are_those_of_this_comfyui(
    accepted: dict[str, dict[str, list[object]]], tmp_path: Path
) -> None:
    oracle("keys", tmp_path / "keys.json.gz")
    now = json.loads(gzip.decompress((tmp_path / "keys.json.gz").read_bytes()))
    for family in FAMILIES:
        assert [stem for stem, target in accepted[family].items() if now[family].get(stem) != target] == []


@with_comfyui
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_comfyui_leaves_no_key_and_changes_the_model_as_we_say(family: str, tmp_path: Path) -> None:
    shapes = module_shapes(family, blocks=2)
    state = lora_for(shapes, rank=2, alpha=1.0)
    changes = {}
    # It takes the transformers' names of diffusers too, and finds their place in the fused weights by itself.
    dialects = HOST_DIALECTS if family in UNETS else (*HOST_DIALECTS, "peft")
    files = {dialect: tmp_path / f"{dialect}.safetensors" for dialect in dialects}
    for dialect, file in files.items():
        save_file(to_file(state, dialect, family).tensors, file)
    for dialect, (patched, left) in patched_by_comfyui(family, files).items():
        assert left == []
        changes[dialect] = patched
    first = changes[HOST_DIALECTS[0]]
    for dialect, other in changes.items():
        assert other.keys() == first.keys()
        for name, change in first.items():
            # peft's has alpha / rank in its float16 weights, where the smallest lose a bit.
            exact = {"rtol": 1e-3, "atol": 1e-3} if dialect == "peft" else {"rtol": 0.0, "atol": 0.0}
            assert_close(other[name], change, **exact)
    # The whole change, weight by weight: what ComfyUI adds is what `delta` says of the original layout.
    original = by_original_name(state, family)
    assert len(original) == len(first)
    for name, change in first.items():
        assert_close(change, original[name].reshape(change.shape), rtol=1e-4, atol=1e-4)


def by_original_name(state: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """The change of every weight of the original checkpoint, put together from diffusers' modules alone."""
    tensors = to_file(state, "comfyui", family).tensors
    grouped: dict[str, dict[str, Tensor]] = {}
    names = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}
    for key, tensor in tensors.items():
        ending = next(ending for ending in names if key.endswith(ending))
        grouped.setdefault(key.removesuffix(f".{ending}"), {})[names[ending]] = tensor
    ours = by_module(from_file(tensors, {}))
    total = sum(float(delta(parts).square().sum()) for parts in ours.values())
    fused = {stem.removeprefix("text_encoders."): delta(parts) for stem, parts in grouped.items()}
    assert sum(float(change.square().sum()) for change in fused.values()) == pytest.approx(total, rel=1e-5)
    return {f"{stem}.weight": change for stem, change in fused.items()}
