"""How latent models encode prompts: portions, chunks, text encoders that train, and what is not read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..types import Conditioning, EncodedPrompt
from .base import LoadOptions
from .chunks import TextEncoder, common, fill
from .component_layout import ComponentLayout
from .components import Encoders
from .offload import LIVE, TEXTS, OffloadManager
from .text_encoders import AnyTextEncoder

_PROMPTS_AT_ONCE = 32


class PromptModel(ABC):
    """The part of `LoadedModel` that has to do with prompts."""

    unread_layers: ClassVar[Mapping[str, int]] = {}
    """Folder of a text encoder -> how many of its last layers no state that the denoiser sees depends on."""
    reads_chunks: ClassVar[bool] = True
    """Whether the denoiser sees the states of CLIP's tokens, and not its pooled state alone."""
    repeats_chunks: ClassVar[bool] = True
    """Whether a prompt's chunks may be repeated without effect, see `chunks.fill`."""

    _layout: ComponentLayout
    _options: LoadOptions
    _offload: OffloadManager
    _live: tuple[AnyTextEncoder | None, ...] | None

    @abstractmethod
    def _get_encoders(self) -> Encoders:
        """The encoders, read again if they were released."""

    @abstractmethod
    def _encode(
        self, encoders: Encoders, prompts: list[str], chunks: int, known: Conditioning | None = None
    ) -> Conditioning:
        """What the denoiser knows of a portion of prompts; what T5 says of them may be known already."""

    def _text_tokens(self, index: int) -> int:
        """Length of a text encoder's prompts; 0 is the tokenizer's own."""
        return 0

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `LoadedModel.encode_prompts`."""
        encoders = self._get_encoders()
        chunks = common([self.prompt_chunks(prompt) for prompt in prompts] or [1], self.repeats_chunks)
        return self._offload.run(TEXTS, lambda: self._words(encoders, prompts, chunks, None))

    def live_prompts(self, prompts: list[str], known: Conditioning) -> Conditioning:
        """See `LoadedModel.live_prompts`."""
        assert self._live is not None  # `train_texts` comes first
        chunks = (
            self._split(known.embeddings[0])[0].shape[0] // self._clip().tokens if self.reads_chunks else 1
        )
        return self._words(Encoders(self._live, None), prompts, chunks, known)

    def _words(
        self, encoders: Encoders, prompts: list[str], chunks: int, known: Conditioning | None
    ) -> Conditioning:
        parts = []
        at_once = max(1, _PROMPTS_AT_ONCE // chunks)
        for first in range(0, len(prompts), at_once):
            some = slice(first, first + at_once)
            told = None if known is None else known.map(itemgetter(some))
            parts.append(self._encode(encoders, prompts[some], chunks, told))
        whole = Conditioning.concat(parts)
        pooled = None if whole.pooled is None else whole.pooled.float()
        return replace(whole, embeddings=whole.embeddings.float(), pooled=pooled)

    def prompt_chunks(self, prompt: str) -> int:
        """See `LoadedModel.prompt_chunks`."""
        return min(self._clip().count(prompt), self._most_chunks) if self.reads_chunks else 1

    def level_prompts(self, prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
        """See `LoadedModel.level_prompts`."""
        if all(prompt.attention_mask is not None for prompt in prompts):
            longest = max(len(prompt.embeddings) for prompt in prompts)
            return [prompt.padded(longest) for prompt in prompts]
        leveled = self._level_chunks([prompt.embeddings for prompt in prompts])
        return [replace(prompt, embeddings=own) for prompt, own in zip(prompts, leveled, strict=True)]

    def _level_chunks(self, embeddings: Sequence[Tensor]) -> list[Tensor]:
        if not self.reads_chunks:
            return list(embeddings)
        parts = [self._split(each) for each in embeddings]
        length = self._clip().tokens
        counts = [len(clip) // length for clip, _ in parts]
        chunks = common(counts, self.repeats_chunks)
        if set(counts) == {chunks}:
            return list(embeddings)
        empty: Tensor | None = None
        leveled = []
        for (clip, rest), count in zip(parts, counts, strict=True):
            numbers = fill(range(count), count, chunks, self.repeats_chunks)
            own = [*clip.split(length)]
            if count in numbers:
                if empty is None:
                    empty = self._split(self.encode_prompts([""]).embeddings[0])[0]
                own.append(empty.to(clip))
            leveled.append(torch.cat([*(own[number] for number in numbers), rest]))
        return leveled

    def unread(self, prompt: str) -> dict[str, str]:
        """See `LoadedModel.unread`."""
        found: dict[str, str] = {}
        for part, text in zip(self._layout.texts, self._get_encoders().texts, strict=True):
            if text is None:
                continue
            if part.kind != "clip":
                reader = "T5" if part.kind == "t5" else "The text encoder"
                found[f"{reader} reads {text.tokens} tokens"] = text.unread(prompt)
            elif self.reads_chunks and isinstance(text, TextEncoder):
                most = self._most_chunks
                found[f"CLIP reads {most * text.body} tokens"] = text.unread(prompt, most)
        return {reader: end for reader, end in found.items() if end}

    def _split(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The states of CLIP's tokens and those of T5's, of [T, D] embeddings."""
        return embeddings, embeddings[:0]

    @property
    def _most_chunks(self) -> int:
        return self._options.prompt_chunks

    def _clip(self) -> TextEncoder:
        texts = self._live or self._get_encoders().texts
        return next(text for text in texts if isinstance(text, TextEncoder))

    def train_texts(self) -> dict[str, tuple[nn.Module, int]]:
        """See `LoadedModel.train_texts`."""
        if self._live is None:
            texts = self._get_encoders().texts
            trains = [part.kind == "clip" for part in self._layout.texts]
            self._live = tuple(text if own else None for text, own in zip(texts, trains, strict=True))
            self._offload.register(
                TEXTS, models_of(text for text, own in zip(texts, trains, strict=True) if not own)
            )
            self._offload.register(LIVE, models_of(self._live))
            self._offload.load(LIVE)
            self._offload.pin(LIVE)
        return {
            part.folder: (text.model, self.unread_layers.get(part.folder, 0))
            for part, text in zip(self._layout.texts, self._live, strict=True)
            if text is not None
        }

    def live_texts(self) -> list[nn.Module]:
        """See `LoadedModel.live_texts`."""
        return models_of(self._live or ())


def models_of(texts: Iterable[AnyTextEncoder | None]) -> list[nn.Module]:
    """The networks of the text encoders that are there."""
    return [text.model for text in texts if text is not None]
