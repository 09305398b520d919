"""LoRA files that a run begins with: one that it continues, and one that becomes part of its base model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ..config.optim import LoraSettings
from ..config.settings import TrainSettings
from ..families.source import lora_family
from ..family_info import FAMILY_INFO
from ..lora.file import changed_at, load_lora
from ..lora.formats.keys import TEXT_ENCODERS, text_module
from ..lora.weights import by_module, kind_of
from ..types import ScdpoError

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..lora.adapter import LoraAdapter

INIT, REFERENCE = "--init-lora", "--reference-lora"
_TITLES = {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}


def lora_files(settings: TrainSettings) -> dict[str, Path]:
    """Name the LoRA files of a run by their flags."""
    files = {INIT: settings.lora.init_lora, REFERENCE: settings.model.reference_lora}
    return {flag: path for flag, path in files.items() if path is not None}


def content_hashes(settings: TrainSettings) -> dict[str, str]:
    """Hash the LoRA files that the run starts with: their content decides what is learnt, not their path.

    Raises:
        ScdpoError: see `load_lora`.
    """
    return {f"content of {flag}": content_hash(path) for flag, path in lora_files(settings).items()}


def content_hash(path: Path) -> str:
    """12 hexadecimal digits that change with any weight of a LoRA, and not with the dialect of its names.

    Raises:
        ScdpoError: see `load_lora`.
    """
    try:
        return _content_hash(path, changed_at(path))
    except OSError as error:
        raise ScdpoError(f"{path} cannot be read ({error.strerror or error}).") from error


@lru_cache(maxsize=8)
def _content_hash(path: Path, _: int) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_lora(path)[0].items()):
        values = tensor.detach().float().contiguous()
        digest.update(f"{name} {tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:12]


def problems_of_loras(settings: TrainSettings, family: str | None) -> Iterator[str]:
    """Say what is wrong with the run's LoRA files.

    Args:
        settings: of the run.
        family: of the base model; None where its files do not tell.
    """
    for flag, path in lora_files(settings).items():
        try:
            state, file = load_lora(path)
        except ScdpoError as error:
            yield f"{flag}: {error}"
            continue
        required = None if family is None else lora_family(settings.model.base, family)
        if required is not None and file.family and file.family != required:
            yield (
                f"{flag} {path} is a LoRA for {FAMILY_INFO[file.family].title}, and the base model is "
                f"{FAMILY_INFO[required].title}. Give a LoRA for that, or the base that this one is for."
            )
        elif flag == INIT:
            kinds = {kind_of(parts) for parts in by_module(state).values()}
            has_texts = any(name.startswith(TEXT_ENCODERS) for name in state)
            yield from _problems_of_init(settings, path, kinds, has_texts)


def _problems_of_init(settings: TrainSettings, path: Path, kinds: set[str], has_texts: bool) -> Iterator[str]:
    lora, coded = settings.lora, settings.model.quantize
    if has_texts and not lora.train_text:
        yield f"{INIT} {path} adapts text encoders too: give --train-text, so that they train on."
    if lora.train_text and not has_texts:
        yield f"{INIT} {path} adapts no text encoder: leave --train-text out."
    if len(kinds) > 1:
        named = " and ".join(_TITLES[kind] for kind in sorted(kinds))
        yield f"{INIT} {path} mixes {named}, and one kind trains at a time. Give a file of one kind."
        return
    kind = next(iter(kinds))
    reads_base = kind == "dora" or (coded == "nf4" and kind != "lora" and not lora.init_rank)
    if coded != "off" and reads_base:
        yield (
            f"{INIT} {path} is a {_TITLES[kind]}, which looks at the base's own matrices, and --quantize "
            f"{coded} has coded them: leave --quantize out."
        )
    if lora.dropout and kind in ("loha", "lokr") and not lora.init_rank:
        yield f"{INIT} {path} is a {_TITLES[kind]}, which drops no inputs: leave --dropout out."


def continue_lora(model: LoadedModel, settings: LoraSettings, path: Path, seed: int) -> LoraAdapter:
    """Put the LoRA that a run continues into a model that has none.

    Args:
        model: loaded; with text encoders trained, pairs must be encoded already.
        settings: of the run.
        path: of the file.
        seed: of what its rank grows by.

    Raises:
        ScdpoError: it does not fit the model.
    """
    from ..families.block_offload import readable
    from ..lora.adapter import attach_file

    texts: dict[str, nn.Module] = {}
    if settings.train_text:
        texts = {f"{name}.": tower for name, (tower, _) in model.train_texts().items()}
    try:
        with readable(model.denoiser):
            adapter, _ = attach_file(
                model.denoiser, path, texts, rank=settings.init_rank, dropout=settings.dropout, seed=seed
            )
    except ScdpoError as error:
        hint = "" if settings.init_rank else " With --init-rank 16 it goes on as a plain LoRA of that rank."
        raise type(error)(f"{INIT}: {error}{hint}") from error
    return adapter


class ReferenceMerge:
    """Makes a LoRA part of the components of a base model that it changes, right after they are read."""

    def __init__(self, path: Path) -> None:
        """Merge the LoRA of that file, which is read when the first component is."""
        self._path = path

    def __call__(self, owner: str, network: nn.Module) -> None:
        """Change a network.

        Args:
            owner: how the canonical names of its modules begin: '' for the denoiser, 'text_encoder.'.
            network: in main memory.

        Raises:
            ScdpoError: the file cannot be read, or does not fit.
        """
        from ..lora.merge_base import merge_into

        paths = {text_module(owner, path) if owner else path: path for path, _ in network.named_modules()}
        changes = {
            paths.get(module, module): parts
            for module, parts in by_module(load_lora(self._path)[0]).items()
            if (module.startswith(owner) if owner else not module.startswith(TEXT_ENCODERS))
        }
        try:
            merge_into(network, changes)
        except ScdpoError as error:
            raise ScdpoError(f"{REFERENCE} {self._path} cannot be used: {error}") from error


def facts_of_loras(settings: TrainSettings) -> dict[str, object]:
    """Return the metadata that names the LoRAs that a run started with."""
    names = {INIT: "init_lora", REFERENCE: "reference_lora"}
    facts: dict[str, object] = {}
    for flag, path in lora_files(settings).items():
        facts |= {names[flag]: path.name, f"{names[flag]}_hash": content_hash(path)}
    return facts


def used_with(settings: TrainSettings) -> str:
    """Return a sentence about the LoRA that the result is to be used with; '' where there is none."""
    path = settings.model.reference_lora
    return "" if path is None else f"It was made on top of {path.name}: use both, or merge them into one."
