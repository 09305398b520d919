"""What one pair costs a training, by kind of model: the figures that a first estimate rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """Of one pair at the family's own size, in 16 bits, with a LoRA of rank 16 on the attention.

    Attributes:
        side: of the family's own size, pixels.
        weights: of the denoiser, GiB.
        lora: with its optimiser, GiB.
        step: GiB on top, without and with gradient checkpointing.
        work: 10^12 operations, without and with gradient checkpointing.
        probe: a convolution that computes about as fast as the network can: channels, side and images.
        reach: what share of the probe's speed training reaches, to a factor of two.
    """

    side: int
    weights: float
    lora: float
    step: tuple[float, float]
    work: tuple[float, float]
    probe: tuple[int, int, int] = (320, 64, 1)
    reach: float = 0.5


RANK = 16
"""Of the LoRA that was looked at."""

NEEDS: Mapping[str, Needs] = {
    # Many small operations: its width and height are those of an icon.
    "micro": Needs(64, 0.016, 0.003, (0.006, 0.006), (0.0013, 0.0016), (64, 8, 32), reach=0.15),
    "sd1": Needs(512, 1.60, 0.05, (2.17, 0.50), (5.06, 6.24)),
    "sd2": Needs(768, 1.61, 0.05, (4.69, 0.96), (14.12, 17.47)),
    "sdxl": Needs(1024, 4.78, 0.35, (14.42, 1.26), (41.90, 52.19)),
    "flux": Needs(1024, 22.17, 0.39, (54.99, 4.56), (476.52, 625.60)),
    "sd3": Needs(1024, 3.99, 0.14, (10.00, 1.24), (59.32, 77.20)),
}
"""By family. `reach` was measured on a processor, see `benchmarks/reach.py`; all else of the families is what
`benchmarks/memory.py --work` prints."""
