"""What each term of a run did, a sentence each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .curves import Points, charted_curves, ends

_Sentence = Callable[[float, float], str]
"""Mean over the first and over the last fifth of a curve in, words out."""


def what_terms_did(curves: Mapping[str, Points]) -> list[str]:
    """Describe each term of a run in one sentence, from its curves; nothing before the first step."""
    ends_of = {name: ends(points) for name, points in charted_curves(curves).items()}
    return [
        f"{title}: {say(*ends_of[name])}."  # type: ignore[misc]
        for name, (title, say) in _SENTENCES.items()
        if ends_of.get(name) is not None
    ]


def _moved(what: str) -> _Sentence:
    def say(first: float, last: float) -> str:
        return f"{what} went from {first:.3g} to {last:.3g}{_share(first, last)}"

    return say


def _kept(what: str) -> _Sentence:
    def say(_: float, last: float) -> str:
        return f"answers to {what} are {last:.2g} away from the base model's (0: unchanged)"

    return say


def _against_base(what: str) -> _Sentence:
    def say(_: float, last: float) -> str:
        side = "as large as" if last == 0 else f"{abs(last):.2g} {'below' if last < 0 else 'above'}"
        return f"the error on {what} is {side} the base model's"

    return say


def _loss(_: float, last: float) -> str:
    return f"its loss is {last:.3g} (0.693: nothing learnt; more: worse than the base model)"


def _prefers(_: float, last: float) -> str:
    return f"the chosen image is preferred in {100 * last:.0f} % of the pairs; look at the samples as well"


def _spread(_: float, last: float) -> str:
    return f"weights of the pairs spread by {last:.2g} (0: all pairs count alike)"


def _required(_: float, last: float) -> str:
    return f"the chosen image had to be preferred by {last:.2g} on average"


_SENTENCES: Mapping[str, tuple[str, _Sentence]] = {
    "redirect": ("Redirect", _moved("under harmful prompts the error to the chosen images")),
    "distil": ("Distil", _moved("the distance to what the base model answers to the safe prompts")),
    "esd": ("ESD", _moved("the distance to the answer that is pushed away from the harm")),
    "gem": ("GEM", _moved("what is missing until the safe answer is the nearer one")),
    "keep": ("Keep", _kept("benign pairs")),
    "keep_empty": ("Keep empty", _kept("the empty prompt")),
    "keep_text": ("Keep text", _kept("everyday prompts")),
    "preference_loss": ("Preference", _loss),
    "implicit_accuracy": ("Accuracy", _prefers),
    "winner_gap": ("Chosen", _against_base("chosen images")),
    "loser_gap": ("Rejected", _against_base("rejected images")),
    "dfm_spread": ("Focus (DFM)", _spread),
    "margin": ("Margin", _required),
    "prior": ("Prior (DUO)", _kept("pure noise")),
}


def _share(first: float, last: float) -> str:
    """Return ' (-20 %)'; nothing where there is nothing to compare with."""
    return f" ({100 * (last - first) / abs(first):+.0f} %)" if first else ""
