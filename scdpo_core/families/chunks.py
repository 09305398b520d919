"""Text encoders, and prompts longer than CLIP reads at once: cut into chunks of 75 tokens, as hosts do.

ComfyUI and A1111 encode each chunk between a start and an end token of its own and put the states one behind
the other; the pooled state is the first chunk's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..devices import sent

_SPECIAL = 2  # the start and the end token of a chunk
_MOST_REPEATED = 12


@dataclass(frozen=True)
class TextStates:
    """What a text encoder says of N prompts.

    Attributes:
        words: [N, chunks * T, D] states of the tokens.
        pooled: [N, P] pooled states of the first chunks; None if the encoder has none.
        mask: [N, T] bool, False where a state is padding that the denoiser does not read; None where it reads
            all.
    """

    words: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder in memory.

    Attributes:
        tokenizer: its tokenizer.
        model: the network, frozen.
        tokens: T, to which every prompt or chunk is padded or cut.
    """

    tokenizer: Any
    model: Any
    tokens: int

    def states(self, prompts: list[str], *, masked: bool = False) -> TextStates:
        """Encode N prompts, each cut off at T tokens.

        Args:
            prompts: N of them.
            masked: whether padding is hidden from the prompts' own tokens, and a mask tells which those are.
        """
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )
        if not masked:
            return self._run(tokens.input_ids, hidden=False)
        mask = sent(tokens.attention_mask, self.model.device)
        return replace(self._run(tokens.input_ids, hidden=False, mask=mask), mask=mask.bool())

    def chunked(
        self, prompts: list[str], chunks: int, most: int, *, hidden: bool = False, repeat: bool = True
    ) -> TextStates:
        """Encode N prompts as chunks.

        Args:
            prompts: N of them.
            chunks: that each prompt shall have; see `fill`.
            most: chunks that are read of a prompt, at most `chunks`; what does not fit is cut off.
            hidden: take the states of the last layer but one instead of the last.
            repeat: see `fill`.
        """
        rows: list[list[int]] = []
        places: list[list[int]] = []
        for prompt in prompts:
            own = self._chunks(prompt)[: min(most, chunks)]
            first, after = len(rows), len(rows) + len(own)
            places.append(fill(range(first, after), after, chunks, repeat))
            rows += own
            if after in places[-1]:
                rows.append(self._framed([]))
        states = self._run(torch.tensor(rows), hidden)
        if chunks == 1:
            return states
        place = sent(torch.tensor(places), states.words.device)
        pooled = None if states.pooled is None else states.pooled[place[:, 0]]
        return TextStates(states.words[place].flatten(1, 2), pooled)

    def count(self, prompt: str) -> int:
        """How many chunks a prompt fills; an empty one fills one."""
        return max(1, math.ceil(len(self._ids(prompt)) / self.body))

    def unread(self, prompt: str, chunks: int | None = None) -> str:
        """The end of a prompt that is not read.

        Args:
            prompt: of any length.
            chunks: that are read; None for an encoder that reads T tokens and no more.
        """
        # T5 ends a prompt with one token and begins with none.
        read = self.tokens - 1 if chunks is None else chunks * self.body
        ids = self._ids(prompt)
        return str(self.tokenizer.decode(ids[read:])).strip() if len(ids) > read else ""

    @cached_property
    def body(self) -> int:
        """Tokens of a prompt in a chunk."""
        return self.tokens - _SPECIAL

    def _ids(self, prompt: str) -> list[int]:
        # Quietly: that a prompt is longer than the model is no mistake here.
        return list(self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)

    def _chunks(self, prompt: str) -> list[list[int]]:
        ids = self._ids(prompt)
        return [self._framed(ids[at : at + self.body]) for at in range(0, max(1, len(ids)), self.body)]

    def _framed(self, ids: list[int]) -> list[int]:
        words = self.tokenizer
        framed = [words.bos_token_id, *ids, words.eos_token_id]
        return framed + [words.pad_token_id] * (self.tokens - len(framed))

    def _run(self, tokens: Tensor, hidden: bool, mask: Tensor | None = None) -> TextStates:
        answer = self.model(
            input_ids=sent(tokens, self.model.device), attention_mask=mask, output_hidden_states=hidden
        )
        words = answer.hidden_states[-2] if hidden else answer.last_hidden_state
        pooled = getattr(answer, "text_embeds", None)
        return TextStates(words, getattr(answer, "pooler_output", None) if pooled is None else pooled)


def fill(own: Sequence[int], empty: int, chunks: int, repeat: bool) -> list[int]:
    """The chunks of a prompt that has fewer than it shall have.

    Repeated a whole number of times they say exactly what they said alone to a network that reads them by
    cross attention: softmax shares its weight among equal keys. ComfyUI does so. Otherwise empty chunks
    follow, as in A1111.

    Args:
        own: the prompt's chunks, by number.
        empty: the number of a chunk without words.
        chunks: how many there shall be, at least as many as there are.
        repeat: whether they may be repeated.
    """
    if repeat and chunks % len(own) == 0:
        return [*own] * (chunks // len(own))
    return [*own, *[empty] * (chunks - len(own))]


def common(counts: Sequence[int], repeat: bool) -> int:
    """To how many chunks prompts of so many are brought: with repeating a common multiple, if it is small."""
    multiple = math.lcm(*counts) if repeat else max(counts)
    return multiple if multiple <= _MOST_REPEATED else max(counts)
