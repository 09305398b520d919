"""DFM: weights that focus training on difficult pairs. The name is FOUND, the formula RECONSTRUCTED."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

_SMALLEST_DIFFICULTY = 1e-6


def gamma_at(step: int, steps: int, *, gamma: float, warmup: float = 0.1) -> float:
    """The exponent at a step: 0 for the first `warmup` of the steps, `gamma` after it.

    RECONSTRUCTED: at the start every pair is as difficult as any other, and weights would be noise.

    Args:
        step: counted from 0.
        steps: how many there will be in all.
        gamma: 1 by default elsewhere; 2 is aggressive, for DPO's gradient carries (1 - p) already.
        warmup: share of the steps without focus.
    """
    return 0.0 if step < warmup * steps else gamma


class TimeBins:
    """A running mean of the pairs' difficulty for each stretch of the noise schedule.

    Pairs look easier at some timesteps than at others, whatever they show. Dividing by what is
    usual at that timestep keeps the focus on difficult pairs instead of difficult timesteps
    (RECONSTRUCTED). Lives on the training device and never makes it wait.

    Attributes:
        total: [bins] decaying average of difficulty, which started at 0.
        weight: [bins] how far that average has filled, 0..1; total / weight is the unbiased mean.
    """

    def __init__(
        self, bins: int = 10, *, decay: float = 0.99, device: torch.device | str | None = None
    ) -> None:
        """Start empty.

        Args:
            bins: stretches of equal length.
            decay: how much of the past one more sample in a bin leaves; 0.99 remembers about 100.
            device: the training device.
        """
        self.decay = decay
        self.total = torch.zeros(bins, device=device)
        self.weight = torch.zeros(bins, device=device)

    @torch.no_grad()
    def update(self, u: Tensor, timestep_fraction: Tensor) -> None:
        """Take in one batch. To be called every step, the warm-up of gamma included.

        Args:
            u: [B] preference logits.
            timestep_fraction: [B] timestep / number of timesteps, 0..1.
        """
        # One-hot products instead of a scatter: the same sum on every run, on a GPU too.
        member = one_hot(self._bin(timestep_fraction), len(self.total)).to(self.total.dtype)
        count = member.sum(0)
        kept = self.decay**count
        batch_mean = (torch.sigmoid(-u).to(self.total.dtype) @ member) / count.clamp_min(1)
        self.total = kept * self.total + (1 - kept) * batch_mean
        self.weight = kept * self.weight + (1 - kept)

    def log_mean(self, timestep_fraction: Tensor) -> Tensor:
        """Log of the usual difficulty at these timesteps, [B]. Empty bins answer with the mean of all."""
        everywhere = (self.total.sum() + _SMALLEST_DIFFICULTY) / (self.weight.sum() + _SMALLEST_DIFFICULTY)
        seen = self.weight > 0
        mean = torch.where(seen, self.total / torch.where(seen, self.weight, 1.0), everywhere)
        return mean.clamp_min(_SMALLEST_DIFFICULTY).log()[self._bin(timestep_fraction)]

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs to go on from here."""
        return {"total": self.total.clone(), "weight": self.weight.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state_dict`, on the device this object lives on."""
        self.total = state["total"].to(self.total)
        self.weight = state["weight"].to(self.weight)

    def _bin(self, timestep_fraction: Tensor) -> Tensor:
        bins = len(self.total)
        return (timestep_fraction * bins).long().clamp(0, bins - 1)


@torch.no_grad()
def focus_weights(
    u: Tensor,
    *,
    gamma: float,
    difficulty_by_time: TimeBins | None = None,
    timestep_fraction: Tensor | None = None,
    clip: tuple[float, float] = (0.1, 5.0),
) -> Tensor:
    """Weights of the pairs' losses, [B], mean 1 before clipping, without gradient. RECONSTRUCTED.

        d_i = (1 - sigmoid(u_i)) / usual difficulty at t_i
        w_i = d_i^gamma / mean over the batch of d^gamma, clipped to [0.1, 5]

    Computed as a softmax of gamma * log d, because (1 - p) of a pair learnt well is 0 in float32.
    Reads `difficulty_by_time` and leaves it as it is; feed it with `TimeBins.update`.

    Args:
        u: [B] preference logits.
        gamma: 0 gives exactly 1 for every pair.
        difficulty_by_time: divide by the usual difficulty at each pair's timestep; None: do not.
        timestep_fraction: [B] timestep / number of timesteps; needed with `difficulty_by_time`.
        clip: smallest and largest weight.

    Raises:
        ValueError: `difficulty_by_time` without `timestep_fraction`.
    """
    if gamma == 0:
        return torch.ones_like(u)
    log_difficulty = logsigmoid(-u)
    if difficulty_by_time is not None:
        if timestep_fraction is None:
            raise ValueError("difficulty_by_time needs timestep_fraction")
        log_difficulty = log_difficulty - difficulty_by_time.log_mean(timestep_fraction)
    return (torch.softmax(gamma * log_difficulty, 0) * len(u)).clamp(*clip)
