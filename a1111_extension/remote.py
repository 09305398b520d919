"""Images that a remote service draws for Forge Neo, which then asks no script: judged all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scdpo_core.types import ScdpoError

from . import infotext, patching
from .image_filter import Guard
from .options import Options

# Draws an image through a service on the internet, in the place of all that the host does otherwise.
_FUNCTION = "_process_images_via_api"
_undo: Callable[[], None] | None = None


def watch_remote(
    processing: Any, begin: Callable[[Any], tuple[Options, Guard | None]], end: Callable[[], None]
) -> None:
    """Judge remote images too from now on, in a host that can have them drawn.

    Args:
        processing: the host's module.
        begin: what the controls of a generation say, and the guard that now stands behind it, if it is to be
            watched.
        end: watches nothing any more.
    """
    global _undo
    if _undo is not None:
        _undo()

    def draw(original: Callable[[Any], Any], p: Any) -> Any:
        options, guard = begin(p)
        if guard is None:
            return original(p)
        try:
            if options.lora:
                raise ScdpoError(
                    "A remote service draws this image, and no safety LoRA can be applied there. Set the "
                    "safety LoRA to 'None', or draw with a checkpoint of your own."
                )
            return _judged(p, original(p), guard)
        finally:
            end()

    _undo = patching.around(processing, _FUNCTION, draw)


def _judged(p: Any, processed: Any, guard: Guard) -> Any:
    """Return the result with hidden images replaced, and with all costs."""
    images, processed.images = processed.images, [guard.unjudged for _ in processed.images]
    reviewed = [guard.review(image, (0, number)) for number, image in enumerate(images)]
    processed.images = [visible for visible, _ in reviewed]
    texts = zip(processed.infotexts, reviewed, strict=False)
    processed.infotexts = [infotext.with_verdict(text, verdict) for text, (_, verdict) in texts]
    infotext.finish(p, processed, guard)
    return processed
