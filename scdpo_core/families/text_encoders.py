"""Text encoders and tokenizers: where they are, and how they are read offline."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..types import ScdpoError
from .chunks import TextEncoder
from .component_layout import TextEncoderSpec
from .language_models import LanguageEncoder, language_tokenizer, read_language_encoder
from .weight_formats import check_folder, read_tensors

AnyTextEncoder = TextEncoder | LanguageEncoder

CONFIGS = Path(__file__).with_name("configs")
"""Component configurations in diffusers' form for files that carry none, one folder a family."""

_VOCABULARY = CONFIGS / "sd1" / "tokenizer"
# As other tools call the folder of a tokenizer; ComfyUI's is in comfy/text_encoders/.
_TOKENIZERS = {"t5": ("t5_tokenizer", "tokenizer"), "language": ("qwen25_tokenizer", "tokenizer")}
_OPEN_CLIP = (
    ("token_embedding.weight", "embeddings.token_embedding.weight"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_final.", "final_layer_norm."),
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)


def text_home(folder: Path, part: TextEncoderSpec) -> Path | None:
    """The subfolder or the file of a text encoder in a folder of text encoders; None if it holds none.

    Raises:
        ScdpoError: there is no such folder.
    """
    if not folder.is_dir():
        raise ScdpoError(f"There is no folder {folder} with text encoders.")
    if list((folder / part.folder).glob("*.safetensors")):
        return folder / part.folder
    files = sorted(folder.glob(f"{part.stem}*.safetensors"))
    if files:
        return files[0]
    # A language model is often kept as it was downloaded, in a folder of its own.
    alone = part.chat is not None and (folder / "config.json").is_file()
    return folder if alone and list(folder.glob("model*.safetensors")) else None


def tokenizer_home(folder: Path | None, part: TextEncoderSpec) -> Path | None:
    """The folder that holds a tokenizer, somewhere in a folder of text encoders; None if none does."""
    if folder is None:
        return None
    names = (part.tokenizer, *_TOKENIZERS.get(part.kind, ()), "")
    if part.kind == "language":
        names = (part.folder, *names)
    return next((folder / name for name in names if holds_words(folder / name)), None)


def holds_words(folder: Path) -> bool:
    """Whether a folder holds a tokenizer with its vocabulary."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model", "vocab.json"))


def clip_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer.

    Args:
        folder: its own files; or its tokenizer_config.json alone, for the vocabulary that ships with us: each
            family pads differently.
    """
    from transformers import CLIPTokenizer

    if holds_words(folder):
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    merges = gzip.decompress((_VOCABULARY / "merges.txt.gz").read_bytes()).decode("utf-8").splitlines()
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


def text_of_folder(
    part: TextEncoderSpec, home: Path, words: Path, dtype: torch.dtype, tokens: int
) -> AnyTextEncoder:
    """A text encoder from a folder in transformers' form, with the tokenizer that lies in another.

    Args:
        part: which one.
        home: folder of its weights.
        words: folder of its tokenizer.
        dtype: of its weights.
        tokens: of its prompts; 0: its own.
    """
    if part.chat is not None:
        files = sorted(home.glob("*.safetensors"))
        return read_language_encoder(part, files, "", home, words, dtype)
    tokenizer = clip_tokenizer(words) if part.own_tokenizer else language_tokenizer(words)
    model = _from_transformers(part, home, dtype)
    return TextEncoder(tokenizer, model, tokens or tokenizer.model_max_length)


def text_of_file(
    part: TextEncoderSpec,
    file: Path,
    prefix: str,
    folder: Path | None,
    configs: Path,
    dtype: torch.dtype,
    tokens: int,
) -> AnyTextEncoder | None:
    """A text encoder from a single file; None where nobody has its tokenizer.

    Args:
        part: which one.
        file: with its weights.
        prefix: how their names begin there.
        folder: of text encoders, where a tokenizer that does not ship with us lies.
        configs: of its family.
        dtype: of its weights.
        tokens: of its prompts; 0: its own.
    """
    words = configs / part.tokenizer if part.own_tokenizer else tokenizer_home(folder, part)
    if words is None:
        return None
    if part.chat is not None:
        return read_language_encoder(part, [file], prefix, configs / part.folder, words, dtype)
    tokenizer = clip_tokenizer(words) if part.own_tokenizer else language_tokenizer(words)
    model = build_text_model(part, configs / part.folder, read_tensors(file, prefix, dtype))
    return TextEncoder(tokenizer, model, tokens or tokenizer.model_max_length)


def text_outside(
    folder: Path | None, part: TextEncoderSpec, configs: Path, dtype: torch.dtype, tokens: int
) -> AnyTextEncoder | None:
    """A text encoder from the artist's folder of text encoders; None if it is not there.

    Arguments as of `text_of_file`.
    """
    home = None if folder is None else text_home(folder, part)
    if home is None:
        return None
    if home.is_file():
        return text_of_file(part, home, "", folder, configs, dtype, tokens)
    # CLIP in a subfolder brings its own words, or takes those that ship with us.
    words = tokenizer_home(folder, part)
    if part.own_tokenizer:
        beside = home.parent / part.tokenizer
        words = beside if holds_words(beside) else configs / part.tokenizer
    return None if words is None else text_of_folder(part, home, words, dtype, tokens)


def _from_transformers(part: TextEncoderSpec, folder: Path, dtype: torch.dtype) -> Any:
    import transformers

    check_folder(folder)
    names = [file.name for file in folder.glob("model*.safetensors")]
    variant = "fp16" if names and all(".fp16" in name for name in names) else None
    model = getattr(transformers, part.model).from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, dtype=dtype, variant=variant
    )
    return model.requires_grad_(False).eval()


def build_text_model(part: TextEncoderSpec, config: Path, weights: Mapping[str, Tensor]) -> Any:
    """A text encoder of transformers with weights from a single file.

    Args:
        part: which one; says how its tensors are named.
        config: folder with its config.json.
        weights: its tensors without their prefix, in the number format that is wanted.

    Raises:
        ScdpoError: weights are missing; names one.
        RuntimeError: a weight has another shape than the configuration says.
    """
    import transformers
    from accelerate import init_empty_weights

    cls = getattr(transformers, part.model)
    # Random first weights of T5 would take a minute and 19 GB.
    with init_empty_weights(include_buffers=False):
        model = cls(cls.config_class.from_pretrained(str(config), local_files_only=True))
    named = from_open_clip(weights) if part.layout == "open_clip" else dict(weights)
    wrapped = hasattr(model, "text_model")
    named = {_fit(name, wrapped): tensor for name, tensor in named.items()}
    if hasattr(model, "text_projection") and "text_projection.weight" not in named:
        # CLIP-L has none in single files of SD 3: its pooled state is used as it is.
        named["text_projection.weight"] = torch.eye(model.config.projection_dim, dtype=_dtype(named))
    if "shared.weight" in named:
        named.setdefault("encoder.embed_tokens.weight", named["shared.weight"])
    missing, _ = model.load_state_dict(named, strict=False, assign=True)
    if missing:
        raise ScdpoError(f"the text encoder {part.stem} lacks {missing[0]}")
    return model.requires_grad_(False).eval()


def _dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    return next(iter(weights.values())).dtype if weights else torch.float32


def _fit(name: str, wrapped: bool) -> str:
    """The name in this version of transformers, which unwrapped the text encoder without a projection."""
    bare = name.removeprefix("text_model.")
    inside = bare.startswith(("embeddings.", "encoder.layers.", "final_layer_norm."))
    return f"text_model.{bare}" if wrapped and inside else bare


def from_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names as transformers' names; queries, keys and values come apart there.

    The projection is transposed, since OpenCLIP multiplies from the other side.
    """
    named: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name == "text_projection":
            named["text_projection.weight"] = tensor.T.contiguous()
            continue
        for theirs, ours in _OPEN_CLIP:
            name = name.replace(theirs, ours)
        if ".attn.in_proj_" in name:
            layer, kind = name.split(".attn.in_proj_")
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                named[f"{layer}.self_attn.{letter}_proj.{kind}"] = third.contiguous()
        else:
            named[name] = tensor
    return named
