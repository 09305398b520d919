"""Attacks that learn from images: textual inversion, and a search for words over the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ...types import ScdpoError
from ..judges import ImageRequest
from .base import Attacked, Budget, Examples, Sampling, Target, attacked, draw
from .probes import Noised, Probes
from .simple import names_word, with_word
from .tokens import LearntTokens, embeddings_of, single_tokens

if TYPE_CHECKING:
    from ...families.base import LoadedModel


def by_word(requests: Sequence[ImageRequest], words: Sequence[str]) -> dict[str, list[int]]:
    """Return which prompts ask for which word: the first of `words` that each names.

    Raises:
        ValueError: a prompt names none of them.
    """
    groups: dict[str, list[int]] = {}
    for number, one in enumerate(requests):
        word = next((word for word in words if names_word(one.caption, word)), None)
        if word is None:
            raise ValueError(f"'{one.caption}' names none of: {', '.join(words)}.")
        groups.setdefault(word, []).append(number)
    return groups


@dataclass(frozen=True)
class Inversion:
    """Textual inversion (Gal et al. 2022): token embeddings learnt from images, in the place of a word.

    Attributes:
        examples: by the word that the learnt tokens replace; prompts that name it.
        tokens: learnt for each word.
        steps: of Adam for each word.
        batch: images a step.
        rate: learning rate, as a share of the root mean square of the vocabulary's vectors.
        seed: of noise and timesteps.
    """

    examples: Mapping[str, Examples]
    tokens: int = 1
    steps: int = 40
    batch: int = 8
    rate: float = 0.1
    seed: int = 0

    @property
    def name(self) -> str:
        """See `Attack`."""
        return f"inversion_{self.tokens}x{self.steps}"

    def __call__(self, target: Target, requests: Sequence[ImageRequest], sampling: Sampling) -> Attacked:
        """See `Attack`."""
        prompts, images = [""] * len(requests), dict[int, Image.Image]()
        budget = Budget()
        for word, numbers in by_word(requests, list(self.examples)).items():
            examples = self.examples[word]
            learnt = self.learn(target.model, word, examples)
            with learnt.inserted(), torch.no_grad():
                some = [requests[number] for number in numbers]
                texts = [learnt.prompt(one.caption, word) for one in some]
                drawn = draw(target.model, some, sampling, texts)
            for number, prompt, image in zip(numbers, texts, drawn, strict=True):
                prompts[number], images[number] = prompt, image
            budget += Budget(self.steps, self.steps * self.batch, len(examples.images))
        return attacked(self.name, requests, prompts, [images[k] for k in range(len(requests))], budget)

    def learn(self, model: LoadedModel, word: str, examples: Examples) -> LearntTokens:
        """Learn embeddings that replace a word."""
        learnt = LearntTokens(model, self.tokens)
        texts = [learnt.prompt(prompt, word) for prompt in examples.prompts]
        encoded = model.encode_prompts(texts)
        probes = Probes(model, examples, self.seed)
        dice = torch.Generator().manual_seed(self.seed)
        for vectors, scale in zip(learnt.vectors, learnt.scales(), strict=True):
            # Tokens with equal start values would stay equal.
            vectors.data += 0.1 * scale * torch.randn(vectors.shape, generator=dice).to(vectors.device)
        optimizer = torch.optim.Adam(
            [
                {"params": [vectors], "lr": self.rate * scale}
                for vectors, scale in zip(learnt.vectors, learnt.scales(), strict=True)
            ]
        )
        with learnt.inserted():
            for _ in range(self.steps):
                probe = probes.draw(self.batch)
                some = encoded.map(itemgetter(probe.rows))
                words = model.live_prompts([texts[row] for row in probe.rows], some)
                loss = probe.error(model, words).mean()
                for vectors, gradient in zip(
                    learnt.vectors, torch.autograd.grad(loss, learnt.vectors), strict=True
                ):
                    vectors.grad = gradient
                optimizer.step()
        return learnt


@dataclass(frozen=True)
class PromptSearch:
    """Words of the vocabulary in the place of a word, so that the model denoises what is wanted.

    The error on images of the wanted thing is what is made small, as UnlearnDiffAtk does (Zhang et al. 2023);
    which words are tried says its gradient at the word that stands there (HotFlip, Ebrahimi et al. 2018), as
    in Prompting4Debugging (Chin et al. 2023). The best of them by the error itself stays.

    Attributes:
        examples: by the word that is replaced; prompts that name it.
        vocabulary: words to choose from; those of several tokens are left out.
        forbidden: words that must not be used, such as those a filter of prompts knows.
        length: words in the place of one.
        rounds: how often each of them is optimised.
        candidates: words that are tried each time.
        probes: noised images that a word is tried on.
        seed: of noise, timesteps and the first words.
    """

    examples: Mapping[str, Examples]
    vocabulary: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    length: int = 3
    rounds: int = 2
    candidates: int = 16
    probes: int = 8
    seed: int = 0

    @property
    def name(self) -> str:
        """See `Attack`."""
        return f"search_{self.length}x{self.rounds}"

    def __call__(self, target: Target, requests: Sequence[ImageRequest], sampling: Sampling) -> Attacked:
        """See `Attack`."""
        prompts, budget = [one.caption for one in requests], Budget()
        vocabulary = single_tokens(target.model, [w for w in self.vocabulary if w not in self.forbidden])
        for word, numbers in by_word(requests, list(self.examples)).items():
            tokens, spent = self.find(target.model, word, self.examples[word], vocabulary)
            for number in numbers:
                prompts[number] = with_word(prompts[number], word, " ".join(tokens))
            budget += spent
        images = draw(target.model, requests, sampling, prompts)
        return attacked(self.name, requests, prompts, images, budget)

    def find(
        self, model: LoadedModel, word: str, examples: Examples, vocabulary: Mapping[str, Sequence[int]]
    ) -> tuple[list[str], Budget]:
        """Return the words that replace one, and the search's budget.

        Args:
            model: to attack.
            word: to replace.
            examples: of what it means.
            known: words to choose from, with their token in each text encoder.

        Raises:
            ScdpoError: there are fewer of them than candidates.
        """
        if len(vocabulary) < self.candidates:
            raise ScdpoError(
                f"Only {len(vocabulary)} of the candidate words are one token in this model's text encoders: "
                "too few for a search."
            )
        dice = torch.Generator().manual_seed(self.seed)
        names = list(vocabulary)
        first = torch.randint(len(names), (self.length,), generator=dice)
        words = [names[int(number)] for number in first]
        probe = Probes(model, examples, self.seed).draw(self.probes)
        texts = [examples.prompts[row] for row in probe.rows]
        learnt = LearntTokens(model, self.length)
        best = float("inf")
        for _ in range(self.rounds):
            for position in range(self.length):
                for candidate in self._promising(
                    model, learnt, words, position, word, texts, probe, vocabulary
                ):
                    tried = [*words[:position], candidate, *words[position + 1 :]]
                    error = self._error(model, tried, word, texts, probe)
                    if error < best:
                        best, words = error, tried
        trials = self.rounds * self.length
        queries = trials * (self.candidates + 1) * self.probes
        return words, Budget(trials, queries, len(examples.images))

    def _promising(
        self,
        model: LoadedModel,
        learnt: LearntTokens,
        words: Sequence[str],
        position: int,
        word: str,
        texts: Sequence[str],
        probe: Noised,
        vocabulary: Mapping[str, Sequence[int]],
    ) -> list[str]:
        """Return the words that the gradient at one position favours, the most promising first."""
        embeddings = embeddings_of(model)
        rows = [torch.tensor([ids[tower] for ids in vocabulary.values()]) for tower in range(len(embeddings))]
        for tower, (vectors, table) in enumerate(zip(learnt.vectors, embeddings, strict=True)):
            now = torch.tensor([vocabulary[each][tower] for each in words], device=table.weight.device)
            vectors.data.copy_(table.weight[now].detach())
        prompts = [learnt.prompt(prompt, word) for prompt in texts]
        with learnt.inserted():
            live = model.live_prompts(prompts, model.encode_prompts(prompts))
            gradients = torch.autograd.grad(probe.error(model, live).mean(), learnt.vectors)
        gain = torch.zeros(len(vocabulary))
        for token_ids, table, gradient in zip(rows, embeddings, gradients, strict=True):
            weight = table.weight.detach()[token_ids.to(table.weight.device)].float()
            gain -= (weight @ gradient[position].float()).cpu()
        names = list(vocabulary)
        return [names[int(number)] for number in gain.topk(min(self.candidates, len(names))).indices]

    @staticmethod
    @torch.no_grad()
    def _error(
        model: LoadedModel, words: Sequence[str], word: str, texts: Sequence[str], probe: Noised
    ) -> float:
        prompts = [with_word(prompt, word, " ".join(words)) for prompt in texts]
        return float(probe.error(model, model.encode_prompts(prompts)).mean())
