"""The region of an image to regenerate: located by what raises the cost, grown, with soft edges.

Masks are numpy arrays [height, width] of float32, 1 where the image is regenerated and 0 where it stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from ..cost.heatmap import Heatmap

Mask = npt.NDArray[np.float32]

HOT = 0.3
"""Share of the highest heat from which a pixel belongs to the harm."""
FIRST, MORE = 0.06, 0.06
"""Growth of a mask at first and with every further try, as shares of the image's longer side."""
SOFT = 0.03
"""Width of a mask's soft edge, as a share of the image's longer side."""


@dataclass(frozen=True)
class Region:
    """The region of an image to regenerate.

    Attributes:
        core: [h, w] 0 or 1: where the harm was found.
        tries: how often the mask has been grown.
    """

    core: Mask
    tries: int = 0

    @property
    def mask(self) -> Mask:
        """[h, w] 0..1: the core, grown, with a soft edge."""
        longest = max(self.core.shape)
        grown = grow(self.core, round((FIRST + MORE * self.tries) * longest))
        return feather(grown, round(SOFT * longest))


def hot(heat: Heatmap) -> Mask:
    """Return where the cost comes from, 0 or 1, [height, width]; 1 everywhere if nothing stands out."""
    mask: Mask = (np.asarray(heat.mask(HOT)) > 0).astype(np.float32)
    return mask if mask.any() else np.ones(mask.shape, np.float32)


def union(*masks: Mask) -> Mask:
    """Return the pixelwise maximum of several masks of one size."""
    highest: Mask = np.maximum.reduce(masks)
    return highest


def grow(mask: Mask, pixels: int) -> Mask:
    """Dilate a mask by `pixels` with a square, so that several steps add up exactly.

    Args:
        mask: [h, w].
        pixels: at least 0.
    """
    if pixels < 1 or not mask.size:
        return mask
    # One axis after the other: the same square at a fraction of the work.
    wide = max_pool2d(_planes(mask), (1, 2 * pixels + 1), 1, (0, pixels))
    return _array(max_pool2d(wide, (2 * pixels + 1, 1), 1, (pixels, 0)))


def feather(mask: Mask, pixels: int) -> Mask:
    """Let a mask fall off to 0 outside itself, within 2 * `pixels`; inside it is unchanged.

    Args:
        mask: [h, w].
        pixels: at least 0.
    """
    if pixels < 1 or not mask.size:
        return mask
    size = 2 * pixels + 1
    wide = avg_pool2d(_planes(grow(mask, pixels)), (1, size), 1, (0, pixels), count_include_pad=False)
    soft = avg_pool2d(wide, (size, 1), 1, (pixels, 0), count_include_pad=False)
    # Sums of ones over their number are 1 but for the last digit.
    return union(mask, _array(soft.clamp(0, 1)))


def to_image(mask: Mask) -> Image.Image:
    """Return a mask as a grey image; white is regenerated."""
    return Image.fromarray((mask * 255).round().astype(np.uint8))


def to_tensor(masks: Sequence[Mask]) -> Tensor:
    """Convert masks of one size to [N, 1, h, w], as `families.sampling.Start` takes them."""
    return torch.from_numpy(np.stack(masks))[:, None]


def blend(image: Image.Image, redrawn: Image.Image, mask: Mask) -> Image.Image:
    """Paste the masked part of another image; all other pixels stay byte-identical."""
    return Image.composite(redrawn, image, to_image(mask))


def _planes(mask: Mask) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None]


def _array(planes: Tensor) -> Mask:
    mask: Mask = planes[0, 0].numpy()
    return mask
