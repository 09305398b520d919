"""An average of the LoRA over the steps, steadier than its last weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """The exponential moving average of some weights.

        average <- d * average + (1 - d) * weight,   d = min(decay, (1 + n) / (10 + n)) at update n

    n counts from 0; the growing d forgets the untrained start, as TensorFlow's average of that name does.
    """

    def __init__(self, weights: Sequence[nn.Parameter], decay: float) -> None:
        """Begin at the weights as they are.

        Args:
            weights: float32; the average lies beside them on their device.
            decay: 0..1; 0.99 remembers about 100 steps.
        """
        self._weights, self._decay = list(weights), decay
        self._average = [weight.detach().clone() for weight in self._weights]
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step, in a few kernels for all of them and without waiting."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(self._average, [weight.detach() for weight in self._weights], 1 - decay)
        self._updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network with the average in the place of the weights, until the block ends."""
        kept = [weight.detach().clone() for weight in self._weights]
        self._put(self._average)
        try:
            yield
        finally:
            self._put(kept)

    def state(self) -> dict[str, object]:
        """What a checkpoint needs."""
        return {"updates": self._updates, "average": [average.clone() for average in self._average]}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Go on from a `state`.

        Raises:
            ValueError: it is of other weights.
        """
        average = state["average"]
        assert isinstance(average, list)
        shapes = [tuple(each.shape) for each in average]
        if shapes != [tuple(each.shape) for each in self._average]:
            raise ValueError("the average is of other weights")
        for own, given in zip(self._average, average, strict=True):
            own.copy_(given)
        self._updates = int(str(state["updates"]))

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.copy_(value)
