"""The whole job: draw, score, and keep what makes a pair, group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

from ..cost.protocol import Scorer
from ..evaluation.attacks.base import to_pixels
from ..families.sampling import Start
from ..preferences import masks
from ..preferences.build import Drawn, Match, Rule, match, write_pair
from ..types import ScdpoError
from .job import BuildJob, Drawing
from .region import to_tensor
from .requests import PairSpec
from .store import Row, Store
from .strategies import Candidate, Request, Way, way_of

if TYPE_CHECKING:
    from ..families.base import LoadedModel

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Group:
    """Prompts whose images are drawn together.

    Attributes:
        number: of the group.
        specs: all harmful or all harmless.
    """

    number: int
    specs: tuple[PairSpec, ...]


def groups_of(job: BuildJob, harmful: Sequence[PairSpec], benign: Sequence[PairSpec]) -> list[Group]:
    """Return the groups of a job, the same ones in every process.

    Args:
        job: says how many images are drawn together.
        harmful: what is drawn of harmful prompts.
        benign: what is drawn of harmless ones.
    """
    parts = [
        tuple(kind[first : first + job.batch])
        for kind in (harmful, benign)
        for first in range(0, len(kind), job.batch)
    ]
    return [Group(number, part) for number, part in enumerate(parts)]


class Builder:
    """Builds the pairs of a job with a model and a scorer."""

    def __init__(self, job: BuildJob, model: LoadedModel, scorer: Scorer, store: Store) -> None:
        """Build into the folder of `job`, whose record is `store`."""
        self._job, self._model, self._scorer, self._store = job, model, scorer, store
        self._way: Way = way_of(job.way, job.attempts, scorer)
        self._check: Callable[[], None] = lambda: None

    def run(self, groups: Sequence[Group], progress: Progress) -> None:
        """Do this process's share of the groups.

        Args:
            groups: of the whole job.
            progress: called with prompts done and total, before every step of the denoiser; may
                raise to end the work, and then nothing that was drawn is lost.

        Raises:
            ScdpoError: the scorer gives no usable cost, or a pair cannot be written.
            OSError: an image cannot be written.
        """
        local_groups = [group for group in groups if group.number % self._job.processes == self._job.rank]
        total, done = sum(len(group.specs) for group in local_groups), 0
        for group in local_groups:
            self._check = lambda done=done: progress(done, total)  # type: ignore[misc]
            self._check()
            with self._store.working_on(group.number) as free:
                if free and self._store.rows(group.number) is None:
                    self._store.done(group.number, self._rows(group))
                elif free:
                    # A process may have died between its last two steps.
                    self._store.forget(group.number)
            done += len(group.specs)
        progress(total, total)

    def _rows(self, group: Group) -> list[Row]:
        benign = group.specs[0].is_benign
        rows = self._benign(group) if benign else self._harmful(group)
        return sorted(rows, key=lambda row: row.number)

    def _benign(self, group: Group) -> Iterator[Row]:
        """Good drawings against hasty ones, where both are harmless."""
        requests = [Request(one.prompt, one.seed) for one in group.specs]
        good = self._drawn(group, "good", requests)
        bad = self._drawn(group, "hasty", requests, self._job.drawing.hasty)
        for one, chosen, rejected in zip(group.specs, good, bad, strict=True):
            (match_,) = match([rejected], [chosen], "as prompted", 0.0)
            worst = max(chosen.score.value, rejected.score.value)
            if worst > 0:
                match_ = replace(match_, reason="an image of a harmless prompt is harmful")
            yield self._row(one, match_, tries=1)

    def _harmful(self, group: Group) -> Iterator[Row]:
        way, rule = self._way, self._job.rule
        fit = [one for one in group.specs if one.safe_prompt or not way.needs_safe_prompt]
        for spec in group.specs:
            if spec not in fit:
                yield _rejected_row(spec, "it has no safe prompt, which this way needs")
        images = self._drawn(group, "prompt", [Request(one.prompt, one.seed) for one in fit]) if fit else []
        candidates = [Candidate(one, image) for one, image in zip(fit, images, strict=True)]
        open_: list[Candidate] = []
        for one in candidates:
            if rule == "safe against harmful" and not one.rejected.score.harmful and not way.takes_all:
                reason = "the image of its prompt is harmless"
                yield replace(
                    _rejected_row(one.spec, reason), rejected_cost=round(one.rejected.score.value, 4)
                )
            else:
                open_.append(one)
        for attempt in range(way.tries):
            if not open_:
                return
            open_ = self._tried(group, attempt, open_)
            remaining: list[Candidate] = []
            for one in open_:
                last = attempt == way.tries - 1
                result = (
                    _match(one, rule, self._job.gap, way.takes_all) if last or not way.takes_all else None
                )
                if result is not None and (last or not result.reason):
                    yield self._row(one.spec, result, len(one.tried), one.mask_image)
                else:
                    remaining.append(one)
            open_ = remaining

    def _tried(self, group: Group, attempt: int, open_: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates with one more image each."""
        ready = []
        for one in open_:
            self._check()
            ready.append(self._way.prepare(one))
        requests = [self._way.request(one) for one in ready]
        images = self._images(group, f"try-{attempt}", requests, self._job.drawing)
        finished = [self._way.finish(one, image) for one, image in zip(ready, images, strict=True)]
        scored = self._scored(requests, finished)
        return [replace(one, tried=(*one.tried, new)) for one, new in zip(ready, scored, strict=True)]

    def _drawn(
        self, group: Group, name: str, requests: Sequence[Request], drawing: Drawing | None = None
    ) -> list[Drawn]:
        return self._scored(requests, self._images(group, name, requests, drawing or self._job.drawing))

    def _scored(self, requests: Sequence[Request], images: Sequence[Image.Image]) -> list[Drawn]:
        drawn = []
        for request, image, score in zip(requests, images, self._scorer.score(images), strict=True):
            if score.problem:
                raise ScdpoError(score.problem)
            drawn.append(Drawn(image, score, request.seed))
        return drawn

    def _images(
        self, group: Group, name: str, requests: Sequence[Request], drawing: Drawing
    ) -> list[Image.Image]:
        def draw(requests: Sequence[Request]) -> list[Image.Image]:
            return self._model.sample(
                [one.prompt for one in requests],
                [one.seed for one in requests],
                drawing.steps,
                drawing.guidance,
                drawing.size,
                lambda done, total: self._check(),
                _start(requests),
            )

        return self._store.drawn(group.number, name, requests, draw)

    def _row(self, spec: PairSpec, result: Match, tries: int, mask: Image.Image | None = None) -> Row:
        """Write a pair and return its row."""
        row = Row(
            spec.number,
            spec.prompt,
            spec.safe_prompt,
            spec.category,
            spec.seed,
            reason=result.reason,
            tries=tries,
            chosen_cost=round(result.chosen.score.value, 4),
            rejected_cost=round(result.rejected.score.value, 4),
        )
        if result.reason:
            return row
        folder = self._job.output
        pair, _ = write_pair(folder, spec.prompt, spec.category, result, spec.safe_prompt)
        name = ""
        if mask is not None:
            name = masks.write_mask(folder, pair.id, mask).relative_to(folder).as_posix()
        chosen, rejected = (path.relative_to(folder).as_posix() for path in (pair.chosen, pair.rejected))
        return replace(row, pair=pair.id, chosen=chosen, rejected=rejected, mask=name)


def _match(one: Candidate, rule: Rule, gap: float, takes_all: bool) -> Match:
    if takes_all:
        return match([one.rejected, *one.tried], [], rule, gap)[0]
    return match([one.rejected], [one.tried[-1]], rule, gap)[0]


def _rejected_row(spec: PairSpec, reason: str) -> Row:
    return Row(spec.number, spec.prompt, spec.safe_prompt, spec.category, spec.seed, reason=reason)


def _start(requests: Sequence[Request]) -> Start | None:
    """Return what the model begins from: all requests of a call have a start image, or none has."""
    starts = [one.start for one in requests if one.start is not None]
    if not starts:
        return None
    masks = [one.mask for one in requests if one.mask is not None]
    return Start(to_pixels(starts), requests[0].strength, to_tensor(masks) if masks else None)


def rows_of(store: Store, groups: Sequence[Group]) -> list[Row] | None:
    """Return the row of every image, in order; None while a group is not done."""
    rows: list[Row] = []
    for group in groups:
        stored = store.rows(group.number)
        if stored is None:
            return None
        rows += stored
    return rows
