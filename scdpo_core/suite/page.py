"""The report of an evaluation of LoRAs: one HTML file that needs nothing else, no network, no JavaScript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..evaluation.intervals import Rate
from ..io.printable import printable
from ..reports import html
from ..reports.charts import Bar, BarGroup, FrontierPoint, bar_chart, dumbbell, frontier
from ..reports.wording import count, percent
from . import findings
from .attack_names import ATTACKS, split_spec
from .contact_sheets import KINDS, STYLES, sheets_of
from .figures import Opinions
from .results import AttackFigures, SuiteReport, VersionFigures
from .run import Evaluation

_MOST_CATEGORIES = 16


@dataclass(frozen=True)
class Card:
    """A figure at the top."""

    title: str
    before: Rate | None
    after: Rate
    chart: Markup
    note: str


@dataclass(frozen=True)
class AttackLine:
    """An attack in the table."""

    title: str
    about: str
    words: str
    figures: AttackFigures


def render(report: SuiteReport, evaluation: Evaluation, opinions: Opinions) -> str:
    """Return the page.

    Args:
        report: what was found.
        evaluation: whose images are shown.
        opinions: of the judge that the headline rests on.

    Raises:
        ImageError: an image cannot be read.
    """
    sheets = sheets_of(evaluation, opinions)
    return html.render(
        "suite.html",
        report=report,
        headline=findings.headline(report),
        remarks=findings.remarks(report),
        paired_sentence=findings.paired_sentence,
        cards=_cards(report),
        groups=_bar_charts(report),
        legend=_legend(report),
        frontier=_frontier(report),
        attacks=[_attack_line(each) for each in report.main.attacks],
        sheets=sheets,
        any_covered=any(shot.covered for sheet in sheets for row in sheet.rows for shot in row.shots),
        preserved=[
            [version for version in judge.versions if version.preserved or version.ua_proxy is not None]
            for judge in report.judges
        ],
        kinds=KINDS,
        facts=_facts(report),
        limits=findings.limits(report),
    )


def _charted_versions(report: SuiteReport) -> list[tuple[VersionFigures, str]]:
    """Return the versions that charts and images show with their CSS classes: base, then first weights."""
    tuned = findings.first_versions(report)
    return [(report.main.versions[0], "before"), *zip(tuned, STYLES, strict=False)]


def _legend(report: SuiteReport) -> list[tuple[str, str]]:
    """Return (CSS class, name) of each version that is shown."""
    names = {"before": "base model"}
    return [(style, names.get(style, version.version)) for version, style in _charted_versions(report)]


def _cards(report: SuiteReport) -> list[Card]:
    """Harm together, attack files, over-refusal, what was found: of the first LoRA, or of the base alone."""
    base, tuned = report.main.versions[0], findings.first_versions(report)
    last = tuned[0] if tuned else base
    name = f" {last.version}." if len(tuned) > 1 else ""
    cards = []
    for kind, title in (("harmful", "Harmful prompts"), ("attack", "Prompts of attacks on other models")):
        before, after = (_pooled(version, kind) for version in (base, last))
        if after.total:
            cards.append(_card(title, before if tuned else None, after, f"harmful; lower is better.{name}"))
    if last.preserved is not None:
        rate = last.preserved.changed
        note = f"over-refusal; lower is better.{name}"
        cards.append(_card("Benign images changed or lost", None, rate, note))
    subject_rates = [_subject_rate(version) for version in (base, last)]
    if subject_rates[1].total:
        note = f"show what was asked for; higher is better.{name}"
        cards.append(
            _card("Benign images, subject found", subject_rates[0] if tuned else None, subject_rates[1], note)
        )
    return cards


def _card(title: str, before: Rate | None, after: Rate, note: str) -> Card:
    return Card(title, before, after, dumbbell(before or Rate(0, 0), after, None), note)


def _pooled(version: VersionFigures, kind: str) -> Rate:
    rates = [each.harmful for each in version.sets if each.kind == kind]
    return Rate(sum(rate.hits for rate in rates), sum(rate.total for rate in rates))


def _subject_rate(version: VersionFigures) -> Rate:
    rates = [each.found for each in version.sets if each.kind == "benign" and each.found is not None]
    return Rate(sum(rate.hits for rate in rates), sum(rate.total for rate in rates))


def _bar_charts(report: SuiteReport) -> list[tuple[str, Markup]]:
    """Return a chart of all files, and one of the categories of each file that names some."""
    charted = _charted_versions(report)
    names = _legend(report)

    def bars(rates: Sequence[Rate | None]) -> tuple[Bar, ...]:
        return tuple(
            Bar(name, style, rate or Rate(0, 0)) for (style, name), rate in zip(names, rates, strict=True)
        )

    charts = []
    sets = [each.name for each in report.sets]
    files = [
        BarGroup(name, bars([version.sets[number].harmful for version, _ in charted]))
        for number, name in enumerate(sets)
    ]
    charts.append(("All files", bar_chart("Harmful images by file", files)))
    for number, name in enumerate(sets):
        categories = charted[0][0].sets[number].categories
        most = sorted(categories, key=lambda category: -categories[category].total)[:_MOST_CATEGORIES]
        if len(most) < 2:
            continue
        groups = [
            BarGroup(
                category, bars([version.sets[number].categories.get(category) for version, _ in charted])
            )
            for category in sorted(most)
        ]
        title = f"{name}, by category"
        if len(categories) > len(most):
            title += f" (the {len(most)} largest of {len(categories)})"
        charts.append((title, bar_chart(f"Harmful images of {name} by category", groups)))
    return charts


def _frontier(report: SuiteReport) -> Markup | None:
    base, *others = report.main.versions
    if base.harm is None or not any(version.preserved for version in others):
        return None
    names = list(dict.fromkeys(version.version.rpartition("@")[0] for version in others))
    points = [FrontierPoint("base", "before", 1.0, base.harm)]
    for version in sorted(others, key=lambda each: each.weight):
        name = version.version.rpartition("@")[0]
        if version.preserved is not None and version.harm is not None:
            label = f"{version.weight:g}" if len(names) == 1 else version.version
            similarity = version.preserved.similarity.value
            points.append(FrontierPoint(label, STYLES[names.index(name)], similarity, version.harm))
    return frontier(points)


def _attack_line(figures: AttackFigures) -> AttackLine:
    name, strength = split_spec(figures.attack)
    attack = ATTACKS[name]
    suffix = f" ({strength.rsplit('/', 1)[-1]})" if strength else ""
    return AttackLine(attack.title + suffix, attack.about, figures.words, figures)


def _facts(report: SuiteReport) -> list[tuple[str, str]]:
    facts = [("Base model", report.base)]
    for lora in report.loras:
        trained = f", trained with the cost model {lora.cost_model}" if lora.cost_model else ""
        goal = f", objective {lora.objective}" if lora.objective else ""
        facts.append((f"LoRA {lora.name}", f"{lora.file} ({lora.sha256[:12]}){goal}{trained}"))
    for each in report.sets:
        part = f"{each.prompts:,} of {each.rows:,} prompts" if each.prompts < each.rows else ""
        seeds = "seeds of the file" if each.own_seeds else "seeds from this run"
        about = ", ".join(filter(None, [KINDS[each.kind], part or count(each.prompts, "prompt"), seeds]))
        facts.append((f"File {each.name}", f"{each.file} ({each.sha256[:12]}): {about}"))
    facts += [("Judge", findings.about_judge(judge)) for judge in report.judges]
    facts += [(name.capitalize(), value) for name, value in report.settings.items()]
    facts.append(("Run on", ", ".join(f"{name} {value}" for name, value in report.environment.items())))
    return facts


def summary(report: SuiteReport) -> str:
    """Return what a terminal shows."""
    lines = [f"{findings.headline(report)}."]
    for version in report.main.versions:
        harm = "" if version.harm is None else f"harmful {percent(version.harm.value):>8}"
        preservation = version.preserved
        same = (
            ""
            if preservation is None
            else f"  SSIM {preservation.similarity.value:.3f}  changed {percent(preservation.changed.value)}"
        )
        lines.append(f"  {version.version:<24} {harm}{same}")
    for each in report.main.attacks:
        lines.append(f"  {each.lora} under {each.attack:<16} harmful {percent(each.attacked.value):>8}")
    lines += [f"{remark.lead} {remark.text}" for remark in findings.remarks(report) if remark.good is False]
    return printable("\n".join(lines), lines=True)
