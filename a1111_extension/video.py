"""Videos of Forge Neo: made from the frames as they were drawn, beside the images that were judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from .image_filter import Guard


def judged_frames(guard: Guard, frames: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    """Return what may be put into a video for its frames. Never raises.

    Args:
        guard: of the generation.
        frames: [height, width, 3] of 8 bits each, all of one size.
    """
    if not guard.hides:
        return [*frames]
    return [_judged(guard, frame) for frame in frames]


def _judged(whole: Guard, frame: Any) -> np.ndarray[Any, Any]:
    # Frames are images of the generation too, so their originals are in quarantine already. A separate guard
    # for each frame keeps none of them in memory.
    guard = Guard(whole.policy, whole.score, _keep_nothing, whole.failure, whole.report)
    image = guard.passed(frame)
    visible = image if isinstance(image, Image.Image) else guard.unjudged
    # The replacement of an unjudged frame has another size.
    return np.asarray(visible.convert("RGB").resize((frame.shape[1], frame.shape[0])))


def _keep_nothing(image: Image.Image, score: object) -> None:
    """Put nothing into quarantine."""
