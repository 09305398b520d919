"""An evaluation from settings to tables: check, lock, draw, attack, judge, measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..lora.file import read_lora_info
from ..run_store import folder as names
from ..run_store.file_lock import is_locked
from ..run_store.run_lock import is_ours
from ..types import Problem, ScdpoError
from .attacks import AttackPlan, plan_attacks
from .folder import SHARDS, EvalFolder
from .job import EvalJob, problems, write_job
from .judging import JudgeInfo, judge_missing, load_judge
from .measuring import ClipModel, measure_clip, measure_likeness
from .plan import BASE, Plan, Shard, make_plan
from .sampling import draw_missing, drawn_with, share_of

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, int, int], None]
"""Is told what is being done ('drawing', 'judging', ...), how much of it, and how much there is."""


@dataclass(frozen=True)
class Evaluation:
    """Checked settings and what they mean.

    Attributes:
        job: the settings.
        plan: what is drawn.
        attacks: what is tried.
        notes: what was odd in the prompt files.
    """

    job: EvalJob
    plan: Plan
    attacks: AttackPlan
    notes: tuple[Problem, ...] = ()

    @property
    def folder(self) -> EvalFolder:
        """Where everything goes."""
        return EvalFolder(self.job.output)

    @property
    def images(self) -> int:
        """How many images there are, those under attack among them."""
        return len(share_of(self.job, self.plan, self.attacks, Shard()).images(self.plan))


@dataclass(frozen=True)
class Judged:
    """Who judged an evaluation's images.

    Attributes:
        judges: in the order of the settings.
        clip: id of the CLIP model; '' without one.
    """

    judges: tuple[JudgeInfo, ...]
    clip: str = ""


def prepare(job: EvalJob) -> Evaluation:
    """Check settings and prompt files; loads no model.

    Raises:
        ScdpoError: says everything that is wrong, one thing a line.
    """
    wrong = list(problems(job))
    if wrong:
        raise ScdpoError("\n".join(wrong))
    plan, notes = make_plan(job)
    attacks = plan_attacks(job, plan)
    missing = [spec for spec in job.attacks if not attacks.items(spec)]
    if missing:
        words = ", ".join(attacks.words) or "none"
        raise ScdpoError(
            f"--attack {missing[0]}: no harmful prompt names one of the words to replace ({words}), as it is "
            "written there. Give others with --attack-words."
        )
    for path in job.loras:
        read_lora_info(path)
    return Evaluation(job, plan, attacks, tuple(notes))


def share_folder(evaluation: Evaluation, shard: Shard) -> Path:
    """Return the folder that a share of the work locks and reports into."""
    folder = evaluation.folder
    return folder.path if shard.count == 1 else folder.shard(shard.label)


def begin(evaluation: Evaluation, shard: Shard) -> None:
    """Make the folder ready; whoever calls holds the lock of `share_folder`.

    Raises:
        ScdpoError: the folder is another run's, its images were drawn with something else, or another process
            draws the same images.
        OSError: the folder cannot be written.
    """
    folder, shard_folder = evaluation.folder, share_folder(evaluation, shard)
    names.check_kind(folder.path, "evaluate")
    folders = [folder.path, *(folder.path / SHARDS).glob("*")]
    others = [path for path in folders if path != shard_folder and is_locked(path / names.HOLD)]
    # Shares of one division of the work meet nowhere.
    clash = [path for path in others if path == folder.path or not path.name.endswith(f"-of-{shard.count}")]
    if clash:
        raise ScdpoError(
            f"Another process is working in {clash[0]} and generates the same images. Wait until it has "
            "ended, or give each process its share: --shard 1/2 and --shard 2/2."
        )
    launch = names.launch_of(folder.path)
    if not others and not (launch is not None and is_ours(launch.process)):
        # It asked an earlier process.
        (folder.path / names.STOP).unlink(missing_ok=True)
    folder.remember(drawn_with(evaluation.job, evaluation.plan))
    write_job(evaluation.job)
    if not (folder.path / names.KIND).exists():
        names.write_kind(folder.path, "evaluate")


def work(evaluation: Evaluation, shard: Shard, device: torch.device, progress: Progress) -> Judged:
    """Do a share of the work, as far as it is not done yet.

    Args:
        evaluation: checked.
        shard: the share.
        device: where to draw and judge.
        progress: see `Progress`; may raise to end the work.

    Raises:
        ScdpoError: a model, a LoRA, a judge or an encoder cannot be loaded, or they do not fit.
        OSError: something cannot be written.
    """
    job, plan, folder = evaluation.job, evaluation.plan, evaluation.folder
    share = share_of(job, plan, evaluation.attacks, shard)
    draw_missing(
        job,
        plan,
        evaluation.attacks,
        folder,
        device,
        shard,
        lambda done, total: progress("drawing", done, total),
    )
    # An attack of this share may depend on images of another share.
    available = [pair for pair in share.images(plan) if folder.image(pair[0], pair[1].name).exists()]
    where = str(device)
    judges = []
    for spec in job.scorers:
        judge = load_judge(spec, where)
        judges.append(judge.info)
        title = f"judging ({spec})" if len(job.scorers) > 1 else "judging"
        judge_missing(
            judge,
            available,
            folder,
            shard.label,
            lambda done, total, title=title: progress(title, done, total),  # type: ignore[misc]
        )
    benign = {each.name for each in plan.sets if each.kind == "benign"}
    compared = [
        (version, item) for version, item in available if version != BASE and item.prompt_set in benign
    ]
    ready = [pair for pair in compared if folder.image(BASE, pair[1].name).exists()]
    measure_likeness(ready, folder, shard.label, lambda done, total: progress("comparing", done, total))
    if job.clip is None:
        return Judged(tuple(judges))
    clip = ClipModel(job.clip, where)
    measure_clip(clip, available, folder, shard.label, lambda done, total: progress("CLIP", done, total))
    return Judged(tuple(judges), clip.id)
