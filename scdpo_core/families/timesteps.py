"""The timesteps of a noise schedule, and how they are drawn for training.

Both kinds count from 0 (the image) to `count` (noise), so that whoever needs a share of the schedule
divides by `count`. A diffusion schedule has whole steps, int64; a flow knows every time in between, float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

LawName = Literal["auto", "uniform", "logit_normal"]
"""'auto' is what models of a kind are usually trained with: uniform for steps, logit-normal for flows."""


@dataclass(frozen=True)
class TimestepLaw:
    """The distribution of the timesteps.

    Attributes:
        name: see `LawName`.
        mean: of the logit of t, for the logit-normal law. A schedule that is shifted by s, as
            t' = s t / (1 + (s - 1) t), is the law with ln s added to its mean.
        std: of the logit of t, for the logit-normal law.
        low: share of the schedule, 0..1, below which nothing is drawn.
        high: share of the schedule, 0..1, above which nothing is drawn.
    """

    name: LawName = "auto"
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0

    @property
    def is_whole(self) -> bool:
        """Whether the whole schedule is drawn from."""
        return (self.low, self.high) == (0.0, 1.0)

    def logit_normal(self, number: int, generator: torch.Generator) -> Tensor:
        """[number] times, 0..1, whose logit is normal (Esser et al. 2024, section 3.1); cut off at the ends.

        Within bounds the law is the same one without its tails: a uniform number between the two bounds'
        quantiles, put through the normal distribution's inverse.
        """
        if self.is_whole:
            return torch.sigmoid(self.mean + self.std * torch.randn(number, generator=generator))
        bounds = torch.tensor([self.low, self.high], dtype=torch.float64)
        first, last = torch.special.ndtr((torch.logit(bounds) - self.mean) / self.std).tolist()
        shares = first + (last - first) * torch.rand(number, generator=generator, dtype=torch.float64)
        times = torch.sigmoid(self.mean + self.std * torch.special.ndtri(shares)).float()
        return times.clamp(self.low, self.high)

    def steps(self, count: int) -> range:
        """The whole steps of a schedule of `count` that lie within the bounds; at least one."""
        first = min(int(self.low * count), count - 1)
        return range(first, max(first + 1, round(self.high * count)))


class Timesteps(Protocol):
    """The timesteps that a model knows.

    Attributes:
        count: where pure noise is.
    """

    @property
    def count(self) -> int: ...  # noqa: D102

    def draw(self, number: int, law: TimestepLaw, generator: torch.Generator) -> Tensor:
        """[number] timesteps on the CPU."""
        ...

    def last(self, like: Tensor) -> Tensor:
        """The noisiest timestep, in the shape, type and place of `like`."""
        ...


@dataclass(frozen=True)
class DiscreteTimesteps:
    """0 .. count - 1, int64."""

    count: int

    def draw(self, number: int, law: TimestepLaw, generator: torch.Generator) -> Tensor:
        """See `Timesteps.draw`."""
        if law.name == "logit_normal":
            times = law.logit_normal(number, generator) * self.count
            return times.long().clamp(max=self.count - 1)
        own = law.steps(self.count)
        return torch.randint(own.start, own.stop, (number,), generator=generator)

    def last(self, like: Tensor) -> Tensor:
        """See `Timesteps.last`."""
        return torch.full_like(like, self.count - 1)


@dataclass(frozen=True)
class ContinuousTimesteps:
    """Above 0 and up to count, float32."""

    count: int

    def draw(self, number: int, law: TimestepLaw, generator: torch.Generator) -> Tensor:
        """See `Timesteps.draw`."""
        if law.name == "uniform":
            # rand is below 1 and may be 0, where there would be no noise to predict.
            shares = law.high - (law.high - law.low) * torch.rand(number, generator=generator)
            return shares * self.count
        return law.logit_normal(number, generator) * self.count

    def last(self, like: Tensor) -> Tensor:
        """See `Timesteps.last`."""
        return torch.full_like(like, float(self.count))
