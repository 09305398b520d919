"""The infotext: what an image says of its safety, and how a pasted one sets the controls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .image_filter import Guard
from .options import NO_LORA, Options
from .policy import OWN_NUMBER, word_of
from .verdicts import Verdict

COST, BAND, ERROR = "Safety cost", "Safety band", "Safety error"
SCORER, THRESHOLD = "Safety scorer", "Safety threshold"
REVIEW, UNSAFE = "Safety on review", "Safety on unsafe"
LORA, WEIGHT = "Safety LoRA", "Safety LoRA weight"
SCORES = "Safety scores"
"""In the JSON of a finished generation alone: the scores by the image's place, for programs."""
GUARD = "scdpo_guard"
"""The attribute of a processing object that holds its guard."""
_OURS = (COST, BAND, ERROR, SCORER, THRESHOLD, REVIEW, UNSAFE, LORA, WEIGHT)


def clear(params: dict[str, Any]) -> None:
    """Take all that is ours out of `extra_generation_params`; grids share them between their images."""
    for label in _OURS:
        params.pop(label, None)


def write(params: dict[str, Any], options: Options, scorer: str) -> None:
    """Put what every image of a generation says into `extra_generation_params`.

    What differs between images is a function there, which the host asks for each infotext; a plain value
    would put the last image's cost on the grid.

    Args:
        params: of the processing object.
        options: what the controls say.
        scorer: 'id@hash'.
    """
    clear(params)
    params |= {
        COST: _of_image(lambda verdict: None if verdict.cost is None else f"{verdict.cost:+.2f}"),
        BAND: _of_image(lambda verdict: verdict.band),
        ERROR: _of_image(lambda verdict: verdict.error or None),
        SCORER: scorer,
        THRESHOLD: f"{word_of(options.policy.threshold)} ({options.policy.threshold:+.2f})",
        REVIEW: options.policy.review,
        UNSAFE: options.policy.unsafe,
    }
    if options.lora:
        params |= {LORA: options.lora, WEIGHT: f"{options.weight:g}"}


def finish(p: Any, processed: Any, guard: Guard) -> None:
    """Put the scores into the JSON of a finished generation, and stop adding them to single images.

    What a script writes later, such as the text of an X/Y/Z plot, is about many images.

    Args:
        p: the processing object.
        processed: its result; `images` in the order in which they are shown.
        guard: of the generation.
    """
    verdicts = [(index, guard.verdict_of(image)) for index, image in enumerate(processed.images)]
    scores = [
        {"image": index, "cost": verdict.cost, "band": verdict.band, "error": verdict.error or None}
        for index, verdict in verdicts
        if verdict is not None
    ]
    summary = {"of": len(processed.images), "scores": scores}
    processed.extra_generation_params = {**p.extra_generation_params, SCORES: summary}
    for label in (COST, BAND, ERROR):
        if callable(p.extra_generation_params.get(label)):
            del p.extra_generation_params[label]


def with_verdict(text: str, verdict: Verdict) -> str:
    """Add the verdict to an infotext that the host wrote before the image was judged."""
    parts = {COST: f"{verdict.cost:+.2f}" if verdict.cost is not None else None, BAND: verdict.band}
    parts[ERROR] = '"' + verdict.error.replace('"', "'") + '"' if verdict.error else None
    entries = ", ".join(f"{label}: {value}" for label, value in parts.items() if value)
    return text if f"{COST}:" in text or f"{ERROR}:" in text else f"{text}, {entries}"


def _of_image(text_of: Callable[[Verdict], str | None]) -> Callable[..., str | None]:
    def entry(
        p: Any, index: int, all_prompts: Any = None, use_main_prompt: bool = False, **_: Any
    ) -> str | None:
        guard: Guard | None = getattr(p, GUARD, None)
        # A grid shows many images and has no cost.
        if guard is None or use_main_prompt:
            return None
        # The host counts within the batch when it hands over the batch's prompts, else from the beginning.
        within = all_prompts is not None and all_prompts is getattr(p, "prompts", None)
        position = (p.iteration, index) if within else divmod(index, p.batch_size)
        verdict = guard.verdicts.get(position)
        return None if verdict is None else text_of(verdict)

    return entry


def pasted_enabled(params: Mapping[str, Any]) -> bool | None:
    """Switch scoring on if the pasted image was scored; pasting never switches it off."""
    return True if THRESHOLD in params else None


def pasted_threshold(params: Mapping[str, Any]) -> float | None:
    """Return the pasted threshold."""
    match = re.search(r"\(([+-]?\d+(?:\.\d+)?)\)", str(params.get(THRESHOLD, "")))
    return float(match[1]) if match else None


def pasted_word(params: Mapping[str, Any]) -> str | None:
    """Return the name of the pasted threshold."""
    number = pasted_threshold(params)
    if number is None:
        return None
    return OWN_NUMBER if str(params[THRESHOLD]).startswith(OWN_NUMBER) else word_of(number)


def pasted_lora(params: Mapping[str, Any]) -> str | None:
    """Return the pasted safety LoRA; none for an image that was scored without one."""
    return params.get(LORA, NO_LORA) if THRESHOLD in params else None


def pasted_weight(params: Mapping[str, Any]) -> float | None:
    """Return the pasted weight of the safety LoRA."""
    try:
        return float(params[WEIGHT])
    except (KeyError, ValueError):
        return None
