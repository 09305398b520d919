"""Describe an evaluation's result without claiming more than its figures allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..reports.wording import NARROW, percent, short
from .metrics import EvalGroup, Target
from .results import EvalReport

Status = Literal["met", "missed", "unmeasured"]


@dataclass(frozen=True)
class Remark:
    """What a careful reader must know beside the verdict.

    Attributes:
        lead: the word or two that name it, such as 'Missed'.
        text: the sentence after it.
        good: whether it is good news; None when neither.
    """

    lead: str
    text: str
    good: bool | None = None


@dataclass(frozen=True)
class Finding:
    """The report in one sentence, plain words with the big numbers, and what to know beside it."""

    sentence: str
    remarks: tuple[Remark, ...]


def target_words(target: Target) -> str:
    """Return 'at most 10 %' or 'down by at most 3 points'."""
    if target.kind == "drop at most":
        return f"down by at most {short(100 * target.limit)} points"
    return f"{target.kind} {percent(target.limit)}"


def status(group: EvalGroup) -> Status:
    """Return how a group with a target did."""
    if not group.before.total or not group.after.total:
        return "unmeasured"
    return "met" if group.met else "missed"


def finding(report: EvalReport) -> Finding:
    """Say in one sentence what tuning did, good or bad."""
    sentence = _harm(report.harmful)
    sentence += "." if report.benign is None else _benign(report.benign)
    return Finding(sentence, (*_target_remarks(report), *_doubts(report)))


def _target_remarks(report: EvalReport) -> list[Remark]:
    targets = report.targets
    if not targets:
        return [Remark("No target", "was set for this run.")]
    remarks = []
    for group in targets:
        assert group.target is not None
        if status(group) == "unmeasured":
            remarks.append(Remark("Not measured", f"{group.title}: no image was generated.", False))
        elif status(group) == "missed":
            remarks.append(
                Remark(
                    "Missed",
                    f"{group.title}: {percent(group.before.value)} before, {percent(group.after.value)} now; "
                    f"the target was {target_words(group.target)}.",
                    False,
                )
            )
    if not remarks:
        return [Remark("Target met." if len(targets) == 1 else f"All {len(targets)} targets met.", "", True)]
    return remarks


def _doubts(report: EvalReport) -> list[Remark]:
    remarks = []
    met = [(group.title, group.target, group) for group in report.targets if group.met]
    unsure = [title for title, target, g in met if target and not target.certain(g.before, g.after)]
    if unsure:
        remarks.append(
            Remark(
                "Not certain",
                f"{'; '.join(unsure)}: so few images that the 95{NARROW}% interval still reaches "
                "past the target.",
            )
        )
    if report.harmful.before.value < 0.5:
        remarks.append(
            Remark(
                "Little to remove",
                "The base model itself shows what these captions ask for in less than half of its images, "
                "so a low rate after tuning says little.",
            )
        )
    if not report.judge.independent:
        remarks.append(
            Remark(
                "Not independent",
                "The judge shares weights or images with the cost model that training used, so these "
                "figures flatter.",
                False,
            )
        )
    return remarks


def _harm(group: EvalGroup) -> str:
    before, after = percent(group.before.value), percent(group.after.value)
    if not group.before.total or not group.after.total:
        return "No image was generated for a harmful caption, so nothing can be said about safety"
    if group.after.value == group.before.value:
        return f"Harmful images stayed at {after}, exactly as before"
    if group.after.value > group.before.value:
        return f"Tuning made it worse: harmful images rose from {before} to {after}"
    if group.after.interval().high >= group.before.interval().low:
        return f"Harmful images went from {before} to {after}, a difference that chance alone could make"
    if status(group) == "missed" and group.target is not None:
        target = percent(group.target.bound(group.before))
        return f"Harmful images fell from {before} to {after}, short of the target of {target}"
    return f"Harmful images fell from {before} to {after}"


def _benign(group: EvalGroup) -> str:
    if not group.before.total or not group.after.total:
        return "."
    before, after = percent(group.before.value), percent(group.after.value)
    if status(group) == "missed":
        return f", but fewer benign images still show what was asked for: {after}, before {before}."
    if before == after:
        return f", and benign images show what was asked for as often as before: {after}."
    return f", and benign images still show what was asked for: {before} before, {after} now."
