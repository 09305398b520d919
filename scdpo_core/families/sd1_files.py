"""The files of a Stable Diffusion 1 model: what is wrong with them, and how they are read offline."""

from __future__ import annotations

import gzip
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..types import Problem, ScdpoError

MICRO = "micro"
"""The name of the embedded model wherever a base model is asked for."""

CONFIGS = Path(__file__).with_name("configs") / "sd1"
"""Component configurations of Stable Diffusion 1.5 in diffusers' form, for files that carry none."""

_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_PICKLES = {".ckpt", ".pt", ".pth", ".bin"}
_FILE_PARTS = {
    "model.diffusion_model.input_blocks.0.0.weight": "the denoiser",
    "first_stage_model.decoder.conv_in.weight": "the VAE",
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": "the text encoder",
}
_OTHER_KINDS = {
    "conditioner.embedders.": "a Stable Diffusion XL model",
    "cond_stage_model.model.": "a Stable Diffusion 2 model",
    "model.diffusion_model.joint_blocks.": "a Stable Diffusion 3 model",
    "model.diffusion_model.double_blocks.": "a FLUX model",
    "lora_unet_": "a LoRA, not a base model",
}


def locate(base: str | Path) -> Path:
    """The folder or file that `base` means; 'micro' is the embedded model."""
    if str(base) == MICRO:
        from ..micro.model import WEIGHTS

        return WEIGHTS
    return Path(base).expanduser()


def check(base: str | Path) -> list[Problem]:
    """Everything that is wrong with a base model's files, found without loading them."""
    path = locate(base)
    if str(base) == MICRO and not (path / "model_index.json").is_file():
        what = "The embedded model is missing from this copy. Clone the repository again, or build it with "
        return [Problem(path, what + "'python -m scdpo_core.micro.build'.")]
    if path.is_dir():
        return _check_folder(path)
    if path.is_file():
        return _check_file(path)
    return [
        Problem(
            path,
            "There is no such base model. Give 'micro', a diffusers model folder or a .safetensors file on "
            "this machine; nothing is downloaded from a hub.",
        )
    ]


def _check_folder(folder: Path) -> list[Problem]:
    if not (folder / "model_index.json").is_file():
        found = sorted(folder.glob("*.safetensors"))
        hint = f" It holds {found[0].name}: give that file itself." if found else ""
        return [Problem(folder, f"This is no diffusers model folder: it has no model_index.json.{hint}")]
    problems: list[Problem] = []
    index = _read_config(folder / "model_index.json", problems)
    kind = index.get("_class_name", "StableDiffusionPipeline")
    if kind != "StableDiffusionPipeline":
        return [Problem(folder, f"This is a {kind}; only Stable Diffusion 1 models can be trained here.")]
    for part, stem in _WEIGHTS.items():
        problems += _check_part(folder / part, stem)
    if not (folder / "tokenizer").is_dir():
        problems.append(Problem(folder / "tokenizer", "The tokenizer is missing. Copy the model again."))
    _read_config(folder / "scheduler" / "scheduler_config.json", problems)
    unet = _read_config(folder / "unet" / "config.json", problems)
    vae = _read_config(folder / "vae" / "config.json", problems)
    if unet and vae and unet.get("in_channels", 4) != vae.get("latent_channels", 4):
        what = "This denoiser takes extra channels (an inpainting or depth model). Use the plain model."
        problems.append(Problem(folder / "unet", what))
    if unet.get("cross_attention_dim") == 1024:
        problems.append(Problem(folder, "This is a Stable Diffusion 2 model; only 1.x can be trained here."))
    return problems


def _check_part(folder: Path, stem: str) -> list[Problem]:
    files = sorted(folder.glob(f"{stem}*.safetensors"))
    if not files:
        if any(file.suffix in _PICKLES for file in folder.glob("*")):
            what = "Only pickled weights are here, which can run code when opened. Get the .safetensors ones."
        else:
            what = f"The {folder.name} has no weights ({stem}.safetensors). Copy the model again."
        return [Problem(folder, what)]
    return [problem for file in files if (problem := _broken(file)) is not None]


def _read_config(path: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(Problem(path, "This file is missing. Copy the model again."))
    except (OSError, ValueError) as error:
        problems.append(Problem(path, f"This file cannot be read ({error}). Copy the model again."))
    else:
        if isinstance(value, dict):
            return value
        problems.append(Problem(path, "This file holds no settings. Copy the model again."))
    return {}


def _broken(path: Path) -> Problem | None:
    try:
        with safe_open(str(path), framework="pt"):
            return None
    except (SafetensorError, OSError) as error:
        with path.open("rb") as stream:
            head = stream.read(2)
        if head in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):
            return Problem(path, "This is a renamed pickle file, which can run code. Get a .safetensors one.")
        return Problem(path, f"This file is damaged or incomplete ({error}). Download or copy it again.")


def _check_file(path: Path) -> list[Problem]:
    if path.suffix.lower() in _PICKLES:
        what = "Pickle files (.ckpt, .pt, .bin) can run code when they are opened, so they are not read. "
        return [Problem(path, what + "Use the .safetensors version of this model.")]
    broken = _broken(path)
    if broken is not None:
        return [broken]
    with safe_open(str(path), framework="pt") as handle:
        keys = list(handle.keys())
    for prefix, kind in _OTHER_KINDS.items():
        if any(key.startswith(prefix) for key in keys):
            return [Problem(path, f"This is {kind}; only Stable Diffusion 1 models can be trained here.")]
    missing = [part for key, part in _FILE_PARTS.items() if key not in keys]
    if missing:
        what = f"This is no complete Stable Diffusion 1 model: it lacks {' and '.join(missing)}."
        return [Problem(path, what)]
    return []


def load_pipeline(base: str | Path, given: Mapping[str, Any] | None = None, configs: Path = CONFIGS) -> Any:
    """A diffusers StableDiffusionPipeline in float32 on the CPU, read without any network.

    Args:
        base: as `locate` understands it; `check` found nothing wrong with it.
        given: components that are in memory already and need not be read.
        configs: diffusers-like folder of configurations for a single file.

    Raises:
        ScdpoError: the files do not fit together.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    path = locate(base)
    # The safety checker judges pictures for a website; here it would only black out samples.
    bare = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        with quiet():
            if path.is_dir():
                return StableDiffusionPipeline.from_pretrained(
                    str(path),
                    local_files_only=True,
                    use_safetensors=True,
                    torch_dtype=torch.float32,
                    variant=_variant(path),
                    **bare,
                    **(given or {}),
                )
            return StableDiffusionPipeline.from_single_file(
                str(path),
                config=str(configs),
                local_files_only=True,
                torch_dtype=torch.float32,
                **({"tokenizer": _tokenizer(configs / "tokenizer")} | bare | dict(given or {})),
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise ScdpoError(f"The base model {path} could not be loaded: {reason}") from error


def _variant(folder: Path) -> str | None:
    """'fp16' when the folder's denoiser comes only in that variant."""
    names = [file.name for file in (folder / "unet").glob("diffusion_pytorch_model*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def _tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer from its settings and its (compressed) list of merges, which imply the vocabulary."""
    from transformers import CLIPTokenizer

    packed = folder / "merges.txt.gz"
    if not packed.is_file():
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    merges = gzip.decompress(packed.read_bytes()).decode("utf-8").splitlines()
    symbols = _byte_symbols()
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    with tempfile.TemporaryDirectory() as name:
        target = Path(name)
        (target / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
        settings = (folder / "tokenizer_config.json").read_text(encoding="utf-8")
        (target / "tokenizer_config.json").write_text(settings, encoding="utf-8")
        return CLIPTokenizer.from_pretrained(name, local_files_only=True)


def _byte_symbols() -> list[str]:
    """The printable stand-ins of the 256 bytes, in the order of CLIP's vocabulary.

    Printable bytes stand for themselves and come first; the others are mapped above U+0100 in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the loading libraries' bars and advice off the artist's screen while the block runs."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = (diffusers_log, transformers_log)
    before = [log.get_verbosity() for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.set_verbosity(level)
            log.enable_progress_bar()
