"""The parts of the report that are words and numbers: headline, charts, table, facts, advice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..reports.metrics import METRICS, TERM_METRICS
from ..reports.wording import what_terms_did
from .charts import Line, dumbbell, histogram, line_chart
from .intervals import Mean, Rate
from .judges import JudgedImage
from .metrics import CHANGED_BELOW, EvalGroup
from .results import EvalReport
from .wording import ARROW, count, duration, finding, interval, percent, signed, status, target_words

MICRO = "micro"
"""Family of the embedded model; its LoRAs fit nothing else."""


@dataclass(frozen=True)
class NextStep:
    """Something to do after reading the report.

    Attributes:
        title: a few words.
        text: one or two sentences.
        command: for a terminal, shown as it is; '' for none.
    """

    title: str
    text: str
    command: str = ""


def headline(report: EvalReport) -> str:
    """The verdict and the three numbers it rests on."""
    found = finding(report)
    tones = {True: "good", False: "bad", None: "open"}
    remarks = "".join(
        f'<p><strong class="{tones[remark.good]}">{escape(remark.lead)}</strong> {escape(remark.text)}</p>'
        for remark in found.remarks
    )
    cells = "".join(_figure(group) for group in report.headline)
    return (
        f'<h1>{escape(found.sentence)}</h1><div class="remarks">{remarks}</div>'
        f'<div class="figures">{cells}</div>'
    )


def _figure(group: EvalGroup) -> str:
    goal, bound = "", None
    if group.target is not None:
        bound = group.target.bound(group.before)
        goal = f"Target {target_words(group.target)}: {_status(group)}. "
    what = "harmful" if group.measure == "harmful" else "show what was asked for"
    return (
        f'<div class="figure"><h2>{escape(group.title)}</h2>'
        f'<p class="big"><span class="was">{percent(group.before.value)}</span> '
        f'<span class="to" aria-hidden="true">{ARROW}</span><span class="sr">before, after tuning</span> '
        f'<span class="now{" bad" if group.met is False else ""}">{percent(group.after.value)}</span></p>'
        f"{dumbbell(group.before, group.after, bound)}"
        f'<p class="note">{what}; {group.aim}. {goal}'
        f"95&#8239;% interval now {interval(group.after)}.</p></div>"
    )


def _status(group: EvalGroup) -> str:
    word = {"met": "met", "missed": "missed", "unmeasured": "not measured"}[status(group)]
    return f'<strong class="{"good" if word == "met" else "bad"}">{word}</strong>'


def cost_charts(report: EvalReport, images: Sequence[JudgedImage]) -> str:
    """Histograms of the costs under harmful and under benign captions, on one scale."""
    groups = (*report.groups, *report.headline)
    measures = {caption: group.measure for group in groups for caption in group.captions}
    sides: dict[str, tuple[list[float], list[float]]] = {"harmful": ([], []), "subject": ([], [])}
    for pair in images:
        before, after = pair.before.cost, pair.after.cost
        if before and after and math.isfinite(before.value) and math.isfinite(after.value):
            values = sides[measures.get(pair.asked.caption, "harmful")]
            values[0].append(before.value)
            values[1].append(after.value)
    every = sorted(value for both in sides.values() for values in both for value in values)
    if not every:
        return "<p>The images were not scored, so there are no costs to show.</p>"
    # One far-off image must not squeeze all others into two bars.
    trim = len(every) // 100
    low = max(-12.0, min(-2.0, math.floor(every[trim])))
    high = min(12.0, max(2.0, math.ceil(every[len(every) - 1 - trim])))
    charts = []
    for measure, title in (("harmful", "Harmful captions"), ("subject", "Benign captions")):
        before_costs, after_costs = sides[measure]
        if before_costs:
            drawn = histogram(f"Costs, {title.lower()}", before_costs, after_costs, low, high)
            named = f"{title}, {count(len(after_costs), 'image')}"
            charts.append(f"<figure><figcaption>{named}</figcaption>{drawn}</figure>")
    return f'{_legend("before, upwards", "after, downwards")}<div class="charts">{"".join(charts)}</div>'


def curve_charts(rows: Sequence[Mapping[str, float]]) -> str:
    """Loss, terms, implicit accuracy and gaps over the steps, and what each term did in words.

    A row is one progress event.
    """
    wanted: list[tuple[str, tuple[tuple[str, str, str], ...], tuple[float, str] | None]] = [
        (METRICS[name].title, ((name, METRICS[name].short, "after"),), None)
        for name in ("loss", *TERM_METRICS)
    ]
    wanted += [
        (
            METRICS["implicit_accuracy"].title,
            (("implicit_accuracy", "implicit accuracy", "after"),),
            (0.5, "a coin's toss"),
        ),
        (
            "Error against the base model",
            (("winner_gap", "chosen", "after"), ("loser_gap", "rejected", "before")),
            (0.0, "as the base"),
        ),
    ]
    figures = []
    for title, curves, reference in wanted:
        lines = []
        for key, label, style in curves:
            logged = [row for row in rows if key in row]
            if logged:
                steps, values = [row["step"] for row in logged], [row[key] for row in logged]
                lines.append(Line(label, style, steps, values))
        if lines:
            legend = _legend("rejected images", "chosen images") if len(lines) > 1 else ""
            drawn = line_chart(title, lines, reference)
            figures.append(f"<figure><figcaption>{title}</figcaption>{drawn}{legend}</figure>")
    if not figures:
        return "<p>No training log was kept with this evaluation.</p>"
    known = {key for row in rows for key in row}
    told = what_terms_did(
        {key: [(round(row["step"]), row[key]) for row in rows if key in row] for key in known}
    )
    words = "".join(f"<li>{sentence}</li>" for sentence in told)
    return f'<div class="charts three">{"".join(figures)}</div>' + (f"<ul>{words}</ul>" if words else "")


def _legend(before: str, after: str) -> str:
    return (
        f'<p class="legend"><span class="key before" aria-hidden="true"></span>{before} '
        f'<span class="key after" aria-hidden="true"></span>{after}</p>'
    )


def figures_table(report: EvalReport) -> str:
    """Every figure with its interval, its aim and whether its target is met."""
    rows = [_row(g.title, count(g.after.total, "image"), g.before, g.after, g.aim, g) for g in report.groups]
    if report.any_of_n is not None:
        n = report.any_of_n
        rows.append(
            _row(
                f"Captions with a harmful image in {n.seeds} seeds",
                count(n.after.total, "caption"),
                n.before,
                n.after,
                "lower is better",
            )
        )
    if report.background is not None:
        kept = report.background
        rows.append(
            _row(
                "Asked background kept",
                count(kept.after.total, "image"),
                kept.before,
                kept.after,
                "higher is better",
            )
        )
    if report.ua_proxy is not None:
        before, after = (f"{value:.3f}" for value in report.ua_proxy)
        rows.append(_cells("ua_proxy", "safety and quality in one", before, after, "", "higher is better"))
    if report.preservation is not None:
        kept_as = report.preservation
        rows.append(_mean_row("Benign images, SSIM to the base's", kept_as.similarity, "1 is identical"))
        rows.append(_mean_row("Benign images, mean pixel difference", kept_as.difference, "0 is identical"))
        changed = kept_as.over_refusal
        rows.append(
            _cells(
                "Benign images changed or lost (over-refusal)",
                f"SSIM below {CHANGED_BELOW:g}, or subject gone",
                "",
                _with_interval(changed),
                "",
                "lower is better",
            )
        )
    head = "".join(
        f'<th scope="col" role="columnheader">{name}</th>'
        for name in ("Figure", "Before", "After", "Change", "Aim")
    )
    return (
        '<table role="table"><caption>Shares with their 95&#8239;% Wilson intervals, means with '
        '95&#8239;% t-intervals, in brackets.</caption><thead role="rowgroup">'
        f'<tr role="row">{head}</tr></thead><tbody role="rowgroup">{"".join(rows)}</tbody></table>'
    )


def _row(title: str, of: str, before: Rate, after: Rate, aim: str, group: EvalGroup | None = None) -> str:
    if group is not None and group.target is not None:
        aim = f"{target_words(group.target)}: {_status(group)}"
    change = 100 * (after.value - before.value)
    points = f"{signed(change)} points" if math.isfinite(change) else ""
    return _cells(title, of, _with_interval(before), _with_interval(after), points, aim)


def _mean_row(title: str, mean: Mean, aim: str) -> str:
    ends = mean.interval
    around = f" <small>({ends.low:.3f} to {ends.high:.3f})</small>" if math.isfinite(ends.low) else ""
    return _cells(title, count(mean.n, "image"), "", f"{mean.value:.3f}{around}", "", aim)


def _with_interval(rate: Rate) -> str:
    return f"{percent(rate.value)} <small>({interval(rate)})</small>" if rate.total else "not measured"


def _cells(title: str, of: str, before: str, after: str, change: str, aim: str) -> str:
    cells = "".join(
        f'<td role="cell" data-label="{name}"><span>{value}</span></td>'
        if value
        else '<td role="cell" class="void"></td>'
        for name, value in (("Before", before), ("After", after), ("Change", change), ("Aim", aim))
    )
    name = f'<th scope="row" role="rowheader">{escape(title)}<small>{of}</small></th>'
    return f'<tr role="row">{name}{cells}</tr>'


def trained(report: EvalReport) -> str:
    """What was trained, with what, and who judged."""
    facts: list[tuple[str, str]] = []
    if report.train is not None:
        train = report.train
        facts += [
            ("Base model", train.base),
            ("Objective", train.objective),
            ("Training", f"{count(train.steps, 'step')} in {duration(train.seconds)}, seed {train.seed}"),
            ("Pairs", f"{train.pairs:,}"),
            *train.settings.items(),
        ]
    if report.lora is not None:
        lora = report.lora
        facts += [
            ("LoRA", lora.path.name),
            ("Rank and keys", f"rank {lora.rank}, {count(lora.keys, 'tensor')}, family {lora.family}"),
        ]
    if report.cost_model is not None:
        cost = report.cost_model
        facts.append(("Cost model", f"{cost.id} ({cost.hash})"))
        if cost.auc is not None:
            facts.append(("Its AUC", f"{cost.auc:.4f}, on images that it never saw"))
        if cost.recall_at_zero is not None and cost.fpr_at_zero is not None:
            facts.append(
                (
                    "Its flag at cost 0",
                    f"finds {percent(cost.recall_at_zero)} of the harmful images, "
                    f"wrongly flags {percent(cost.fpr_at_zero)} of the benign ones",
                )
            )
    judge = report.judge
    known = "accuracy not measured" if judge.accuracy is None else f"right in {percent(judge.accuracy)}"
    apart = "shares nothing with the cost model" if judge.independent else "not independent of the cost model"
    facts.append(("Judge", f"{judge.name}; {known}; {apart}"))
    if report.environment:
        facts.append(("Run on", ", ".join(f"{name} {value}" for name, value in report.environment.items())))
    return (
        '<dl class="facts">'
        + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
        + "</dl>"
    )


def going_on(steps: Sequence[NextStep]) -> str:
    """The next steps, with their commands."""
    items = []
    for step in steps:
        command = f"<pre><code>{escape(step.command)}</code></pre>" if step.command else ""
        items.append(f"<li><h3>{escape(step.title)}</h3><p>{escape(step.text)}</p>{command}</li>")
    return f'<ol class="steps">{"".join(items)}</ol>'
