"""The conditioning of a denoiser: the encoded states of one prompt, and of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from .errors import ScdpoError

_MOST_REPEATED = 12


@dataclass(frozen=True)
class EncodedPrompt:
    """What the text encoders say of one prompt.

    Attributes:
        embeddings: [T, D] text encoder states.
        pooled: [P] pooled state, for the families that use one.
        attention_mask: [T] bool, False where a state is padding behind the prompt; None where all are read.
    """

    embeddings: Tensor
    pooled: Tensor | None = None
    attention_mask: Tensor | None = None

    def trimmed(self) -> EncodedPrompt:
        """Return the same without its padding."""
        if self.attention_mask is None:
            return self
        read = int(self.attention_mask.sum())
        return replace(
            self, embeddings=self.embeddings[:read], attention_mask=self.attention_mask[:read].clone()
        )

    def padded(self, length: int) -> EncodedPrompt:
        """Return the same with `length` states: zeros stand behind the prompt, and the mask leaves them out.

        Raises:
            ValueError: it has no mask to say so, or more states than that.
        """
        missing = length - len(self.embeddings)
        if self.attention_mask is None or missing < 0:
            raise ValueError(f"A prompt of {len(self.embeddings)} states cannot be padded to {length}.")
        return replace(
            self,
            embeddings=pad(self.embeddings, (0, 0, 0, missing)),
            attention_mask=pad(self.attention_mask, (0, missing)),
        )


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser knows of the prompt.

    Attributes:
        embeddings: [N, T, D] text encoder states.
        pooled: [N, P] pooled states, for the families that use them.
        sizes: [N, 6] pixels: height and width before cropping, top and left of the crop, height and width
            asked for (SDXL). None: of an uncropped image of the latents' size.
        guidance: [N] the guidance that a distilled model imitates (FLUX.1 dev). None: the one it trains with.
        attention_mask: [N, T] bool, False where a state is padding behind a shorter prompt, for the families
            whose prompts differ in length. None: every state is read.
    """

    embeddings: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    guidance: Tensor | None = None
    attention_mask: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """Return the same with every tensor changed alike: moved, repeated or cut along N."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: change(part) for name, part in given.items() if part is not None}
        return replace(self, **changed)

    def __len__(self) -> int:
        """Return how many prompts."""
        return len(self.embeddings)

    def lengths(self) -> list[int]:
        """Return how many states of each prompt are read."""
        if self.attention_mask is None:
            return [self.embeddings.shape[1]] * len(self)
        lengths: list[int] = self.attention_mask.sum(1).tolist()
        return lengths

    def prompt(self, index: int) -> EncodedPrompt:
        """Return one of the N prompts."""
        pooled, mask = (None if part is None else part[index] for part in (self.pooled, self.attention_mask))
        return EncodedPrompt(self.embeddings[index], pooled, mask)

    def padded(self, length: int) -> Conditioning:
        """Return the same with `length` states a prompt, see `EncodedPrompt.padded`."""
        missing = length - self.embeddings.shape[1]
        if self.attention_mask is None or missing < 0:
            raise ValueError(f"Prompts of {self.embeddings.shape[1]} states cannot be padded to {length}.")
        return replace(
            self,
            embeddings=pad(self.embeddings, (0, 0, 0, missing)),
            attention_mask=pad(self.attention_mask, (0, missing)),
        )

    @staticmethod
    def concat(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenate several batches, all with the same kinds of text conditioning.

        Embeddings of several lengths are padded to the longest where masks say so. Others are repeated to a
        common length, which changes nothing for networks that read them by cross attention
        (`families.chunks.fill`).

        Raises:
            ScdpoError: there is no common length, as where T5's states stand behind CLIP's.
        """
        lengths = {part.embeddings.shape[1] for part in parts}
        if len(lengths) > 1 and all(part.attention_mask is not None for part in parts):
            parts = [part.padded(max(lengths)) for part in parts]
        elif len(lengths) > 1:
            longest = math.lcm(*lengths)
            if longest > _MOST_REPEATED * min(lengths):
                raise ScdpoError(
                    "Prompts of more than 75 tokens cannot be mixed with shorter ones in this objective and "
                    "for this family. Set prompt_chunks to 1, which cuts them off there."
                )
            parts = [
                replace(part, embeddings=part.embeddings.repeat(1, longest // part.embeddings.shape[1], 1))
                for part in parts
            ]
        joined: dict[str, Tensor] = {}
        for name in (part.name for part in fields(Conditioning)):
            values = [value for part in parts if (value := getattr(part, name)) is not None]
            if values:
                joined[name] = torch.cat(values)
        return Conditioning(**joined)
