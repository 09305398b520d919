"""A LoRA in a whole model, from the settings or from a file: in its denoiser and in its text encoders."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ..config.optim import LoraSettings
from ..families.block_offload import readable
from ..lora.adapter import LoraAdapter, attach, attach_file
from ..lora.file import load_lora
from ..lora.formats.names import TEXT_ENCODERS
from ..lora.targets import target_modules
from ..types import Conditioning, LoraFile, ScdpoError
from .starting_loras import continue_lora

if TYPE_CHECKING:
    from ..families.base import LoadedModel

_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\..*")


def attach_lora(model: LoadedModel, settings: LoraSettings, seed: int) -> LoraAdapter:
    """Put the run's LoRA into a model that has none.

    With `settings.init_lora` that is the LoRA of that file. With `settings.train_text` every CLIP text
    encoder gets one as well, of the same kind, with ranks of its own under the blocks 'text_encoder' and
    'text_encoder_2'; T5 never does. Layers that nothing reads (the last of SDXL's first encoder) are left
    out.

    Args:
        model: loaded; with text encoders trained, pairs must be encoded already.
        settings: the LoRA's shape.
        seed: of its first weights.

    Raises:
        ScdpoError: a block has no module here, or nothing is left to train.
    """
    if settings.init_lora is not None:
        return continue_lora(model, settings, settings.init_lora, seed)
    ranks = settings.rank_of_block
    text_ranks = {block: rank for block, rank in ranks.items() if block.startswith("text_encoder")}
    if text_ranks and not settings.train_text:
        raise ScdpoError(
            f"lora.block_ranks names '{next(iter(text_ranks))}', but no text encoder is trained: give "
            "--train-text, or take the block out."
        )
    own = {block: rank for block, rank in ranks.items() if block not in text_ranks}
    with readable(model.denoiser):
        adapter = attach(
            model.denoiser,
            rank=settings.rank,
            alpha=settings.effective_alpha,
            targets=settings.targets,
            dropout=settings.dropout,
            seed=seed,
            kind=settings.kind,
            ranks=own,
        )
    if not settings.train_text:
        return adapter
    towers = model.train_texts()
    for block in text_ranks:
        if block.split(".")[0] not in towers:
            raise ScdpoError(f"There is a rank for '{block}', but this model's are: {', '.join(towers)}.")
    for number, (name, (tower, unread)) in enumerate(towers.items(), start=1):
        own = {block: rank for block, rank in text_ranks.items() if block.split(".")[0] == name}
        if own.get(name) == 0:
            continue
        part = attach(
            tower,
            rank=settings.rank,
            alpha=settings.effective_alpha,
            targets=text_targets(tower, settings, unread),
            dropout=settings.dropout,
            seed=seed + number,
            kind=settings.kind,
            ranks=own,
            owner=next(owner for owner in TEXT_ENCODERS if owner == f"{name}."),
        )
        adapter = adapter.joined(part)
    return adapter


def attach_finished(model: LoadedModel, path: Path) -> tuple[LoraAdapter, LoraFile]:
    """Put a finished LoRA into a model that has none: into its text encoders too where the file adapts them.

    Prompts are then encoded with the LoRA at the strength at which it stands, as the denoiser draws with it.

    Args:
        model: loaded.
        path: the file.

    Raises:
        ScdpoError: as `attach_file`; the file adapts T5, or a text encoder that the model lacks.
    """
    texts: dict[str, nn.Module] = {}
    # Only then: text encoders that hold a LoRA stay in memory.
    if any(name.startswith(TEXT_ENCODERS) for name in load_lora(path)[0]):
        texts = {f"{name}.": tower for name, (tower, _) in model.train_texts().items()}
    with readable(model.denoiser):
        return attach_file(model.denoiser, path, texts)


def text_targets(tower: nn.Module, settings: LoraSettings, unread: int) -> list[str]:
    """Paths of the modules of a text encoder that a LoRA adapts, without its last `unread` layers."""
    names = target_modules(tower, settings.targets)
    layers = {name: int(match[1]) for name in names if (match := _LAYER.fullmatch(name))}
    read = 1 + max(layers.values(), default=0) - unread
    return [name for name in names if layers.get(name, -1) < read]


LiveEncoder = Callable[[Sequence[str], Conditioning], Conditioning]
"""Prompts, and what the untrained encoders said of them, to conditioning with gradients."""


def encode_prompts_with_grad(model: LoadedModel, settings: LoraSettings) -> LiveEncoder | None:
    """What encodes prompts anew for the policy in every step; None where no text encoder trains.

    The reference keeps the embeddings of the cache, which the untrained encoders made.
    """
    if not settings.train_text:
        return None
    towers = [tower for tower, _ in model.train_texts().values()]

    def encode(prompts: Sequence[str], known: Conditioning) -> Conditioning:
        # Only for as long as it takes: samples are drawn, and held-out pairs looked at, without dropout.
        for tower in towers:
            tower.train(settings.dropout > 0 and model.denoiser.training)
        encoded = model.live_prompts(list(prompts), known)
        for tower in towers:
            tower.eval()
        return dataclasses.replace(encoded, sizes=known.sizes, guidance=known.guidance)

    return encode
