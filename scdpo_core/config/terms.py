"""The section of `config` that says which bounded terms are minimised beside, or instead of, a pair's loss.

OURS: the terms are this project's own; `scdpo_core.objectives.terms` has the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .bounds import Need, bounded, needing, with_bounds
from .requirements import of_objective

TermName = Literal["redirect", "keep", "keep_empty", "keep_text", "distil", "esd", "gem"]

KEEP_PROMPTS = ("auto", "pairs", "everyday")
"""What `keep_prompts` may be besides a file."""

AUTO_KEEP_TEXT = 256
"""Without `keep_text`, the term is on where a folder has fewer benign prompts than this."""


USUAL_TERMS: Mapping[str, Mapping[TermName, float]] = {
    "redirect_keep": {"redirect": 1.0, "keep": 5.0, "keep_empty": 1.0, "keep_text": 5.0},
    "distil": {"distil": 1.0, "keep": 5.0, "keep_empty": 1.0, "keep_text": 5.0},
    "esd": {"esd": 1.0},
    "gem": {"gem": 1.0, "keep_text": 1.0},
}
"""Weights of an objective's terms where none is given; an objective that is not here has none."""

TERM_OBJECTIVES = frozenset(USUAL_TERMS)
"""Objectives that consist of terms alone: no loss over both images of a pair, and beta has no meaning."""

SAFE_PROMPT_TERMS: frozenset[TermName] = frozenset({"distil", "gem"})
"""Terms that compare with the base model's answer to a pair's safe prompt."""

HARM_TERMS: frozenset[TermName] = frozenset({"redirect", "distil", "esd", "gem"})
"""Terms that change the answer to harmful prompts; the others only keep what there is."""


def _term(words: str, *names: TermName) -> Need:
    """One of these terms; without knowing the folder, `keep_text` takes part where it may."""
    return Need(
        words,
        lambda run, family: not term_weights(run.objective.objective, run.terms, 0).keys().isdisjoint(names),
    )


REDIRECT = _term("--redirect 1", "redirect")
KEEP_TEXT = _term("--keep-text 5", "keep_text")
_HARM = _term("--redirect 1", *HARM_TERMS)
_KEEP_EMPTY = _term("--keep-empty 1", "keep_empty")
_MIXED = (_HARM, Need("--redirect-pure below 1", lambda run, family: run.terms.redirect_pure < 1))


@with_bounds
@dataclass(frozen=True)
class TermSettings:
    """Terms over single images: redirect harmful pairs, keep what the base model does elsewhere.

    Beside an objective with a beta, weights are shares of beta, as `winner` is; else they count as they are.

    Attributes:
        redirect: weight of answering a harmful prompt as if the chosen image were behind the noise; not
            given, the objective's usual one.
        redirect_pure: share of these rows that start from the rejected image itself; the others start from a
            mixture of both images of the pair.
        redirect_mix_a: first parameter of the Beta law of the mixture's share of the rejected image; 1 and 1
            is uniform.
        redirect_mix_b: second parameter of that law.
        redirect_weighting: 'auto' takes the error of the image that the answer implies, for models that
            predict noise held down where the signal is weaker than the noise; 'min_snr' multiplies it by the
            signal-to-noise ratio, held down at min_snr_gamma.
        keep_benign: weight of the term keep: answering benign prompts as the base model does; not given, the
            objective's usual one.
        keep_empty: weight of the same for the empty prompt, which guidance needs; not given, the usual one.
        keep_empty_share: images under the empty prompt for each pair of a batch.
        keep_text: weight of the same for benign prompts and images that the base model drew itself, so that
            no benign pair is needed; not given, the objective's usual one where the folder has fewer than 256
            benign prompts.
        keep_text_share: such images for each pair of a batch.
        keep_prompts: where these prompts come from: 'pairs' (the benign ones), 'everyday' (a list that ships
            with us), 'auto' (both), or a text file with one prompt a line.
        keep_images: how many images the base model draws for them before training.
        eta: strength of the push away from the harmful prompt in 'esd', and of the margin in 'gem'.
    """

    redirect: float | None = bounded(None, at_least=0)
    redirect_pure: float = bounded(0.0, at_least=0, at_most=1, needs=_HARM)
    redirect_mix_a: float = bounded(1.0, above=0, needs=_MIXED)
    redirect_mix_b: float = bounded(1.0, above=0, needs=_MIXED)
    redirect_weighting: Literal["auto", "min_snr"] = needing("auto", REDIRECT)
    keep_benign: float | None = bounded(None, at_least=0)
    keep_empty: float | None = bounded(None, at_least=0)
    keep_empty_share: float = bounded(0.25, above=0, needs=_KEEP_EMPTY)
    keep_text: float | None = bounded(None, at_least=0)
    keep_text_share: float = bounded(0.75, above=0, needs=KEEP_TEXT)
    keep_prompts: str = needing("auto", KEEP_TEXT)
    keep_images: int = bounded(128, at_least=1, needs=KEEP_TEXT)
    eta: float = bounded(1.0, at_least=0, needs=of_objective("esd", "gem"))


def term_weights(objective: str, settings: TermSettings, benign_prompts: int) -> dict[TermName, float]:
    """The weight of each term that takes part in a run.

    Args:
        objective: its name.
        settings: of the terms.
        benign_prompts: different benign prompts among the pairs that are trained on; few of them switch
            `keep_text` on where no weight is given.
    """
    usual = USUAL_TERMS.get(objective, {})
    given: dict[TermName, float | None] = {
        "redirect": settings.redirect,
        "keep": settings.keep_benign,
        "keep_empty": settings.keep_empty,
        "keep_text": settings.keep_text,
    }
    weights: dict[TermName, float] = {**usual}
    for name, value in given.items():
        if value is not None:
            weights[name] = value
    if settings.keep_text is None and benign_prompts >= AUTO_KEEP_TEXT:
        weights.pop("keep_text", None)
    return {name: weight for name, weight in weights.items() if weight > 0}
