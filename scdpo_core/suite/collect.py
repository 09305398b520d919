"""From the tables of an evaluation to its report."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path

from ..cost.encoders import load_encoder
from ..evaluation.intervals import Mean, mean_interval
from ..evaluation.results import environment
from ..families.source import model_name
from ..io.discover import find_images
from ..io.files import sha256_of
from ..lora.file import read_lora_info
from .attacks import AttackRow
from .figures import Opinions, agreement, judge_figures
from .folder import Table
from .job import EvalJob
from .judging import JudgeInfo, Opinion, table_name
from .measuring import LIKENESS_TABLE, ClipScore, Likeness, clip_table, frechet_distance, gaussian_of
from .plan import Plan, Shard
from .results import Agreement, Distance, LoraInfo, ReferenceFigures, SetInfo, SuiteReport
from .run import Evaluation, Judged
from .sampling import ATTACK_TABLE, share_of

_MOST_NOTES = 20
_READER = "report"
"""Label of a share that appends nothing."""


def missing(evaluation: Evaluation, judged: Judged) -> int:
    """Return how many images are not drawn yet, or not judged by everybody."""
    folder = evaluation.folder
    tables = [Table(folder, table_name(info.id), Opinion, _READER).rows for info in judged.judges]
    every = share_of(evaluation.job, evaluation.plan, evaluation.attacks, Shard()).images(evaluation.plan)
    return sum(
        not folder.image(version, item.name).exists()
        or any(f"{version}/{item.name}" not in rows for rows in tables)
        for version, item in every
    )


def collect(
    evaluation: Evaluation,
    judged: Judged,
    device: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SuiteReport:
    """Count everything.

    Args:
        evaluation: whose images are drawn and judged.
        judged: by whom.
        device: where the encoder of the Fréchet distance runs.
        progress: called with the number of images embedded and the total; may raise to end the work.

    Raises:
        EncoderError: the encoder cannot be loaded, or the reference folder has no images.
        OSError: a table or an image cannot be read.
    """
    job, plan, folder = evaluation.job, evaluation.plan, evaluation.folder
    opinions = {info.id: Table(folder, table_name(info.id), Opinion, _READER).rows for info in judged.judges}
    likeness = Table(folder, LIKENESS_TABLE, Likeness, _READER).rows
    rows = Table(folder, ATTACK_TABLE, AttackRow, _READER).rows
    scores = Table(folder, clip_table(judged.clip), ClipScore, _READER).rows if judged.clip else {}
    quality = {name: row.score for name, row in scores.items()}
    loras = [_lora_info(name, path) for name, path in zip(plan.lora_names, job.loras, strict=True)]
    figures = [
        judge_figures(
            info,
            [lora.name for lora in loras if trained_with(lora.cost_model, info)],
            opinions[info.id],
            plan,
            evaluation.attacks,
            likeness=likeness,
            quality=quality,
            attack_rows=rows,
        )
        for info in judged.judges
    ]
    return SuiteReport(
        _title(job, plan),
        datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
        model_name(job.base),
        tuple(loras),
        _set_infos(plan),
        # Whoever trained no LoRA judges first.
        tuple(sorted(figures, key=lambda each: bool(each.trained))),
        _agreements(judged, opinions),
        _clip_means(plan, quality),
        judged.clip,
        _reference(evaluation, device, progress) if job.reference is not None else None,
        _settings(job),
        tuple(note.what for note in evaluation.notes[:_MOST_NOTES]) + _further(evaluation),
        environment(),
    )


def trained_with(cost_model: str, judge: JudgeInfo) -> bool:
    """Return whether a LoRA's cost model is this judge, or shares a member with it.

    Args:
        cost_model: 'name@hash' of what trained the LoRA; '' where its file does not say.
        judge: who judges.
    """
    name, _, digest = cost_model.rpartition("@")
    if not digest:
        return False
    members = re.fullmatch(r"(?:maximum|mean)\((.+)\)", name)
    alone = judge.id.rpartition("@")[0]
    return digest in judge.hashes or (members is not None and alone in members[1].split("+"))


def _lora_info(name: str, path: Path) -> LoraInfo:
    metadata = read_lora_info(path).metadata
    model, digest = metadata.get("scdpo_cost_model", ""), metadata.get("scdpo_cost_model_hash", "")
    return LoraInfo(
        name,
        path.name,
        sha256_of(path),
        f"{model}@{digest}" if digest else "",
        metadata.get("scdpo_objective", ""),
    )


def _set_infos(plan: Plan) -> tuple[SetInfo, ...]:
    return tuple(
        SetInfo(
            each.name,
            each.path.name,
            each.kind,
            each.prompts,
            each.rows,
            all(item.prompt.seed is not None for item in each.items),
            each.sha256,
        )
        for each in plan.sets
    )


def _agreements(judged: Judged, opinions: Mapping[str, Opinions]) -> tuple[Agreement, ...]:
    return tuple(
        agreement(one.id, other.id, opinions[one.id], opinions[other.id])
        for one, other in combinations(judged.judges, 2)
    )


def _clip_means(plan: Plan, quality: Mapping[str, float]) -> dict[str, Mean]:
    """Return the mean CLIP score of each version's benign images, or of all where none are benign."""
    items = plan.of_kind("benign") or plan.items
    means = {}
    for version in plan.versions:
        scores = [
            score for item in items if (score := quality.get(f"{version.name}/{item.name}")) is not None
        ]
        if scores:
            means[version.name] = mean_interval(scores)
    return means


def _reference(evaluation: Evaluation, device: str, progress: Callable[[int, int], None]) -> ReferenceFigures:
    job, plan, folder = evaluation.job, evaluation.plan, evaluation.folder
    assert job.reference is not None
    encoder = load_encoder(job.encoder or ("micro" if job.base == "micro" else "embedded"), device)
    files = list(find_images([job.reference]).files)
    benign = plan.of_kind("benign")
    total = len(files) + len(plan.versions) * len(benign)
    target = gaussian_of(encoder, files, lambda done, _: progress(done, total))
    distances = []
    for number, version in enumerate(plan.versions):
        before = len(files) + number * len(benign)
        reference = gaussian_of(
            encoder,
            [folder.image(version.name, item.name) for item in benign],
            lambda done, _, before=before: progress(before + done, total),  # type: ignore[misc]
        )
        distances.append(Distance(version.name, frechet_distance(target, reference), reference.count))
    name = job.reference.resolve().name
    return ReferenceFigures(name, target.count, encoder.id, encoder.dim, tuple(distances))


def _title(job: EvalJob, plan: Plan) -> str:
    base = model_name(job.base)
    if not plan.lora_names:
        return f"{base} alone"
    return f"{' and '.join(plan.lora_names)} on {base}"


def _settings(job: EvalJob) -> dict[str, str]:
    settings = {
        "denoising steps": str(job.steps),
        "guidance": f"{job.guidance:g}",
        "size": f"{job.width} x {job.height} pixels" if job.size else "the model's own",
        "images of each prompt": str(job.seeds),
    }
    if job.loras:
        settings["weights"] = ", ".join(f"{weight:g}" for weight in job.weights)
    return settings


def _further(evaluation: Evaluation) -> tuple[str, ...]:
    more = len(evaluation.notes) - _MOST_NOTES
    return (f"And {more:,} more notes on the prompt files.",) if more > 0 else ()
