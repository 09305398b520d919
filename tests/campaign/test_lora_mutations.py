"""Thousands of damaged and hostile LoRA files through the tool: each ends with a result or a sentence.

Seeded, so that a failure comes again: run `python -m pytest -m slow tests/campaign/test_lora_mutations.py`.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scdpo_core.families.detect import detect
from scdpo_core.families.weight_formats import check_stored
from scdpo_core.io.safetensors_header import read_header
from scdpo_core.lora.file import read_lora_info
from scdpo_core.lora.formats.keys import DIALECTS
from scdpo_core.lora.summary import card_of
from scdpo_core.types import ScdpoError
from tests.support.lora_script import tool

__all__ = ["tool"]


LORAS = 5000
BASES = 1000
SEED = 19
MOST_MEMORY = 2 << 30

MODULE = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = "lora_unet_" + MODULE.replace(".", "_")
CONVOLUTION = "lora_unet_down_blocks_1_resnets_0_conv1"
FLUX = "lora_unet_double_blocks_0_img_attn_qkv"
SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "U16": 2, "BOOL": 1, "C64": 8,
}  # fmt: skip
MOST_BYTES = 400_000  # of one made-up tensor

Entries = dict[str, tuple[str, list[int]]]
"""Name -> number format and shape."""


def plain(
    stem: str, rows: int, inputs: int, up: str = "lora_up.weight", down: str = "lora_down.weight"
) -> Entries:
    return {f"{stem}.{down}": ("F32", [4, inputs]), f"{stem}.{up}": ("F32", [rows, 4])}


def alpha(stem: str) -> Entries:
    return {f"{stem}.alpha": ("F32", [])}


SOUND: dict[str, tuple[Entries, dict[str, str]]] = {
    "kohya": (plain(FLAT, 8, 6) | alpha(FLAT), {"ss_base_model_version": "sd_v1", "ss_network_dim": "4"}),
    "text": (plain("lora_te_text_model_encoder_layers_0_mlp_fc1", 8, 6), {}),
    "peft": (plain(f"base_model.model.{MODULE}", 8, 6, "lora_B.weight", "lora_A.weight"), {"format": "pt"}),
    "diffusers": (
        plain(f"unet.{MODULE}", 8, 6, "lora_B.weight", "lora_A.weight"),
        {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.r": 4, "unet.alpha_pattern": {}})},
    ),
    "ours": (
        plain(f"unet.{MODULE}", 8, 6, "lora_B.weight", "lora_A.weight"),
        {"scdpo_alpha": "2.0", "scdpo_family": "sd1", "scdpo_evaluation": json.dumps({"harm": 0.5})},
    ),
    "flux": (plain(FLUX, 144, 48) | alpha(FLUX), {}),
    "linear1": (plain("diffusion_model.single_blocks.0.linear1", 336, 48), {}),
    "sd3": (plain("lora_unet_joint_blocks_0_x_block_attn_qkv", 144, 48), {}),
    "apart": (plain("lycoris_transformer_blocks_0_attn_to_q", 48, 48), {}),
    "halves": (plain("lora_unet_final_layer_adaLN_modulation_1", 96, 48), {}),
    "convolution": (
        {
            f"{CONVOLUTION}.lora_down.weight": ("F32", [4, 6, 3, 3]),
            f"{CONVOLUTION}.lora_up.weight": ("F32", [8, 4, 1, 1]),
            f"{CONVOLUTION}.lora_mid.weight": ("F32", [4, 4, 3, 3]),
        },
        {},
    ),
    "dora": (plain(FLUX, 144, 48) | {f"{FLUX}.dora_scale": ("F32", [144, 1])}, {}),
    "loha": (
        {f"{FLUX}.hada_w{n}_a": ("F32", [144, 2]) for n in "12"}
        | {f"{FLUX}.hada_w{n}_b": ("F32", [2, 48]) for n in "12"},
        {},
    ),
    "loha, kernels": (
        {f"{FLAT}.hada_w{n}_a": ("F32", [2, 8]) for n in "12"}
        | {f"{FLAT}.hada_w{n}_b": ("F32", [2, 6]) for n in "12"}
        | {f"{FLAT}.hada_t{n}": ("F32", [2, 2, 3, 3]) for n in "12"},
        {},
    ),
    "lokr": ({f"{FLUX}.lokr_w1": ("F32", [12, 4]), f"{FLUX}.lokr_w2": ("F32", [12, 12])} | alpha(FLUX), {}),
    "lokr, factors": (
        {
            f"{FLAT}.lokr_w1": ("F32", [3, 2]),
            f"{FLAT}.lokr_w2_a": ("F32", [2, 5]),
            f"{FLAT}.lokr_w2_b": ("F32", [2, 3]),
            f"{FLAT}.lokr_t2": ("F32", [2, 2, 3, 3]),
        },
        {},
    ),
}  # fmt: skip

TEXTS = [
    "", "[", "[" * 50_000, "{}", "null", "NaN", "1e999", "1" + "0" * 500, "-1", "true", '"a"', "sd_v1",
    "sdxl", "flux", "micro", "\x1b[31m", "\u202e", "女の子", "{" + '"a":' * 3,
    '{"unet.lora_alpha": 1, "unet.r": 0}', '{"lora_alpha": NaN, "r": 4}',
    '{"lora_alpha": 8, "r": 4, "use_rslora": true}',
    '{"lora_alpha": 8, "r": 4, "alpha_pattern": {"(a|a)*(a|a)*b": 2}}',
    '{"lora_alpha": 8, "r": 4, "alpha_pattern": {"to_q": "x"}, "rank_pattern": [1]}',
    '{"lora_alpha": 8, "r": 1e300}', '{"peft_type": 3, "init_lora_weights": ["pissa"]}', '{"a": ' * 900,
]  # fmt: skip
KEYS = [
    "scdpo_alpha", "scdpo_family", "scdpo_evaluation", "scdpo_categories", "lora_adapter_metadata", "ss_v2",
    "ss_base_model_version", "modelspec.architecture", "modelspec.title", "ss_network_args", "odd\x07name",
    "_quantization_metadata", "prediction_type", "ss_v_parameterization",
]  # fmt: skip
WORDS = [
    "lora_unet_", "lora_te_", "lora_te2_", "lycoris_", "unet.", "transformer.", "diffusion_model.",
    "text_encoder.", "base_model.model.", ".lora_A.weight", ".lora_B.default.weight", ".lora_up.weight",
    ".lora_mid.weight", ".alpha", ".dora_scale", ".hada_w1_a", ".lokr_w1", ".lokr_t2", ".oft_blocks", "_0_",
    "_99_", "." * 9, "²", "٣", "9" * 5000, "x" * 300, "\x00", "\ud7ff", "double_blocks", "joint_blocks",
    "single_blocks_0_linear1", "attn1", "to_out_0",
]  # fmt: skip


def shape(rng: random.Random, like: list[int]) -> list[int]:
    dims = [0, 1, 1, 2, 3, 4, 5, 7, 8, 12, 48, 144, 336, 1000, 5000, 20_000, 100_000]
    made = list(like)
    for _ in range(rng.randint(1, 2)):
        kind = rng.randrange(5)
        if kind == 0 or not made:
            made.insert(rng.randint(0, len(made)), rng.choice(dims))
        elif kind == 1:
            made.pop(rng.randrange(len(made)))
        elif kind == 2:
            rng.shuffle(made)
        else:
            made[rng.randrange(len(made))] = rng.choice(dims)
    return made


def mutate(rng: random.Random, entries: Entries, metadata: dict[str, str]) -> tuple[Entries, dict[str, str]]:
    """The same kind of file with one to three things changed, in what is still a sound container."""
    made, said = dict(entries), dict(metadata)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(made)) if made else "x"
        form, size = made.get(name, ("F32", [2, 2]))
        kind = rng.randrange(9)
        if kind <= 2:
            made[name] = (form, shape(rng, size))
        elif kind == 3:
            made[name] = (rng.choice(list(SIZES)), size)
        elif kind == 4:
            made.pop(name, None)
        elif kind == 5:
            at = rng.randrange(len(name) + 1)
            cut = rng.choice([0, 0, 1, 5])
            made[name[:at] + rng.choice(WORDS) + name[at + cut :]] = made.pop(name, (form, size))
        elif kind == 6:
            other, _ = rng.choice(list(SOUND.values()))
            made |= other
        elif kind == 7:
            stem, _, end = name.rpartition(".")
            made[rng.choice([f"{stem}.alpha", f"{stem}.dora_scale", f"{stem}.{rng.choice(WORDS)}{end}"])] = (
                rng.choice(list(SIZES)),
                shape(rng, [1]),
            )
        else:
            said[rng.choice(KEYS)] = rng.choice(TEXTS)
    return made, said


def content(rng: random.Random, form: str, count: int) -> bytes:
    length = count * SIZES[form]
    if form == "F32" and rng.random() < 0.9:
        # Numbers near 1, four bytes each.
        return bytes(
            rng.choice([0, 0, 205, 76]) if n % 4 < 2 else (128, 63)[n % 4 - 2] for n in range(min(length, 64))
        ) * (length // 64) + b"\0" * (length % 64)
    return (rng.randbytes(64) * (length // 64 + 1))[:length]


def container(rng: random.Random, entries: Entries, metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata or rng.random() < 0.5 else {}
    body = b""
    for name, (form, size) in entries.items():
        count = 1
        for length in size:
            count *= length
        while count * SIZES[form] > MOST_BYTES:
            longest = size.index(max(size))
            count = count // size[longest] * (size[longest] // 10)
            size = [*size[:longest], size[longest] // 10, *size[longest + 1 :]]
        data = content(rng, form, count)
        header[name] = {"dtype": form, "shape": size, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header, ensure_ascii=rng.random() < 0.5).encode("utf-8", "replace")
    return len(text).to_bytes(8, "little") + text + body


def damage(rng: random.Random, whole: bytes) -> bytes:
    """Bytes changed, cut off or put in, in the header for the most part."""
    made = bytearray(whole)
    end = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(made), end) if rng.random() < 0.8 else len(made)) if made else 0
        kind = rng.randrange(4)
        if kind == 0:
            made[at : at + 1] = rng.randbytes(1)
        elif kind == 1:
            del made[at : at + rng.choice([1, 8, 100])]
        elif kind == 2:
            made[at:at] = rng.choice([b"0", b"9" * 20, b"[", b'"', b"\xff", b"\\ud800", b" " * 50])
        else:
            del made[at:]
    return bytes(made)


def run(tool: ModuleType, *words: object) -> int:
    """The exit status; a word about memory counts as a failure, since the file is small."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status: int = tool.main([str(word) for word in words])
    shown = out.getvalue() + err.getvalue()
    assert "memory" not in err.getvalue() or "before" in err.getvalue(), err.getvalue()
    assert status == (2 if "Error: " in err.getvalue() else 0)
    assert not any(sign in shown for sign in "\x1b\x07\u202e")
    return status


def told(work: Callable[[], object]) -> None:
    with contextlib.suppress(ScdpoError):
        work()


def peak() -> int:
    """Bytes that the process has ever held."""
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="tells no peak of memory")
def test_odd_lora_files_end_with_a_result_or_a_sentence(tool: ModuleType, tmp_path: Path) -> None:
    before = peak()
    path, out = tmp_path / "adapter_model.safetensors", tmp_path / "out" / "made.safetensors"
    beside = tmp_path / "adapter_config.json"
    results = {0: 0, 2: 0}
    for number in range(LORAS):
        rng = random.Random(SEED * 1_000_000 + number)
        name = rng.choice(list(SOUND))
        entries, metadata = mutate(rng, *SOUND[name]) if rng.random() < 0.9 else SOUND[name]
        whole = container(rng, entries, metadata)
        path.write_bytes(damage(rng, whole) if rng.random() < 0.2 else whole)
        beside.unlink(missing_ok=True)
        if rng.random() < 0.3:
            beside.write_text(rng.choice(TEXTS), "utf-8", "replace")
        dialect, family = (
            rng.choice(DIALECTS),
            rng.choice([[], ["--family", rng.choice(["sd1", "sdxl", "sd3", "flux"])]]),
        )
        target = ["--to", dialect, "--output", out, "--overwrite", *family]
        try:
            told(lambda: card_of(read_lora_info(path)))
            results[run(tool, "inspect", path)] += 1
            run(tool, "inspect", tmp_path, "--json")
            results[run(tool, "convert", path, *target)] += 1
            limit = rng.choice([["--rank", 1], ["--rank", 100], ["--energy", 0.9]])
            results[run(tool, "resize", path, *limit, *target)] += 1
            if rng.random() < 0.3:
                results[run(tool, "merge", path, path, *limit, *target)] += 1
        except BaseException:
            print(f"number {number}, from {name}: {entries} {metadata}"[:2000])
            raise
        assert peak() - before < MOST_MEMORY, f"number {number}, from {name}: {entries}"
    # Neither everything read nor everything refused, else this would test little.
    assert min(results.values()) > sum(results.values()) / 10, results


D = "model.diffusion_model."
BASE: Entries = {
    f"{D}input_blocks.0.0.weight": ("F16", [32, 4, 3, 3]),
    f"{D}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": ("F8_E4M3", [32, 768]),
    f"{D}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight_scale": ("F32", []),
    f"{D}input_blocks.1.1.transformer_blocks.0.attn2.to_k.comfy_quant": ("U8", [27]),
    f"{D}double_blocks.0.img_attn.qkv.weight": ("I8", [48, 16]),
    f"{D}double_blocks.0.img_attn.qkv.weight_scale": ("F32", [48, 1]),
    "first_stage_model.decoder.conv_in.weight": ("F16", [32, 4, 3, 3]),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": ("I64", [1, 77]),
    "v_pred": ("F32", [0]),
}


@pytest.mark.slow
def test_odd_base_models_end_with_a_kind_or_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for number in range(BASES):
        rng = random.Random(SEED * 1_000_000 + number)
        entries, metadata = mutate(rng, BASE, {})
        whole = container(rng, entries, metadata)
        path.write_bytes(damage(rng, whole) if rng.random() < 0.3 else whole)

        def look() -> None:
            header = read_header(path)
            assert header.prediction in (None, "epsilon", "v_prediction")
            assert header.zero_snr in (True, False)
            told(lambda: check_stored(header, D))
            told(lambda: check_stored(header, "", factors=False))

        try:
            told(look)
            told(lambda: detect(path))
        except BaseException:
            print(f"number {number}: {entries} {metadata}"[:2000])
            raise
