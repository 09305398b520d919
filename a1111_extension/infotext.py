"""The infotext: what an image says of its safety, and how a pasted one sets the controls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .image_filter import Guard
from .options import NO_LORA, Wish
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


def write(params: dict[str, Any], wish: Wish, scorer: str) -> None:
    """Put what every image of a generation says into `extra_generation_params`.

    What differs between images is a function there, which the host asks for each infotext; a plain value
    would put the last image's cost on the grid.

    Args:
        params: of the processing object.
        wish: what the controls say.
        scorer: 'id@hash'.
    """
    clear(params)
    params |= {
        COST: _of_image(lambda verdict: None if verdict.cost is None else f"{verdict.cost:+.2f}"),
        BAND: _of_image(lambda verdict: verdict.band),
        ERROR: _of_image(lambda verdict: verdict.error or None),
        SCORER: scorer,
        THRESHOLD: f"{word_of(wish.policy.threshold)} ({wish.policy.threshold:+.2f})",
        REVIEW: wish.policy.review,
        UNSAFE: wish.policy.unsafe,
    }
    if wish.lora:
        params |= {LORA: wish.lora, WEIGHT: f"{wish.weight:g}"}


def finish(p: Any, processed: Any, guard: Guard) -> None:
    """Put the scores into the JSON of a finished generation, and end what is said of single images.

    What a script writes later, such as the text of an X/Y/Z plot, is about many images.

    Args:
        p: the processing object.
        processed: its result; `images` in the order in which they are shown.
        guard: of the generation.
    """
    found = [(place, guard.verdict_of(image)) for place, image in enumerate(processed.images)]
    scores = [
        {"image": place, "cost": verdict.cost, "band": verdict.band, "error": verdict.error or None}
        for place, verdict in found
        if verdict is not None
    ]
    told = {"of": len(processed.images), "scores": scores}
    processed.extra_generation_params = {**p.extra_generation_params, SCORES: told}
    for label in (COST, BAND, ERROR):
        if callable(p.extra_generation_params.get(label)):
            del p.extra_generation_params[label]


def added(text: str, verdict: Verdict) -> str:
    """An infotext with the verdict on an image that the host wrote before it was judged."""
    parts = {COST: f"{verdict.cost:+.2f}" if verdict.cost is not None else None, BAND: verdict.band}
    parts[ERROR] = '"' + verdict.error.replace('"', "'") + '"' if verdict.error else None
    said = ", ".join(f"{label}: {value}" for label, value in parts.items() if value)
    return text if f"{COST}:" in text or f"{ERROR}:" in text else f"{text}, {said}"


def _of_image(tell: Callable[[Verdict], str | None]) -> Callable[..., str | None]:
    def entry(
        p: Any, index: int, all_prompts: Any = None, use_main_prompt: bool = False, **_: Any
    ) -> str | None:
        guard: Guard | None = getattr(p, GUARD, None)
        # A grid shows many images and has no cost.
        if guard is None or use_main_prompt:
            return None
        # The host counts within the batch when it hands over the batch's prompts, else from the beginning.
        within = all_prompts is not None and all_prompts is getattr(p, "prompts", None)
        place = (p.iteration, index) if within else divmod(index, p.batch_size)
        verdict = guard.verdicts.get(place)
        return None if verdict is None else tell(verdict)

    return entry


def pasted_enabled(params: Mapping[str, Any]) -> bool | None:
    """On if the image was scored. One that was not leaves the switch alone: pasting never disarms."""
    return True if THRESHOLD in params else None


def pasted_threshold(params: Mapping[str, Any]) -> float | None:
    """The threshold's number."""
    found = re.search(r"\(([+-]?\d+(?:\.\d+)?)\)", str(params.get(THRESHOLD, "")))
    return float(found[1]) if found else None


def pasted_word(params: Mapping[str, Any]) -> str | None:
    """The threshold's name."""
    number = pasted_threshold(params)
    if number is None:
        return None
    return OWN_NUMBER if str(params[THRESHOLD]).startswith(OWN_NUMBER) else word_of(number)


def pasted_lora(params: Mapping[str, Any]) -> str | None:
    """The safety LoRA; none for an image that was scored without one."""
    return params.get(LORA, NO_LORA) if THRESHOLD in params else None


def pasted_weight(params: Mapping[str, Any]) -> float | None:
    """The safety LoRA's weight."""
    try:
        return float(params[WEIGHT])
    except (KeyError, ValueError):
        return None
