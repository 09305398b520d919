"""Scorers: images in, `CostScore`s out.

Hosts import this module, so importing it needs nothing but torch, numpy, Pillow and safetensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..micro.model import WEIGHTS
from ..types import ScdpoError
from . import gore
from .embedded import EmbeddedScorer
from .ensemble import EnsembleScorer, Rule
from .hub import PRESETS, HubScorer
from .open_nsfw import OpenNsfwScorer
from .protocol import HARM_CATEGORIES, Encoder, Scorer, ScorerError, provenance
from .trained_scorer import TrainedScorer

__all__ = [
    "HARM_CATEGORIES",
    "MICRO_COST",
    "SCORERS",
    "EnsembleScorer",
    "Scorer",
    "ScorerChoice",
    "ScorerError",
    "TrainedScorer",
    "load_scorer",
    "names_a_scorer",
    "offered_scorers",
    "provenance",
]

MICRO_COST = WEIGHTS / "cost.safetensors"
"""The cost model of the embedded world."""


@dataclass(frozen=True)
class ScorerChoice:
    """A named scorer, and what to know before choosing it.

    Attributes:
        load: loads the scorer onto a device.
        about: what it knows, in a few words.
        licence: of its weights.
        megabytes: of its weights on the disk.
        download: the hub model that must be on this machine first; '' for none.
        offered: returns whether lists show it; scorers that need a missing package are hidden.
    """

    load: Callable[[str], Scorer]
    about: str
    licence: str
    megabytes: int
    download: str = ""
    offered: Callable[[], bool] = lambda: True


def _preset(name: str) -> ScorerChoice:
    preset = PRESETS[name]
    return ScorerChoice(
        lambda device: HubScorer(name, device=device),
        preset.about,
        preset.licence,
        preset.megabytes,
        preset.repository,
    )


def _gore_installed() -> bool:
    return gore.find_weights() is not None


SCORERS: dict[str, ScorerChoice] = {
    "embedded": ScorerChoice(
        EmbeddedScorer,
        "sexual content in photographs and drawings; other harm is unknown",
        "BSD-2-Clause and MIT",
        28,
    ),
    "strict": ScorerChoice(
        lambda device: EmbeddedScorer(device, rule="strict"),
        "as 'embedded', but one objecting network is enough: more false alarms",
        "BSD-2-Clause and MIT",
        28,
    ),
    "open-nsfw": ScorerChoice(
        OpenNsfwScorer,
        "sexual content in photographs; drawings and other harm are unknown",
        "BSD-2-Clause",
        24,
    ),
    "gore": ScorerChoice(
        gore.GoreScorer,
        "gore: wounds, mutilation, corpses; other harm is unknown",
        "MIT",
        24,
        offered=_gore_installed,
    ),
    "embedded+gore": ScorerChoice(
        lambda device: EnsembleScorer([EmbeddedScorer(device), gore.GoreScorer(device)]),
        "sexual content and gore; other harm is unknown",
        "BSD-2-Clause and MIT",
        52,
        offered=_gore_installed,
    ),
    "micro": ScorerChoice(
        lambda device: TrainedScorer(MICRO_COST, device), "the embedded world's drawings", "Apache-2.0", 1
    ),
    "freepik": _preset("freepik"),
    "marqo": _preset("marqo"),
    "falconsai": _preset("falconsai"),
    "compvis": _preset("compvis"),
}
"""Every named scorer."""


def offered_scorers() -> list[str]:
    """Return the names of the scorers to choose from on this machine."""
    return [name for name, choice in SCORERS.items() if choice.offered()]


def load_scorer(spec: str | Path, device: str = "cpu", encoder: Encoder | str | Path | None = None) -> Scorer:
    """Load a scorer.

    Args:
        spec: a name in `SCORERS`; a cost model file; `name=FOLDER` for a preset of the hub that lies in a
            folder; or several of these joined by '+' (the maximum) or by '~' (the mean).
        device: where to run.
        encoder: for a file: its image encoder, if that has moved.

    Raises:
        ScdpoError: no scorer or file of that name (lists the names), or it cannot be loaded.
    """
    text, path = str(spec), Path(spec).expanduser()
    if text in SCORERS:
        return SCORERS[text].load(device)
    if path.is_file():
        return TrainedScorer(path, device, encoder)
    if joined := _joined(text):
        rule, members = joined
        return EnsembleScorer([load_scorer(member, device) for member in members], rule)
    name, _, folder = text.partition("=")
    if folder and name in PRESETS:
        return HubScorer(name, Path(folder).expanduser(), device)
    raise ScdpoError(
        f"There is no scorer and no cost model file '{spec}'. "
        f"The scorers are: {', '.join(sorted(offered_scorers()))}. "
        "Or give a .safetensors file that train_cost.py wrote."
    )


def names_a_scorer(spec: str) -> bool:
    """Return whether `load_scorer` would find something under this name; loads nothing."""
    if spec in SCORERS or Path(spec).expanduser().is_file():
        return True
    if joined := _joined(spec):
        return all(map(names_a_scorer, joined[1]))
    name, _, folder = spec.partition("=")
    return name in PRESETS and Path(folder).expanduser().is_dir()


def hub_names(spec: str) -> list[str]:
    """Return the hub presets that `load_scorer` would load, whose licences should be shown."""
    _, members = _joined(spec) or ("", [spec])
    return [name for member in members if (name := member.partition("=")[0]) in PRESETS]


def _joined(spec: str) -> tuple[Rule, list[str]] | None:
    """Split 'a+b' or 'a~b' into its rule and scorer names."""
    signs: dict[str, Rule] = {"+": "maximum", "~": "mean"}
    for sign, rule in signs.items():
        if sign in spec:
            return rule, [name.strip() for name in spec.split(sign)]
    return None
