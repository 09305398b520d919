"""Learnt vectors in the place of a placeholder's tokens, in every CLIP text encoder of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...types import ScdpoError
from .simple import with_word

if TYPE_CHECKING:
    from ...families.base import LoadedModel

PLACEHOLDER = "*"
"""A word of one token in every CLIP vocabulary that no ordinary prompt has."""


def embeddings_of(model: LoadedModel) -> list[nn.Embedding]:
    """Return the token embedding of each CLIP text encoder; the encoders stay in memory from now on.

    Raises:
        ScdpoError: the model has none.
    """
    towers: list[Any] = [tower for tower, _ in model.train_texts().values()]
    if not towers:
        raise ScdpoError(
            f"{model.name} has no CLIP text encoder, whose tokens this attack learns. Choose another attack."
        )
    return [tower.get_input_embeddings() for tower in towers]


def token_ids(model: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """Return token ids [N, T] of N texts, for each text encoder."""
    embeddings = embeddings_of(model)
    positions: list[list[Tensor]] = [[] for _ in embeddings]

    def listen(number: int) -> Callable[..., None]:
        return lambda module, args, output: positions[number].append(args[0].detach().cpu())

    handles = [each.register_forward_hook(listen(number)) for number, each in enumerate(embeddings)]
    try:
        model.encode_prompts(list(texts))
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(parts) for parts in positions]


def single_tokens(model: LoadedModel, words: Sequence[str]) -> dict[str, list[int]]:
    """Return those of the words that are one token in every text encoder, with its number in each of them."""
    words = list(dict.fromkeys(words))
    by_tower = token_ids(model, ["", *words])
    ids_of = {}
    for row, word in enumerate(words, start=1):
        # The text is one token long where an end follows it as it follows the start of an empty text.
        if all(ids[row, 2] == ids[0, 1] and ids[row, 1] != ids[0, 1] for ids in by_tower):
            ids_of[word] = [int(ids[row, 1]) for ids in by_tower]
    return ids_of


class LearntTokens:
    """Vectors that replace the placeholder's tokens; the k-th token of a text gets the k-th vector.

    Attributes:
        vectors: [n, D] for each CLIP text encoder, float32.
    """

    def __init__(self, model: LoadedModel, tokens: int) -> None:
        """Begin with the mean of each encoder's vocabulary.

        Raises:
            ScdpoError: the model's vocabulary has no such placeholder.
        """
        self._model, self.tokens = model, tokens
        self._embeddings = embeddings_of(model)
        placeholder = single_tokens(model, [PLACEHOLDER])
        if PLACEHOLDER not in placeholder:
            raise ScdpoError(f"This model's text encoders do not know '{PLACEHOLDER}' as one token.")
        self._ids = placeholder[PLACEHOLDER]
        self.vectors = [
            each.weight.detach().float().mean(0).repeat(tokens, 1).requires_grad_()
            for each in self._embeddings
        ]

    @property
    def text(self) -> str:
        """The learnt tokens as text in a prompt."""
        return " ".join([PLACEHOLDER] * self.tokens)

    def scales(self) -> list[float]:
        """Root mean square of the vocabulary's vectors, by text encoder."""
        return [float(each.weight.detach().float().square().mean().sqrt()) for each in self._embeddings]

    def prompt(self, prompt: str, word: str) -> str:
        """Return the prompt with the learnt tokens in the place of a word."""
        return with_word(prompt, word, self.text)

    @contextmanager
    def inserted(self) -> Iterator[None]:
        """Yield every prompt that is encoded inside has the vectors in it."""

        def put(vectors: Tensor, number: int) -> Callable[..., Tensor]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                positions = args[0] == number
                order = positions.cumsum(1) - 1
                changed = output.clone()
                changed[positions] = vectors[order[positions] % len(vectors)].to(output.dtype)
                return changed

            return hook

        handles = [
            each.register_forward_hook(put(vectors, number))
            for each, vectors, number in zip(self._embeddings, self.vectors, self._ids, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
