"""One world, row and seed after the other: train, draw, count, attack, and keep what was found."""

from __future__ import annotations

import dataclasses
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image

from benchmarks.evidence import images as drawing
from benchmarks.evidence.attacks import Trials
from benchmarks.evidence.measures import harmful, measure
from benchmarks.evidence.results import Result, claimed
from benchmarks.evidence.rows import ROWS, settings_for
from benchmarks.evidence.worlds import Built, build
from scdpo_core.evaluation import micro_requests
from scdpo_core.evaluation.attacks import Sampling, Target, draw, remove
from scdpo_core.evaluation.judges import ImageRequest
from scdpo_core.evaluation.similarity import ssim
from scdpo_core.families.latent_model import LatentModel
from scdpo_core.io.files import copy_file
from scdpo_core.micro.captions import evaluation_captions, tuning_captions
from scdpo_core.training.adapters import attach_finished
from scdpo_core.training.job import run_job
from scdpo_core.types import ScdpoError

CAPTIONS = {"evaluation": evaluation_captions, "tuning": tuning_captions}
SAMPLING = Sampling(micro_requests.STEPS, micro_requests.GUIDANCE, micro_requests.BATCH)
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""At which a frontier is measured."""


@dataclass(frozen=True)
class Job:
    """One result file."""

    world: str
    row: str
    seed: int


@dataclass(frozen=True)
class Scale:
    """How much is trained and drawn; everything here is part of the name of the results' folder.

    Attributes:
        base: the base model.
        captions: which captions are drawn, a key of `CAPTIONS`.
        steps: of training, before a row multiplies them; None: the preset's.
        batch: pairs a step; None: the preset's.
        limit: captions of each group at most, for a quick look; 0: all.
    """

    base: str = "micro"
    captions: str = "evaluation"
    steps: int | None = None
    batch: int | None = None
    limit: int = 0

    @property
    def name(self) -> str:
        """Of the folder."""
        trained = f"{self.steps or 'preset'}x{self.batch or 'preset'}"
        few = f"-{self.limit}" if self.limit else ""
        return f"{Path(self.base).stem}-{trained}-{self.captions}{few}"


@dataclass
class Runner:
    """Runs jobs and keeps their results.

    Attributes:
        work: folder of worlds, base images and results.
        scale: see there.
        tuned: what the grid of a peer was decided for, by row.
    """

    work: Path
    scale: Scale = field(default_factory=Scale)
    tuned: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @cached_property
    def folder(self) -> Path:
        """Of the results."""
        return self.work / self.scale.name

    def result(self, job: Job) -> Result:
        """What is known of a job."""
        return Result.read(self.folder / job.world / f"{job.row}-{job.seed}.json")

    def requests(self, seed: int) -> list[ImageRequest]:
        """The captions of a seed."""
        every = micro_requests.requests(CAPTIONS[self.scale.captions](), seed)
        if not self.scale.limit:
            return every
        groups: dict[str, list[ImageRequest]] = {}
        for one in every:
            groups.setdefault(one.group, []).append(one)
        return [one for own in groups.values() for one in own[: self.scale.limit]]

    def before(self, seed: int) -> list[Image.Image]:
        """What the base model draws for them; drawn once."""
        return drawing.before(self.requests(seed), self.folder / f"base-{seed}.npz", self.scale.base)

    def world(self, name: str, seed: int) -> Built:
        """A world on disk; built once."""
        base = Path(self.scale.base).stem
        return build(name, seed, self.work / f"worlds-{base}", drawing.drawer(self.scale.base))

    def run(self, job: Job, attacks: Sequence[str] = (), *, frontier: bool = False) -> Result | None:
        """Find out what is not known yet of a job; None while another process works on it.

        Args:
            job: what to train.
            attacks: names of trials.
            frontier: whether to measure the LoRA at other strengths too.
        """
        with claimed(self.result(job).path) as mine:
            if not mine:
                return None
            result = self.result(job)
            if not ROWS[job.row].untrained:
                self._train(job, result)
            if not result.hits:
                self._measure(job, result)
            missing = [name for name in attacks if name not in result.attacks]
            if missing:
                self._attack(job, result, missing)
            if frontier and not result.frontier and not ROWS[job.row].untrained:
                self._frontier(job, result)
            return result

    def _train(self, job: Job, result: Result) -> None:
        if result.training and result.lora.exists():
            return
        built = self.world(job.world, job.seed)
        run = self.folder / "runs" / f"{job.world}-{job.row}-{job.seed}"
        shutil.rmtree(run, ignore_errors=True)
        settings = settings_for(
            job.row,
            job.world,
            built,
            job.seed,
            run,
            base=self.scale.base,
            tuned=self.tuned.get(job.row),
            steps=self.scale.steps,
            batch=self.scale.batch,
        )
        own = ROWS[job.row]
        if own.images_of:
            steps = self._steps_for_images(job, own.like, own.images_of)
            optim = dataclasses.replace(settings.optim, max_train_steps=steps)
            settings = dataclasses.replace(settings, optim=optim)
        began = time.monotonic()
        with counting() as images:
            done = run_job(settings)
        assert done.lora is not None
        copy_file(done.lora.path, result.lora)
        result.training = {
            "seconds": round(time.monotonic() - began, 1),
            "steps": settings.optim.max_train_steps,
            "batch": settings.optim.batch_size * settings.optim.accumulation,
            "pairs": built.count,
            "objective": settings.objective.objective,
            "lr": settings.optim.lr,
            "beta": settings.objective.beta,
            "images_policy": images["policy"],
            "images_reference": images["reference"],
        }
        result.write()
        shutil.rmtree(run, ignore_errors=True)

    def _steps_for_images(self, job: Job, like: str, images_of: str) -> int:
        """After how many steps a row has computed as many images as another one in all its steps."""
        totals = []
        for row in (like, images_of):
            other = Job(job.world, row, job.seed)
            known = self.run(other) if not self.result(other).training else self.result(other)
            if known is None:
                raise ScdpoError(f"{row} is at work in another process; run this row again when it is done.")
            totals.append(known.training)
        images = [one["images_policy"] + one["images_reference"] for one in totals]
        return max(1, round(images[1] * totals[0]["steps"] / images[0]))

    @contextmanager
    def _tuned_model(self, result: Result, row: str) -> Iterator[Target]:
        model = drawing.load(self.scale.base)
        if ROWS[row].untrained:
            yield Target(model)
            return
        adapter, _ = attach_finished(model, result.lora)
        try:
            yield Target(model, adapter)
        finally:
            remove(model)

    def _measure(self, job: Job, result: Result) -> None:
        requests, before = self.requests(job.seed), self.before(job.seed)
        with self._tuned_model(result, job.row) as target:
            after = before if target.adapter is None else draw(target.model, requests, SAMPLING)
        found = measure(requests, before, after, self.world(job.world, job.seed).paired)
        result.hits = {name: list(hits) for name, hits in found.hits.items()}
        result.values = {name: list(values) for name, values in found.values.items()}
        result.figures = dict(found.figures)
        result.write()

    def _attack(self, job: Job, result: Result, names: Sequence[str]) -> None:
        trials = Trials(self.requests(job.seed), self.before(job.seed), self.scale.base, job.seed, self.work)
        for name in names:
            trial = trials[name]  # before the LoRA is in the model: some make their material with the base
            began = time.monotonic()
            with self._tuned_model(result, job.row) as target:
                if target.adapter is None and name.startswith("weight_"):
                    continue
                made = trial.attack(target, trial.requests, SAMPLING)
            single = harmful(made.images)
            hits = [any(single[k : k + trial.each]) for k in range(0, len(single), trial.each)]
            result.attacks[name] = {
                "hits": hits,
                "budget": str(made.budget),
                "seconds": round(time.monotonic() - began, 1),
            }
            if list(made.prompts) != [one.caption for one in trial.requests]:
                result.attacks[name]["prompts"] = list(dict.fromkeys(made.prompts))[:20]
            result.write()

    def _frontier(self, job: Job, result: Result) -> None:
        every = list(zip(self.requests(job.seed), self.before(job.seed), strict=True))
        wanted = [pair for pair in every if pair[0].group in ("explicit", "heldout", "benign")]
        bad = [one.group != "benign" for one, _ in wanted]
        with self._tuned_model(result, job.row) as target:
            assert target.adapter is not None
            for strength in STRENGTHS:
                with target.adapter.scale(strength):
                    after = draw(target.model, [one for one, _ in wanted], SAMPLING)
                result.frontier.append(_point(strength, wanted, after, bad))
        result.write()


def _point(
    strength: float,
    wanted: Sequence[tuple[ImageRequest, Image.Image]],
    after: Sequence[Image.Image],
    bad: Sequence[bool],
) -> dict[str, float]:
    hits = harmful(after)
    alike = [ssim(one[1], image) for one, image, harm in zip(wanted, after, bad, strict=True) if not harm]
    return {
        "strength": strength,
        "harmful": sum(hit for hit, harm in zip(hits, bad, strict=True) if harm) / max(1, sum(bad)),
        "ssim": sum(alike) / max(1, len(alike)),
    }


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """Count the images that denoisers answer to until the block ends: with a gradient and without."""
    images = {"policy": 0, "reference": 0}
    kinds = [kind for kind in _all_kinds(LatentModel) if "_predict" in vars(kind)]

    def counted(original: Any) -> Any:
        def predict(self: Any, noisy: Any, *args: Any, **given: Any) -> Any:
            images["policy" if torch.is_grad_enabled() else "reference"] += len(noisy)
            return original(self, noisy, *args, **given)

        return predict

    patches = [patch.object(kind, "_predict", counted(vars(kind)["_predict"])) for kind in kinds]
    for one in patches:
        one.start()
    try:
        yield images
    finally:
        for one in patches:
            one.stop()


def _all_kinds(kind: type) -> list[type]:
    return [kind, *(deeper for own in kind.__subclasses__() for deeper in _all_kinds(own))]


def shard(jobs: Sequence[Job], number: int, of: int, seed: int = 0) -> list[Job]:
    """Every `of`-th job; with locks alone (1 of 1) each process takes the jobs in an order of its own."""
    own = [job for place, job in enumerate(jobs) if place % of == number]
    if of == 1 and seed:
        random.Random(seed).shuffle(own)
    return own
