"""Shrink images for a network, in bands that threads resize in parallel."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from PIL import Image

BANDS = 1 if (os.cpu_count() or 1) < 2 else 2 if (os.cpu_count() or 1) < 4 else 4
"""Bands for a single image, where latency counts."""
_WORTH_BANDS = 500_000
"""Pixels from which bands are used; starting a thread takes longer than resizing a smaller image."""


def shrink(image: Image.Image, side: int, bands: int) -> Image.Image:
    """Resize to an RGB square, bilinear, without keeping proportions; large images in bands.

    The result does not depend on the number of bands: the filter reads across a band's edge.

    Args:
        image: of any size and mode.
        side: of the square, pixels.
        bands: how many, a divisor of `side`.
    """
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    width, height = rgb.size
    size, method = (side, side), Image.Resampling.BILINEAR
    if bands == 1 or width * height < _WORTH_BANDS:
        return rgb.resize(size, method)

    def band(number: int) -> Image.Image:
        box = (0, height * number / bands, width, height * (number + 1) / bands)
        return rgb.resize((side, side // bands), method, box)

    others = [_helpers().submit(band, number) for number in range(1, bands)]
    whole = Image.new("RGB", size)
    whole.paste(band(0), (0, 0))
    for number, other in enumerate(others, 1):
        whole.paste(other.result(), (0, number * side // bands))
    return whole


@cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, BANDS - 1), thread_name_prefix="resize")
