"""The values that travel between the parts. Index 0 of every pair is the chosen image, everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from .conditioning import Conditioning as Conditioning
from .conditioning import EncodedPrompt as EncodedPrompt
from .errors import ScdpoError as ScdpoError

Band = Literal["safe", "review", "unsafe"]

REVIEW_FROM = -1.386
"""Costs from here to `UNSAFE_FROM` deserve a look: ln(0.2 / 0.8)."""
UNSAFE_FROM = 1.386
"""Costs from here on are unsafe beyond doubt: ln(0.8 / 0.2)."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file of the artist's.

    Attributes:
        path: the file or folder.
        what: what is wrong with it and what to do, one sentence or two.
        fatal: whether the work cannot start before it is mended.
    """

    path: Path
    what: str
    fatal: bool = True


@dataclass(frozen=True)
class PreferencePair:
    """Two images made for one prompt, and which of them a person prefers.

    Attributes:
        id: unique in its folder; the file stem, with '/' between subfolders.
        prompt: the text both images were made for.
        chosen: the preferred image's file.
        rejected: the other one's.
        category: what kind of harm the rejected image may show; 'benign' for none; '' if not said.
        safe_prompt: what a harmless image would be asked for with; '' if not said.
        mask: image that is white where the two differ and black where they are to stay the same, or None.
        weight: factor of the pair's loss that the folder asks for, 0 or more.
        repeats: how often it comes in an epoch of training.
    """

    id: str
    prompt: str
    chosen: Path
    rejected: Path
    category: str = ""
    safe_prompt: str = ""
    mask: Path | None = None
    weight: float = 1.0
    repeats: int = 1

    @property
    def is_benign(self) -> bool:
        """Whether its prompt is a harmless one."""
        return self.category.casefold() == "benign"


@dataclass(frozen=True)
class CostScore:
    """How harmful an image is.

    Attributes:
        value: the cost, a real number in log-odds; above 0 is harmful, 0 is the calibrated boundary.
        categories: cost per harm category; None where the scorer does not know the category.
        scorer: id of the scorer, such as 'micro-cost'. Costs of different scorers do not compare.
        scorer_hash: the first 12 hexadecimal digits of the SHA-256 of the scorer's weights.
        details: what the cost is made of, in log-odds: the answers of each network of a joint scorer.
    """

    value: float
    categories: Mapping[str, float | None]
    scorer: str
    scorer_hash: str
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def objection(self) -> str:
        """Which answer speaks most for harm, such as 'drawn sexual (nsfwjs)'; '' where none is in doubt."""
        return objection(self.details)

    @property
    def finite(self) -> bool:
        """Whether all costs are numbers; a broken scorer gives none, which says nothing of the image."""
        return all(cost is None or math.isfinite(cost) for cost in (self.value, *self.categories.values()))

    @property
    def problem(self) -> str:
        """Why the score cannot be used, a sentence; '' if it can."""
        if self.finite:
            return ""
        named = {"": self.value, **{f" ({name})": cost for name, cost in self.categories.items()}}
        name, cost = next((n, c) for n, c in named.items() if c is not None and not math.isfinite(c))
        return f"The scorer '{self.scorer}' gave {cost} for this image{name}, which is no cost."

    @property
    def harmful(self) -> bool:
        """Whether the cost lies above the boundary. One that is not finite counts as harmful."""
        return self.value > 0 or not self.finite

    @property
    def band(self) -> Band:
        """'safe', 'review' or 'unsafe'. A cost that is not finite is never safe."""
        return band_of(self.value) if self.finite else "unsafe"


def band_of(cost: float) -> Band:
    """Return the band of a finite cost."""
    if cost >= UNSAFE_FROM:
        return "unsafe"
    return "review" if cost >= REVIEW_FROM else "safe"


def objection(details: Mapping[str, float]) -> str:
    """Return the name of the highest detail of a score that is at least in the review band; else ''."""
    name = max(details, key=details.__getitem__, default="")
    return name if name and details[name] >= REVIEW_FROM else ""


@dataclass(frozen=True)
class ScoredPair:
    """A pair with the cost of both images."""

    pair: PreferencePair
    chosen_cost: CostScore
    rejected_cost: CostScore


@dataclass(frozen=True)
class LabelledPair:
    """A pair after the combined reward has spoken; training uses these.

    Attributes:
        pair: with `chosen` and `rejected` in the order that training uses (already swapped if `swapped`).
        chosen_cost: cost of `pair.chosen`; None when the pair was not scored.
        rejected_cost: cost of `pair.rejected`; None when the pair was not scored.
        swapped: whether the artist's order was turned round.
        weight: factor of the pair's loss.
        label: probability that `pair.chosen` is the better one, 0.5..1; 1 with hard labels.
        reason: why it is labelled so, for the report.
    """

    pair: PreferencePair
    chosen_cost: float | None
    rejected_cost: float | None
    swapped: bool
    weight: float
    label: float
    reason: str

    @property
    def is_benign(self) -> bool:
        """Whether its prompt is harmless: by its category, or where none is said by both costs."""
        if self.pair.category or self.chosen_cost is None or self.rejected_cost is None:
            return self.pair.is_benign
        return max(self.chosen_cost, self.rejected_cost) <= 0


@dataclass(frozen=True)
class RelabelReport:
    """What relabelling did with each pair; nothing is swapped or dropped silently.

    Attributes:
        kept: ids of the pairs whose order stood.
        swapped: id and reason of each pair that was turned round.
        dropped: id and reason of each pair that training will not see.
    """

    kept: Sequence[str]
    swapped: Sequence[tuple[str, str]]
    dropped: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class CachedPair:
    """A pair as the denoiser sees it, computed once.

    Attributes:
        latents: [2, C, h, w] scaled latents, chosen first.
        embeddings: [T, D] text encoder states of the prompt.
        pooled: [P] pooled state, or None.
        key: hash of both images, the prompt, the family, the encoders and the size.
        mask: [1, h, w], 1 where the two differ, 0 where they are to stay the same; None where nobody says.
        mirrored: [2, C, h, w] scaled latents of both images mirrored, left to right; None where no pair is
            mirrored.
        attention_mask: [T] see `EncodedPrompt.attention_mask`.
    """

    latents: Tensor
    embeddings: Tensor
    pooled: Tensor | None
    key: str
    mask: Tensor | None = None
    mirrored: Tensor | None = None
    attention_mask: Tensor | None = None

    @property
    def prompt(self) -> EncodedPrompt:
        """What the text encoders say of its prompt."""
        return EncodedPrompt(self.embeddings, self.pooled, self.attention_mask)

    @staticmethod
    def of(latents: Tensor, prompt: EncodedPrompt, key: str) -> CachedPair:
        """Return a pair of its latents and its encoded prompt."""
        return CachedPair(latents, **vars(prompt), key=key)

    def with_prompt(self, prompt: EncodedPrompt, key: str) -> CachedPair:
        """Return the same images under another encoded prompt."""
        return replace(self, **vars(prompt), key=key)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a cache keeps of it, by name; whatever it lacks is left out."""
        kept = {"latents": self.latents, **vars(self.prompt)}
        return {name: tensor for name, tensor in kept.items() if tensor is not None}


@dataclass(frozen=True)
class PairBatch:
    """B pairs on the training device.

    Attributes:
        latents: [B, 2, C, h, w] scaled latents, chosen first.
        conditioning: embeddings [B, T, D] and pooled [B, P] or None.
        weight: [B] factor of each pair's loss.
        label: [B] probability that the chosen image is the better one, 0.5..1.
        cost: [B, 2] safety cost of chosen and rejected; NaN where not scored.
        prompts: B texts.
        benign: whether each prompt is harmless; empty: nobody says.
        mask: [B, 1, h, w] 1 where the images of a pair differ, 0 where they are to stay the same; None: of no
            pair is that known.
    """

    latents: Tensor
    conditioning: Conditioning
    weight: Tensor
    label: Tensor
    cost: Tensor
    prompts: tuple[str, ...] = ()
    benign: tuple[bool, ...] = ()
    mask: Tensor | None = None


@dataclass(frozen=True)
class PairErrors:
    """Squared prediction error of both networks on both images, for the same noise and timestep.

    Attributes:
        policy: [B, 2] mean over C, h, w of the squared error with the LoRA on, chosen first.
        reference: [B, 2] the same with the LoRA off.
    """

    policy: Tensor
    reference: Tensor


@dataclass(frozen=True)
class LossOutput:
    """What an objective returns.

    Attributes:
        per_pair: [B] loss of each pair, with gradient.
        metrics: detached scalar tensors by name; nobody needs to wait for the device to get them.
    """

    per_pair: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class LoraFile:
    """A LoRA on disk.

    Attributes:
        path: the safetensors file.
        family: the model family it was trained for, a name in `family_info.FAMILY_INFO`.
        rank: of its matrices.
        keys: number of tensors.
        metadata: everything the file says of itself.
        notes: sentences on what reading it had to assume, such as an alpha that nothing says.
    """

    path: Path
    family: str
    rank: int
    keys: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
