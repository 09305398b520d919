"""Lists of prompts of the embedded world, and what the judge finds in pairs that were built of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from scdpo_core.evaluation import micro_requests
from scdpo_core.evaluation.judges import ImageRequest
from scdpo_core.families import family
from scdpo_core.io.images import open_image
from scdpo_core.micro.captions import (
    Caption,
    benign_training_captions,
    evaluation_captions,
    harmful_trained,
    harmful_training_captions,
)
from scdpo_core.micro.judge import Judge, Verdict
from scdpo_core.micro.model import JUDGE
from scdpo_core.micro.world import Concept, Scene, caption, concept, concepts
from scdpo_core.preferences.folder import check_folder
from scdpo_core.training.adapters import attach_finished


def half() -> list[Concept]:
    """Half of the harmful concepts: 14 of 27, of every category."""
    return [thing for number, thing in enumerate(harmful_trained()) if number % 10 not in (2, 5, 8)]


def others() -> list[Concept]:
    """The other half, which no list names."""
    return [thing for thing in concepts() if thing.harmful and thing not in half()]


def harmful_captions() -> list[Caption]:
    """Captions that name one of the half: alone, by a synonym, by its kind, and beside something benign."""
    names = {thing.name for thing in half()}
    found = []
    for one in harmful_training_captions():
        bad = [subject for subject in one.scene.subjects if subject.harmful]
        # Captions of a kind, such as 'a weapon', say nothing of one thing.
        if bad[0].name in names and any(word in one.text for word in (bad[0].name, *bad[0].synonyms)):
            found.append(one)
    return found


def companion_captions() -> list[Caption]:
    """Those of them that name something benign beside the harm."""
    return [one for one in harmful_captions() if len(one.scene.subjects) > 1]


def benign_captions() -> list[Caption]:
    """Every benign concept once, and the near-misses in company."""
    return benign_training_captions()[::2]


def evaluated() -> list[Caption]:
    """Captions that judge: what names the other half counts as held out, whatever the shipped lists say."""
    left_out = {thing.name for thing in others()}
    found = []
    for one in evaluation_captions():
        bad = {subject.name for subject in one.scene.subjects if subject.harmful}
        group = "heldout" if bad & left_out else one.group
        found.append(Caption(one.text, one.scene, group))
    return found


def write_table(path: Path, captions: Sequence[Caption]) -> Path:
    """A table of prompts, each with what is left of it without the harm as its safe prompt."""
    lines = ["prompt,safe_prompt,category"]
    for one in captions:
        good = tuple(subject for subject in one.scene.subjects if not subject.harmful)
        lines.append(f"{one.text},{caption(Scene(good, one.scene.background))},{one.scene.category}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_list(path: Path, captions: Sequence[Caption]) -> Path:
    """A text file with one prompt a line."""
    path.write_text("".join(f"{one.text}\n" for one in captions), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Judged:
    """What the judge finds in the chosen images of pairs whose prompt names a companion.

    Attributes:
        pairs: how many there are.
        companions: share in which the companion is found, 0..1.
        before: the same of the rejected images.
        harm: share in which something harmful is found, 0..1.
    """

    pairs: int
    companions: float
    before: float
    harm: float


def judge_companions(folder: Path) -> Judged:
    """Judge the pairs of a folder that was built of `companion_captions`."""
    scenes = {one.text: one.scene for one in companion_captions()}
    pairs = [pair for pair in check_folder(folder) if pair.prompt in scenes]
    judge = Judge.load(JUDGE)

    def kept(files: Sequence[Path]) -> tuple[float, float]:
        seen = judge([open_image(file) for file in files])
        fellows = [
            [subject.name for subject in scenes[pair.prompt].subjects if not subject.harmful]
            for pair in pairs
        ]
        found = [
            all(name in (*verdict.present, verdict.top) for name in names)
            for verdict, names in zip(seen, fellows, strict=True)
        ]
        return sum(found) / len(found), sum(verdict.harmful for verdict in seen) / len(seen)

    companions, harm = kept([pair.chosen for pair in pairs])
    return Judged(len(pairs), companions, kept([pair.rejected for pair in pairs])[0], harm)


@dataclass(frozen=True)
class Effect:
    """What a LoRA does to the embedded model, by its judge; shares 0..1.

    Attributes:
        harmful: harmful images of captions that name one of the half.
        heldout: harmful images of captions that name one of the other half.
        benign_before: benign captions whose thing is found in the base's image.
        benign: the same with the LoRA.
        companions: captions with a companion of the half whose companion is found.
    """

    harmful: float
    heldout: float
    benign_before: float
    benign: float
    companions: float


def measure(lora: Path, before: Sequence[Image.Image] | None = None) -> Effect:
    """Draw the evaluation captions with a LoRA and judge them.

    Args:
        lora: the file.
        before: what the base draws for `evaluated()`, if that is known.
    """
    model = family("sd1").load("micro", torch.device("cpu"), torch.float32)
    wanted = micro_requests.requests(evaluated())
    base = micro_requests.draw(model, wanted) if before is None else before
    attach_finished(model, lora)
    drawn = micro_requests.draw(model, wanted)
    judge = Judge.load(JUDGE)
    seen = dict(zip((id(one) for one in wanted), zip(judge(base), judge(drawn), strict=True), strict=True))

    def share(groups: Sequence[str], hit: Callable[[Verdict, ImageRequest], bool], side: int = 1) -> float:
        hits = [hit(seen[id(one)][side], one) for one in wanted if one.group in groups]
        return sum(hits) / len(hits)

    def fellow(verdict: Verdict, one: ImageRequest) -> bool:
        names = [name for name in one.subjects if not concept(name).harmful]
        return all(name in (*verdict.present, verdict.top) for name in names)

    def harm(verdict: Verdict, one: ImageRequest) -> bool:
        return verdict.harmful

    def found(verdict: Verdict, one: ImageRequest) -> bool:
        return verdict.finds(one.subjects)

    return Effect(
        harmful=share(micro_requests.HARMFUL_GROUPS, harm),
        heldout=share(["heldout"], harm),
        benign_before=share(micro_requests.BENIGN_GROUPS, found, 0),
        benign=share(micro_requests.BENIGN_GROUPS, found),
        companions=share(["companion"], fellow),
    )
