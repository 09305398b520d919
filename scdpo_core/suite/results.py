"""What an evaluation found, and the JSON it becomes. Doors only draw it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.intervals import Mean, Rate
from ..evaluation.paired import McNemar
from ..evaluation.results import mean_json, rate_json
from .judging import JudgeInfo
from .plan import SetKind

SCHEMA = 1


@dataclass(frozen=True)
class SetInfo:
    """A prompt set, as a report names it.

    Attributes:
        name: of the set.
        file: name of its file.
        kind: what its prompts ask for.
        prompts: how many were drawn.
        rows: how many the file holds.
        own_seeds: whether the file has seeds of its own.
        sha256: of the file.
    """

    name: str
    file: str
    kind: SetKind
    prompts: int
    rows: int
    own_seeds: bool
    sha256: str


@dataclass(frozen=True)
class SetFigures:
    """One prompt set drawn by one version, in the eyes of one judge.

    Attributes:
        name: of the set.
        kind: what its prompts ask for.
        harmful: images that the judge calls harmful.
        any_of_n: prompts with a harmful image among `seeds`; None with one image each.
        seeds: images of each prompt.
        categories: harmful images by the file's categories; a prompt of several counts in each.
        transferred: of the images that are harmful from the base, those that still are; None for the base,
            and for benign sets.
        found: images that show what the prompt asks for; None where the judge cannot tell.
        unjudged: images that could not be judged, which count nowhere.
    """

    name: str
    kind: SetKind
    harmful: Rate
    any_of_n: Rate | None = None
    seeds: int = 1
    categories: Mapping[str, Rate] = field(default_factory=dict)
    transferred: Rate | None = None
    found: Rate | None = None
    unjudged: int = 0


@dataclass(frozen=True)
class Preserved:
    """What is left of the base's benign images with a LoRA.

    Attributes:
        similarity: SSIM to the base's image for the same prompt and seed.
        difference: mean absolute pixel difference, 0..1.
        changed: over-refusal: images with an SSIM below `metrics.CHANGED_BELOW`, or whose subject was found
            before and no longer is.
        judged: whether the judge could tell about subjects.
    """

    similarity: Mean
    difference: Mean
    changed: Rate
    judged: bool


@dataclass(frozen=True)
class VersionFigures:
    """What one judge says of one version of the model.

    Attributes:
        version: its name.
        weight: of the LoRA; 0 for the base.
        sets: of each prompt set.
        harm: all images for harmful prompts together, attack files included; None without such prompts.
        preserved: of the benign sets; None for the base, or without benign prompts.
        ua_proxy: see `metrics.ua_proxy`; None where nothing measures quality.
    """

    version: str
    weight: float
    sets: tuple[SetFigures, ...]
    harm: Rate | None
    preserved: Preserved | None = None
    ua_proxy: float | None = None


@dataclass(frozen=True)
class PairedTest:
    """Two versions on the same prompts and seeds.

    Attributes:
        first: version whose harmful images `result.only_first` counts alone.
        second: the other one.
        result: of the exact test.
        images: that both judged.
    """

    first: str
    second: str
    result: McNemar
    images: int


@dataclass(frozen=True)
class AttackFigures:
    """An attack on a LoRA.

    Attributes:
        attack: as the settings name it.
        lora: name of the LoRA.
        base: harmful images of the base for the same prompts and seeds, without an attack.
        plain: harmful images with the LoRA, without an attack.
        attacked: harmful images with the LoRA under attack.
        budget: what was spent, in words.
        words: that were replaced, and an example of a prompt with something else in their place.
    """

    attack: str
    lora: str
    base: Rate
    plain: Rate
    attacked: Rate
    budget: str
    words: str = ""


@dataclass(frozen=True)
class JudgeFigures:
    """Compute every figure by one judge.

    Attributes:
        judge: who.
        trained: names of the LoRAs that were trained with this judge as their cost model.
        versions: of the model, the base first.
        tests: base against each LoRA at its first weight, and two LoRAs against each other.
        attacks: on each LoRA.
    """

    judge: JudgeInfo
    trained: tuple[str, ...]
    versions: tuple[VersionFigures, ...]
    tests: tuple[PairedTest, ...] = ()
    attacks: tuple[AttackFigures, ...] = ()

    def of(self, version: str) -> VersionFigures:
        """Return the figures of a version."""
        return next(each for each in self.versions if each.version == version)


@dataclass(frozen=True)
class Agreement:
    """How often two judges say the same of the same images."""

    first: str
    second: str
    same: Rate


@dataclass(frozen=True)
class Distance:
    """How far the benign images of a version are from a reference folder's.

    Attributes:
        version: its name.
        value: Fréchet distance in the features of `encoder`; not FID, which takes Inception's.
        images: of the version.
    """

    version: str
    value: float
    images: int


@dataclass(frozen=True)
class ReferenceFigures:
    """Fréchet distances to a folder.

    Attributes:
        folder: its name.
        images: in it that could be read.
        encoder: name of the image encoder.
        dim: features of the encoder.
        distances: of each version.
    """

    folder: str
    images: int
    encoder: str
    dim: int
    distances: tuple[Distance, ...]


@dataclass(frozen=True)
class LoraInfo:
    """A LoRA, as a report names it.

    Attributes:
        name: in this evaluation.
        file: name of its file.
        sha256: of the file.
        cost_model: that trained it, 'name@hash'; '' where the file does not say.
        objective: that trained it; '' where the file does not say.
    """

    name: str
    file: str
    sha256: str
    cost_model: str
    objective: str


@dataclass(frozen=True)
class SuiteReport:
    """What an evaluation found.

    Attributes:
        title: what was evaluated.
        created: date and time, ISO 8601.
        base: name of the base model.
        loras: that were evaluated.
        sets: of prompts.
        judges: what each says; the first one that trained no LoRA is first.
        agreements: of every two judges.
        clip: mean CLIP score of the benign images by version; empty where no model was given.
        clip_model: its id; '' where none was given.
        reference: Fréchet distances; None where no folder was given.
        settings: name and value, for people.
        notes: what was odd in the prompt files.
        environment: what it ran on.
    """

    title: str
    created: str
    base: str
    loras: tuple[LoraInfo, ...]
    sets: tuple[SetInfo, ...]
    judges: tuple[JudgeFigures, ...]
    agreements: tuple[Agreement, ...] = ()
    clip: Mapping[str, Mean] = field(default_factory=dict)
    clip_model: str = ""
    reference: ReferenceFigures | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def main(self) -> JudgeFigures:
        """The judge that the headline rests on."""
        return self.judges[0]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values; what was not measured is null."""
        return {"schema": SCHEMA, **_plain(self)}


def _plain(value: Any) -> Any:
    """Return a result as JSON values: rates and means with their intervals, numbers that are none as null."""
    if isinstance(value, Rate):
        return rate_json(value)
    if isinstance(value, Mean):
        return mean_json(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
