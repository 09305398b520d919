"""Connect the guard of the running generation to every place where hosts output an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import images, script_callbacks

from scdpo_core.reports.covers import covered

from . import host, infotext, patching
from .image_filter import Guard
from .verdicts import Verdict
from .video import judged_frames


class _Current:
    """The running generation; hosts run one at a time."""

    p: Any = None
    guard: Guard | None = None
    undo: tuple[Callable[[], None], ...] = ()


def enter(p: Any, guard: Guard) -> None:
    """Start watching a generation instead of the previous one."""
    leave()
    setattr(p, infotext.GUARD, guard)
    _Current.p, _Current.guard = p, guard
    if guard.hides:
        host.wrap_preview(lambda preview: covered(preview, "pixelate"))
    # Scripts and callbacks of other extensions may come after ours. On the class, because some extensions use
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
    """Stop watching."""
    _Current.p = _Current.guard = None
    for undo in _Current.undo:
        undo()
    _Current.undo = ()
    host.wrap_preview(None)


def guard_of(p: object) -> Guard | None:
    """Return the guard of a generation; None if it is not watched."""
    return getattr(p, infotext.GUARD, None)


def finished_image(p: Any, holder: Any) -> None:
    """Judge a final image, and replace it if it must be hidden."""
    guard = guard_of(p)
    verdict = None if guard is None else _judge(guard, holder, (p.iteration, p.batch_index))
    if verdict is not None and verdict.error:
        p.comment(f"Safety: an image is hidden because it could not be judged. {verdict.error}")


def finished(p: Any, processed: Any) -> None:
    """Replace every output of a generation that was not judged, and record the scores."""
    guard = guard_of(p)
    if guard is None:
        return
    for name in ("images", "extra_images"):  # the second one is Forge's
        values = getattr(processed, name, None)
        if values:
            # Before anything can fail, so that nothing unjudged passes.
            setattr(processed, name, [guard.unjudged for _ in values])
            setattr(processed, name, [guard.passed(value) for value in values])
    infotext.finish(p, processed, guard)


def before_saved(params: Any) -> None:
    """Judge images that are saved unjudged: images 'before ...', composites with masks.

    Args:
        params: the host's image, its processing object, and the texts that go into the file.
    """
    # A script may save without naming its generation.
    guard = guard_of(params.p) or _Current.guard
    verdict = None if guard is None else _judge(guard, params)
    infotext_before = params.pnginfo.get("parameters")
    if verdict is not None and infotext_before is not None:
        params.pnginfo["parameters"] = infotext.with_verdict(infotext_before, verdict)


def before_grid(params: Any) -> None:
    """Replace images of a grid that were not judged."""
    if _Current.guard is not None:
        params.imgs = _Current.guard.grid(params.imgs, params.cols, params.rows)


def _save_video(original: Callable[..., Any], p: Any, frames: Any, *arguments: Any, **named: Any) -> Any:
    """Judge the frames of a Forge Neo video, which is made from the original images."""
    guard = guard_of(p) or _Current.guard
    return original(p, frames if guard is None else judged_frames(guard, frames), *arguments, **named)


def _ended(_: object, p: Any, processed: Any) -> None:
    """Check the outputs after all scripts; nested generations of a script do not end the watch."""
    finished(p, processed)
    if p is _Current.p:
        leave()


def _judge(guard: Guard, holder: Any, position: tuple[int, int] | None = None) -> Verdict | None:
    """Judge the image in a host's object and replace it if necessary; None if it was judged before."""
    image = holder.image
    # Before anything can fail, so that the original does not pass.
    holder.image = guard.unjudged
    if guard.released(image):
        holder.image = image
        return None
    holder.image, verdict = guard.review(image, position)
    return verdict
