"""Errors of the operating system and of torch, in words that help."""

from __future__ import annotations

import errno

from safetensors import SafetensorError

from .devices import is_out_of_memory


class ScdpoError(Exception):
    """An error whose message is written for the artist: what is wrong, where, and what to do."""


def explain(error: BaseException) -> str | None:
    """Return what an artist can do about an error; None for errors of ours, which need a traceback."""
    text = str(error)
    if isinstance(error, ScdpoError):
        return text
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted before the step was finished; --resume goes on from the last checkpoint, if any."
    # Safetensors wraps the operating system's error into text.
    if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in text or "No space left" in text:
        return (
            "The disk is full. Make room and run it again, a training that has begun with --resume; the "
            "files on disk are whole."
        )
    if isinstance(error, OSError | SafetensorError):
        where = getattr(error, "filename", None)
        reason = getattr(error, "strerror", None) or text
        return f"A file could not be read or written{f' ({where})' if where else ''}: {reason}."
    if is_out_of_memory(error):
        return (
            "There is not enough memory for this model and these images. Use --vae-tiling, --quantize int8 "
            "(or nf4), smaller images (--width and --height), or close what else uses the GPU."
        )
    return None


def sentence_of(error: Exception) -> str:
    """Return the sentence of an error that the user can fix; raise any other error again."""
    sentence = explain(error)
    if sentence is None:
        raise error
    return sentence
