"""Who judges the images, and what they say of each: rows that a kill does not lose."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from PIL import Image

from ..cost.ensemble import EnsembleScorer
from ..cost.protocol import Scorer, provenance
from ..cost.scorers import SCORERS, hub_names, load_scorer
from ..evaluation.judges import ImageRequest
from ..io.images import ImageError, open_image
from ..types import CostScore, ScdpoError
from .folder import EvalFolder, Table
from .job import WORLD_JUDGE
from .plan import Item

_TOGETHER = 16


@dataclass(frozen=True)
class Opinion:
    """What a judge says of one image.

    Attributes:
        image: version and name, below the folder of images.
        harmful: whether it counts as harmful; None where it could not be judged.
        cost: in log-odds, of judges that are scorers; None for others.
        categories: cost by kind of harm.
        label: what it sees, in words; '' where it has none.
        found: whether what the prompt asks for is there; None where it cannot tell.
        sure: how sure it is, 0..1; None where it does not say.
        error: why it could not be judged; '' where it was.
    """

    image: str
    harmful: bool | None
    cost: float | None = None
    categories: Mapping[str, float | None] = field(default_factory=dict)
    label: str = ""
    found: bool | None = None
    sure: float | None = None
    error: str = ""


@dataclass(frozen=True)
class JudgeInfo:
    """A judge, as a report names it.

    Attributes:
        spec: as the settings name it.
        id: 'name@hash', which its rows belong to.
        about: what it knows, in a few words; '' where nobody says.
        hashes: of the weights that it judges by, those of its members among them.
        accuracy: share of images of known content that it judges right; None where not measured.
        licence: of its weights; '' where not known.
    """

    spec: str
    id: str
    about: str
    hashes: tuple[str, ...]
    accuracy: float | None = None
    licence: str = ""

    @property
    def name(self) -> str:
        """As sentences call it."""
        return self.spec if self.spec in (*SCORERS, WORLD_JUDGE) else self.id.rpartition("@")[0]


class Judge(Protocol):
    """Anything that says what images show."""

    @property
    def info(self) -> JudgeInfo:
        """Who it is."""

    def __call__(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> list[Opinion]:
        """Return an opinion of each image, without its name."""


def load_judge(spec: str, device: str) -> Judge:
    """Load a judge.

    Args:
        spec: a scorer, as `cost.scorers.load_scorer` takes it, or `WORLD_JUDGE`.
        device: where to run.

    Raises:
        ScdpoError: it cannot be loaded.
    """
    return WorldJudge() if spec == WORLD_JUDGE else ScorerJudge(spec, load_scorer(spec, device))


class ScorerJudge:
    """A scorer as a judge: what costs more than 0 is harmful."""

    def __init__(self, spec: str, scorer: Scorer) -> None:
        """Judge by a loaded scorer."""
        self._scorer = scorer
        choice = SCORERS.get(spec)
        members = scorer.members if isinstance(scorer, EnsembleScorer) else ()
        hashes = (scorer.hash, *(member.hash for member in members))
        licences = [SCORERS[name].licence for name in hub_names(spec)]
        self.info = JudgeInfo(
            spec,
            provenance(scorer),
            choice.about if choice else "",
            hashes,
            licence=choice.licence if choice else ", ".join(licences),
        )

    def __call__(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> list[Opinion]:
        """See `Judge`."""
        return [_of_score(score) for score in self._scorer.score(images)]


def _of_score(score: CostScore) -> Opinion:
    if score.problem:
        return Opinion("", None, error=score.problem)
    categories = {name: None if cost is None else round(cost, 4) for name, cost in score.categories.items()}
    return Opinion("", score.harmful, round(score.value, 4), categories)


class WorldJudge:
    """The judge of the embedded world, which also tells whether what was asked for is there."""

    def __init__(self) -> None:
        """Load it."""
        from ..evaluation.micro_requests import judging
        from ..io.files import sha256_of
        from ..micro.judge import Judge as Network
        from ..micro.model import JUDGE

        network = Network.load(JUDGE)
        self._judge = judging(network)
        digest = sha256_of(JUDGE)[:12]
        self.info = JudgeInfo(
            WORLD_JUDGE,
            f"{WORLD_JUDGE}@{digest}",
            "the embedded world's drawings; shares nothing with the cost models",
            (digest,),
            float(network.facts["held_out_accuracy"]),
            "Apache-2.0",
        )

    def __call__(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> list[Opinion]:
        """See `Judge`."""
        from ..micro.world import subjects_in

        with_subjects = [
            replace(one, subjects=tuple(thing.name for thing in subjects_in(one.caption))) for one in requests
        ]
        return [
            Opinion(
                "",
                verdict.harmful,
                label=verdict.label,
                found=verdict.found,
                sure=None if verdict.confidence is None else round(verdict.confidence, 4),
            )
            for verdict in self._judge(images, with_subjects)
        ]


def table_name(info_id: str) -> str:
    """Return the name of a judge's table, fit for a file."""
    return "judge-" + re.sub(r"[^A-Za-z0-9._@+-]+", "-", info_id)[:120]


def judge_missing(
    judge: Judge,
    images: Iterable[tuple[str, Item]],
    folder: EvalFolder,
    shard: str,
    progress: Callable[[int, int], None],
) -> None:
    """Let a judge look at the images that it has no opinion of yet.

    Args:
        judge: who looks.
        images: version and item of each.
        folder: where they lie.
        shard: label of the share whose table gets the rows.
        progress: called with the number judged and the total; may raise to end the work.

    Raises:
        OSError: the table cannot be written.
    """
    table = Table(folder, table_name(judge.info.id), Opinion, shard)
    names = list(images)
    left = [(version, item) for version, item in names if f"{version}/{item.name}" not in table.rows]
    done = len(names) - len(left)
    progress(done, len(names))
    try:
        for first in range(0, len(left), _TOGETHER):
            some = left[first : first + _TOGETHER]
            for opinion in _opinions(judge, some, folder):
                table.add(opinion)
            done += len(some)
            progress(done, len(names))
    finally:
        table.close()


def _opinions(judge: Judge, some: Sequence[tuple[str, Item]], folder: EvalFolder) -> list[Opinion]:
    """Return an opinion of each; an image that upsets the judge costs the others nothing."""
    opened: list[tuple[str, Item, Image.Image]] = []
    broken: list[Opinion] = []
    for version, item in some:
        try:
            opened.append((version, item, open_image(folder.image(version, item.name))))
        except ImageError as error:
            broken.append(Opinion(f"{version}/{item.name}", None, error=error.what))
    if not opened:
        return broken
    try:
        opinions = judge([image for _, _, image in opened], [item.request for _, item, _ in opened])
    except ScdpoError as error:
        if len(opened) == 1:
            return [*broken, Opinion(f"{opened[0][0]}/{opened[0][1].name}", None, error=str(error))]
        return [*broken, *(one for pair in some for one in _opinions(judge, [pair], folder))]
    named = [
        replace(opinion, image=f"{version}/{item.name}")
        for (version, item, _), opinion in zip(opened, opinions, strict=True)
    ]
    return [*broken, *named]
