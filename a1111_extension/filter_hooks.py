"""The guard of the generation that runs: stands behind every way out that the hosts have for an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import images, script_callbacks

from . import covers, host, infotext, patching
from .image_filter import Guard
from .verdicts import Verdict
from .video import judged_frames


class _Current:
    """The generation that runs now: one at a time, as hosts have them."""

    p: Any = None
    guard: Guard | None = None
    undo: tuple[Callable[[], None], ...] = ()


def enter(p: Any, guard: Guard) -> None:
    """Begin to watch a generation; the one before it is watched no longer."""
    leave()
    setattr(p, infotext.GUARD, guard)
    _Current.p, _Current.guard = p, guard
    if guard.hides:
        host.veil(covers.pixelated)
    # Scripts and callbacks of other extensions may come after ours. The class, for some extensions draw with
    # a copy of the runner that has fewer scripts.
    runner = type(p.scripts)
    _Current.undo = (
        patching.after(
            runner, "postprocess_image_after_composite", lambda _, p, image: finished_image(p, image)
        ),
        patching.after(runner, "postprocess", _ended),
        patching.after(script_callbacks, "before_image_saved_callback", before_saved),
        patching.after(script_callbacks, "image_grid_callback", before_grid),
        patching.around(images, "save_video", _save_video),
    )


def leave() -> None:
    """Watch nothing."""
    _Current.p = _Current.guard = None
    for undo in _Current.undo:
        undo()
    _Current.undo = ()
    host.veil(None)


def guard_of(p: object) -> Guard | None:
    """The guard of a generation; None if it is not watched."""
    return getattr(p, infotext.GUARD, None)


def finished_image(p: Any, holder: Any) -> None:
    """Let a final image pass, or what stands for it."""
    guard = guard_of(p)
    verdict = None if guard is None else _judge(guard, holder, (p.iteration, p.batch_index))
    if verdict is not None and verdict.error:
        p.comment(f"Safety: an image is hidden, it could not be judged. {verdict.error}")


def finished(p: Any, processed: Any) -> None:
    """Keep of all that a generation hands out what was judged, and note the scores."""
    guard = guard_of(p)
    if guard is None:
        return
    for name in ("images", "extra_images"):  # the second one is Forge's
        values = getattr(processed, name, None)
        if values:
            # First: whatever happens from here on, nothing passes as it is.
            setattr(processed, name, [guard.unjudged for _ in values])
            setattr(processed, name, [guard.passed(value) for value in values])
    infotext.finish(p, processed, guard)


def before_saved(params: Any) -> None:
    """Judge what is saved without having been judged: images 'before ...', composites with masks.

    Args:
        params: the host's image, its processing object, and the texts that go into the file.
    """
    # A script may save without saying for whom.
    guard = guard_of(params.p) or _Current.guard
    verdict = None if guard is None else _judge(guard, params)
    said = params.pnginfo.get("parameters")
    if verdict is not None and said is not None:
        params.pnginfo["parameters"] = infotext.added(said, verdict)


def before_grid(params: Any) -> None:
    """Let only judged images into a grid."""
    if _Current.guard is not None:
        params.imgs = _Current.guard.grid(params.imgs, params.cols, params.rows)


def _save_video(original: Callable[..., Any], p: Any, frames: Any, *given: Any, **named: Any) -> Any:
    """Let only frames into a video of Forge Neo that may be shown: it is made from the images as drawn."""
    guard = guard_of(p) or _Current.guard
    return original(p, frames if guard is None else judged_frames(guard, frames), *given, **named)


def _ended(_: object, p: Any, processed: Any) -> None:
    """The last look, after all scripts. Generations that a script runs meanwhile end nothing."""
    finished(p, processed)
    if p is _Current.p:
        leave()


def _judge(guard: Guard, holder: Any, place: tuple[int, int] | None = None) -> Verdict | None:
    """Put what may be shown in the place of the image that a host's object holds; None if it was judged."""
    image = holder.image
    # First: whatever happens from here on, the image itself does not pass.
    holder.image = guard.unjudged
    if guard.released(image):
        holder.image = image
        return None
    holder.image, verdict = guard.review(image, place)
    return verdict
