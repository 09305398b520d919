"""The data of the report's sections: cards, images, charts, the table of figures, facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..reports.charts import dumbbell, histogram
from ..reports.curves import Points
from ..reports.images import CRISP_UP_TO, encode, spread
from ..reports.wording import count, duration, percent, signed
from .findings import Status, status, target_words
from .intervals import Mean, Rate
from .judges import JudgedImage
from .metrics import CHANGED_BELOW, EvalGroup, measure_group
from .results import EvalReport


@dataclass(frozen=True)
class Card:
    """A headline figure: its group, its target in words ('' for none), and a chart."""

    group: EvalGroup
    target: str
    status: Status
    chart: Markup


@dataclass(frozen=True)
class InlinePair:
    """A judged pair with both images as data URIs."""

    pair: JudgedImage
    before: str
    after: str

    @property
    def style(self) -> str:
        """CSS class that keeps the hard pixels of small drawings."""
        return "crisp" if max(self.pair.before.image.size) <= CRISP_UP_TO else "smooth"


@dataclass(frozen=True)
class FigureRow:
    """A row of the table of figures.

    Attributes:
        title: of the figure.
        basis: what it rests on, such as the number of images.
        before: of the base model; None where there is none.
        after: with the LoRA.
        change: in words.
        aim: in words.
        status: of its target; None without one.
    """

    title: str
    basis: str
    before: Rate | str | None
    after: Rate | Mean | str
    change: str
    aim: str
    status: Status | None = None


def cards(report: EvalReport) -> list[Card]:
    """Return the headline figures."""
    entries = []
    for group in report.headline:
        target = None if group.target is None else group.target.bound(group.before)
        words = "" if group.target is None else target_words(group.target)
        entries.append(Card(group, words, status(group), dumbbell(group.before, group.after, target)))
    return entries


def inline(images: Sequence[JudgedImage]) -> list[InlinePair]:
    """Encode all images alike, as faithfully as the budget of a report allows."""
    uris = encode([shot.image for pair in images for shot in (pair.before, pair.after)])
    return [InlinePair(pair, *uris[2 * k : 2 * k + 2]) for k, pair in enumerate(images)]


def strip(pairs: Sequence[InlinePair], report: EvalReport, most: int = 8) -> list[InlinePair]:
    """Choose pairs for a first look, evenly from the harmful captions (five of eight) and the benign ones."""
    benign_captions = report.benign.captions if report.benign else ()
    harmful = [pair for pair in pairs if pair.pair.request.caption in report.harmful.captions]
    benign = [pair for pair in pairs if pair.pair.request.caption in benign_captions]
    return spread(harmful, most - min(len(benign), 3)) + spread(benign, min(len(benign), 3))


def image_sections(
    report: EvalReport, pairs: Sequence[InlinePair]
) -> list[tuple[EvalGroup, list[InlinePair]]]:
    """Return every group that has images; images of groups that the report does not know come last."""
    groups = {group.name: group for group in report.groups}
    by_group: dict[str, list[InlinePair]] = {name: [] for name in groups}
    for item in pairs:
        by_group.setdefault(item.pair.request.group, []).append(item)
    for name in by_group.keys() - groups.keys():
        judged = [item.pair for item in by_group[name]]
        groups[name] = measure_group(judged, name=name, title=name, description="", measure="harmful")
    return [(groups[name], items) for name, items in by_group.items() if items]


def histograms(report: EvalReport, images: Sequence[JudgedImage]) -> list[tuple[str, Markup]]:
    """Draw the costs under harmful and under benign captions on one scale; nothing without costs."""
    groups = (*report.groups, *report.headline)
    measures = {caption: group.measure for group in groups for caption in group.captions}
    sides: dict[str, tuple[list[float], list[float]]] = {"harmful": ([], []), "subject": ([], [])}
    for pair in images:
        before, after = pair.before.cost, pair.after.cost
        if before and after and math.isfinite(before.value) and math.isfinite(after.value):
            costs = sides[measures.get(pair.request.caption, "harmful")]
            costs[0].append(before.value)
            costs[1].append(after.value)
    every = sorted(cost for both in sides.values() for costs in both for cost in costs)
    if not every:
        return []
    # One extreme image must not squeeze all others into two bars.
    trim = len(every) // 100
    low = max(-12.0, min(-2.0, math.floor(every[trim])))
    high = min(12.0, max(2.0, math.ceil(every[len(every) - 1 - trim])))
    return [
        (
            f"{title}, {count(len(sides[measure][1]), 'image')}",
            histogram(f"Costs, {title.lower()}", *sides[measure], low, high),
        )
        for measure, title in (("harmful", "Harmful captions"), ("subject", "Benign captions"))
        if sides[measure][0]
    ]


def curves_of(rows: Sequence[Mapping[str, float]]) -> dict[str, Points]:
    """Turn rows of progress events, each with its 'step', into curves by metric."""
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    return {name: [(round(row["step"]), row[name]) for row in rows if name in row] for name in names}


def figure_rows(report: EvalReport) -> list[FigureRow]:
    """Return every figure with its interval, its aim and whether its target is met."""
    rows = [
        _rate_row(group.title, count(group.after.total, "image"), group.before, group.after, group.aim, group)
        for group in report.groups
    ]
    if report.any_of_n is not None:
        any_of_n = report.any_of_n
        title = f"Captions with a harmful image in {any_of_n.seeds} seeds"
        captions = count(any_of_n.after.total, "caption")
        rows.append(_rate_row(title, captions, any_of_n.before, any_of_n.after, "lower is better"))
    if report.background is not None:
        background = report.background
        images = count(background.after.total, "image")
        rows.append(
            _rate_row(
                "Requested background kept", images, background.before, background.after, "higher is better"
            )
        )
    if report.ua_proxy is not None:
        before, after = (f"{value:.3f}" for value in report.ua_proxy)
        rows.append(FigureRow("ua_proxy", "safety and quality in one", before, after, "", "higher is better"))
    if report.preservation is not None:
        for title, mean, aim in (
            ("Benign images, SSIM to the base's", report.preservation.similarity, "1 is identical"),
            ("Benign images, mean pixel difference", report.preservation.difference, "0 is identical"),
        ):
            rows.append(FigureRow(title, count(mean.n, "image"), None, mean, "", aim))
        rows.append(
            FigureRow(
                "Benign images changed or lost (over-refusal)",
                f"SSIM below {CHANGED_BELOW:g}, or subject gone",
                None,
                report.preservation.over_refusal,
                "",
                "lower is better",
            )
        )
    return rows


def _rate_row(
    title: str, basis: str, before: Rate, after: Rate, aim: str, group: EvalGroup | None = None
) -> FigureRow:
    change = 100 * (after.value - before.value)
    points = f"{signed(change, 1)} points" if math.isfinite(change) else ""
    if group is None or group.target is None:
        return FigureRow(title, basis, before, after, points, aim)
    return FigureRow(title, basis, before, after, points, target_words(group.target), status(group))


def facts(report: EvalReport) -> list[tuple[str, str]]:
    """Return what was trained, with what, and who judged."""
    entries: list[tuple[str, str]] = []
    if report.train is not None:
        train = report.train
        entries += [
            ("Base model", train.base),
            ("Objective", train.objective),
            ("Training", f"{count(train.steps, 'step')} in {duration(train.seconds)}, seed {train.seed}"),
            ("Pairs", f"{train.pairs:,}"),
            *train.settings.items(),
        ]
    if report.lora is not None:
        lora = report.lora
        entries += [
            ("LoRA", lora.path.name),
            ("Rank and keys", f"rank {lora.rank}, {count(lora.keys, 'tensor')}, family {lora.family}"),
        ]
    if report.cost_model is not None:
        cost = report.cost_model
        entries.append(("Cost model", f"{cost.id} ({cost.hash})"))
        if cost.auc is not None:
            entries.append(("Its AUC", f"{cost.auc:.4f}, on held-out images"))
        if cost.recall_at_zero is not None and cost.fpr_at_zero is not None:
            flag = (
                f"finds {percent(cost.recall_at_zero)} of the harmful images, "
                f"wrongly flags {percent(cost.fpr_at_zero)} of the benign ones"
            )
            entries.append(("Its flag at cost 0", flag))
    judge = report.judge
    accuracy = "accuracy not measured" if judge.accuracy is None else f"right in {percent(judge.accuracy)}"
    independence = (
        "shares nothing with the cost model" if judge.independent else "not independent of the cost model"
    )
    entries.append(("Judge", f"{judge.name}; {accuracy}; {independence}"))
    if report.environment:
        entries.append(("Run on", ", ".join(f"{name} {value}" for name, value in report.environment.items())))
    return entries
