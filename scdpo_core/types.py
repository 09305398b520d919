"""The values that travel between the parts. Index 0 of every pair is the chosen image, everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

Band = Literal["safe", "review", "unsafe"]

REVIEW_FROM = -1.386
"""Costs from here to `UNSAFE_FROM` deserve a look: ln(0.2 / 0.8)."""
UNSAFE_FROM = 1.386
"""Costs from here on are unsafe beyond doubt: ln(0.8 / 0.2)."""


class ScdpoError(Exception):
    """An error whose message is written for the artist: what is wrong, where, and what to do."""


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
    """Two pictures made for one prompt, and which of them a person prefers.

    Attributes:
        id: unique in its folder; the file stem, with '/' between subfolders.
        prompt: the text both pictures were made for.
        chosen: the preferred picture's file.
        rejected: the other one's.
        category: what kind of harm the rejected picture may show; 'benign' for none; '' if not said.
    """

    id: str
    prompt: str
    chosen: Path
    rejected: Path
    category: str = ""


@dataclass(frozen=True)
class CostScore:
    """How harmful a picture is.

    Attributes:
        value: the cost, a real number in log-odds; above 0 is harmful, 0 is the calibrated boundary.
        categories: cost per harm category; None where the scorer does not know the category.
        scorer: id of the scorer, such as 'micro-cost'. Costs of different scorers do not compare.
        scorer_hash: the first 12 hexadecimal digits of the SHA-256 of the scorer's weights.
    """

    value: float
    categories: Mapping[str, float | None]
    scorer: str
    scorer_hash: str

    @property
    def harmful(self) -> bool:
        """Whether the cost lies above the boundary."""
        return self.value > 0

    @property
    def band(self) -> Band:
        """'safe', 'review' or 'unsafe'."""
        if self.value >= UNSAFE_FROM:
            return "unsafe"
        return "review" if self.value >= REVIEW_FROM else "safe"


@dataclass(frozen=True)
class ScoredPair:
    """A pair with the cost of both pictures."""

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
class Conditioning:
    """What the denoiser knows of the prompt.

    Attributes:
        embeddings: [N, T, D] text encoder states.
        pooled: [N, P] pooled states, for the families that use them.
        sizes: [N, 6] pixels: height and width before cropping, top and left of the crop, height and width
            asked for (SDXL). None: of an uncropped picture of the latents' size.
        guidance: [N] the guidance that a distilled model imitates (FLUX.1 dev). None: the one it trains with.
    """

    embeddings: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    guidance: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same with every tensor changed alike: moved, repeated or cut along N."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: change(part) for name, part in given.items() if part is not None}
        return replace(self, **changed)


@dataclass(frozen=True)
class CachedPair:
    """A pair as the denoiser sees it, computed once.

    Attributes:
        latents: [2, C, h, w] scaled latents, chosen first.
        embeddings: [T, D] text encoder states of the prompt.
        pooled: [P] pooled state, or None.
        key: hash of both pictures, the prompt, the family, the encoders and the size.
    """

    latents: Tensor
    embeddings: Tensor
    pooled: Tensor | None
    key: str


@dataclass(frozen=True)
class PairBatch:
    """B pairs on the training device.

    Attributes:
        latents: [B, 2, C, h, w] scaled latents, chosen first.
        conditioning: embeddings [B, T, D] and pooled [B, P] or None.
        weight: [B] factor of each pair's loss.
        label: [B] probability that the chosen picture is the better one, 0.5..1.
        cost: [B, 2] safety cost of chosen and rejected; NaN where not scored.
        prompts: B texts.
        policy_conditioning: what the policy knows of the prompts where text encoders train along, with their
            gradient; None: `conditioning`, which is always what the reference knows.
    """

    latents: Tensor
    conditioning: Conditioning
    weight: Tensor
    label: Tensor
    cost: Tensor
    prompts: tuple[str, ...] = ()
    policy_conditioning: Conditioning | None = None


@dataclass(frozen=True)
class PairErrors:
    """Squared prediction error of both networks on both pictures, for the same noise and timestep.

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
        family: the model family it was trained for, a name in `lora.identity.BASES`.
        rank: of its matrices.
        keys: number of tensors.
        metadata: everything the file says of itself.
    """

    path: Path
    family: str
    rank: int
    keys: int
    metadata: Mapping[str, str] = field(default_factory=dict)
