"""Drawing what is not there yet: every image with every version of the model, then the attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..evaluation.attacks import Sampling, Target, remove
from ..evaluation.load_model import load_for_drawing, require_fit
from ..io.files import sha256_of
from .attacks import AttackPlan, AttackRow, Chunk, attack_rows, begin_from, make_attack, trial_version
from .folder import DrawnWith, EvalFolder, Table
from .job import EvalJob
from .plan import BASE, Item, Plan, Shard, Version, batches

if TYPE_CHECKING:
    import torch

    from ..families.base import LoadedModel
    from ..lora.adapter import LoraAdapter

Progress = Callable[[int, int], None]

ATTACK_TABLE = "attacks"
"""Table of `AttackRow`."""


@dataclass(frozen=True)
class Share:
    """A share of the work.

    Attributes:
        batches: of images that every version draws.
        chunks: of attacks, with the LoRA that each is tried on.
    """

    batches: Sequence[Sequence[Item]]
    chunks: Sequence[tuple[str, Chunk]]

    def images(self, plan: Plan) -> list[tuple[str, Item]]:
        """Version and item of every image."""
        drawn = [(version.name, item) for version in plan.versions for part in self.batches for item in part]
        tried = [
            (trial_version(chunk.name, lora), item) for lora, chunk in self.chunks for item in chunk.items
        ]
        return [*drawn, *tried]


def share_of(job: EvalJob, plan: Plan, attacks: AttackPlan, shard: Shard) -> Share:
    """Return what a shard draws, attacks and judges: every `count`-th batch and chunk."""
    chunks = [(lora, chunk) for lora in plan.lora_names for chunk in attacks.chunks]
    return Share(
        batches(plan.items, job.batch)[shard.number - 1 :: shard.count],
        chunks[shard.number - 1 :: shard.count],
    )


def drawn_with(job: EvalJob, plan: Plan) -> DrawnWith:
    """Return what the images of a job are drawn with, as far as it is known before the base is loaded."""
    return DrawnWith(
        job.steps,
        job.guidance,
        f"{job.width}x{job.height}" if job.size else "",
        loras={name: sha256_of(path) for name, path in zip(plan.lora_names, job.loras, strict=True)},
        prompts={each.name: each.sha256 for each in plan.sets},
    )


def draw_missing(
    job: EvalJob,
    plan: Plan,
    attacks: AttackPlan,
    folder: EvalFolder,
    device: torch.device,
    shard: Shard,
    progress: Progress,
) -> None:
    """Draw this share's images that are not there yet; loads no model if there are none.

    Every version is drawn before the attacks, which begin from the base's images. With shares, an attack is
    tried once all images it begins from are there.

    Args:
        job: the settings.
        plan: what to draw.
        attacks: what to try on the LoRAs.
        folder: where images go.
        device: where to draw.
        shard: the share.
        progress: called with the number of this share's images done; may raise to end the work.

    Raises:
        ScdpoError: the base or a LoRA cannot be loaded, they do not fit, or the folder's images were drawn
            with something else.
        OSError: an image cannot be written.
    """
    work = _Work(job, folder, plan, attacks, share_of(job, plan, attacks, shard), shard.label, progress)
    progress(work.done, work.total)
    if work.done == work.total:
        return
    model = load_for_drawing(job.base, job.loras[0] if job.loras else None, device)
    model.latent_shape(job.size)
    for lora in job.loras:
        require_fit(lora, job.base, model.family)
    identity = f"{model.denoiser_id()}|{model.encoder_id}"
    folder.remember(replace(drawn_with(job, plan), model=identity))
    work.draw(model, plan.versions[0])
    for number, name in enumerate(plan.lora_names):
        if not work.lacks(number):
            continue
        with _attached(model, job, number) as adapter:
            for version in plan.versions_of(number):
                with adapter.scale(version.weight):
                    work.draw(model, version)
            with adapter.scale(job.weights[0]):
                work.attack(Target(model, adapter), name)


@contextmanager
def _attached(model: LoadedModel, job: EvalJob, number: int) -> Iterator[LoraAdapter]:
    """Yield a model with one of the LoRAs in it, until the block ends."""
    from ..training.adapters import attach_finished

    adapter, _ = attach_finished(model, job.loras[number])
    try:
        yield adapter
    finally:
        remove(model)


class _Work:
    """This share's images, and how many of them are there."""

    def __init__(
        self,
        job: EvalJob,
        folder: EvalFolder,
        plan: Plan,
        attacks: AttackPlan,
        share: Share,
        label: str,
        progress: Progress,
    ) -> None:
        self._job, self._folder, self._plan = job, folder, plan
        self._own, self._chunks = share.batches, share.chunks
        self._attacks, self._label, self._progress = attacks, label, progress
        images = [folder.image(version, item.name) for version, item in share.images(plan)]
        self.total = len(images)
        self.done = sum(path.exists() for path in images)

    def lacks(self, lora: int) -> bool:
        """Return whether images with a LoRA are missing, or attacks on it."""
        names = [version.name for version in self._plan.versions_of(lora)]
        return any(self._missing(name, batch) for name in names for batch in self._own) or any(
            self._missing(trial_version(chunk.name, name), chunk.items)
            for name, chunk in self._chunks
            if name == self._plan.lora_names[lora]
        )

    def draw(self, model: LoadedModel, version: Version) -> None:
        """Draw what is missing of a version; the model stands ready for it."""
        job = self._job
        for batch in self._own:
            missing = self._missing(version.name, batch)
            if not missing:
                continue

            def heard(drawn: int, _: int) -> None:
                self._progress(self.done + drawn, self.total)

            images = model.sample(
                [item.prompt.prompt for item in missing],
                [item.seed for item in missing],
                job.steps,
                job.guidance,
                job.size,
                heard,
            )
            for item, image in zip(missing, images, strict=True):
                self._folder.write_image(version.name, item.name, image)
            self._count(len(missing))

    def attack(self, target: Target, lora: str) -> None:
        """Try the attacks of this share on a LoRA, as far as they can be tried by now."""
        job = self._job
        sampling = Sampling(job.steps, job.guidance, job.batch, job.size)
        for name, chunk in self._chunks:
            version = trial_version(chunk.name, lora)
            items = self._missing(version, chunk.items)
            if name != lora or not items or self._too_early(chunk, items):
                continue
            self._progress(self.done, self.total)
            # What an attack learnt is lost with its process, so half an attack cannot be continued.
            items = list(chunk.items) if chunk.whole else items
            attack = make_attack(job, chunk, items, self._plan, self._folder, self._attacks.words)
            attacked = attack(target, [item.request for item in items], sampling)
            before = len(items) - len(self._missing(version, items))
            rows = Table(self._folder, ATTACK_TABLE, AttackRow, self._label)
            for row in attack_rows(version, items, attacked):
                rows.add(row)
            rows.close()
            for item, image in zip(items, attacked.images, strict=True):
                self._folder.write_image(version, item.name, image)
            self._count(len(items) - before)

    def _too_early(self, chunk: Chunk, items: Sequence[Item]) -> bool:
        """Return whether another share has not drawn yet what an attack begins from."""
        start = begin_from(chunk, items, self._plan)
        return bool(self._missing(BASE, start))

    def _missing(self, version: str, items: Sequence[Item]) -> list[Item]:
        return [item for item in items if not self._folder.image(version, item.name).exists()]

    def _count(self, new: int) -> None:
        self.done += new
        self._progress(self.done, self.total)
