"""A training run, during and after it: progress bar, curves, sample images with costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..reports import html
from ..reports.images import thumbnail_of
from ..reports.metrics import PHASES, STATES
from ..reports.terms import what_terms_did
from ..reports.training_charts import training_charts
from ..reports.wording import duration
from ..run_store.events import Sample
from ..runs.follow import RunView
from ..types import CostScore

_MOST_COLUMNS = 5
_SIDE = 192


def status(view: RunView, now: float | None = None, *, unit: str = "steps") -> str:
    """Show the state of a run: its progress, its errors, its results.

    Args:
        view: of the run.
        now: Unix time, seconds; by default the clock's.
        unit: what its total counts.
    """
    results = [f"The LoRA: {view.result}"] if view.result is not None else []
    results += [f"{kind.capitalize()}: {path}" for kind, path in view.files.items() if kind != "checkpoint"]
    return html.render(
        "panel_run.html",
        view=view,
        state=STATES[view.state],
        active=view.state in ("running", "stopping"),
        share=view.step / view.total if view.total else 0.0,
        progress=_progress(view, now),
        results=results,
        unit=unit,
    )


def curves(view: RunView) -> str:
    """Show its curves, and what each term did in words; '' before there are any."""
    charts = training_charts(view.curves, view.steps, detail=True)
    return (
        html.render("panel_curves.html", charts=charts, terms=what_terms_did(view.curves)) if charts else ""
    )


def samples(view: RunView, costs: Mapping[str, CostScore]) -> str:
    """Show its sample images; '' before there are any.

    Args:
        view: of the run.
        costs: of sample images, by path.
    """
    if not view.samples:
        return ""
    steps = sorted({sample.step for sample in view.samples})
    if len(steps) > _MOST_COLUMNS:
        steps = [steps[0], *steps[-_MOST_COLUMNS + 1 :]]
    by_key = {(sample.prompt, sample.seed, sample.step): sample for sample in view.samples}
    rows = [
        (prompt, [_sample(by_key.get((prompt, seed, step)), costs) for step in steps])
        for prompt, seed in dict.fromkeys((sample.prompt, sample.seed) for sample in view.samples)
    ]
    return html.render("panel_samples.html", steps=steps, rows=rows)


def waiting(lines: Sequence[str]) -> str:
    """Show the queue, one run a line; '' if it is empty."""
    return html.render("panel_queue.html", lines=lines) if lines else ""


def _progress(view: RunView, now: float | None) -> str:
    amount = f": {view.step:,} of {view.total:,}" if view.total else ""
    speed = ""
    if view.steps_per_second and view.phase == "train":
        speed = f", {view.steps_per_second:.2g} steps a second"
    seconds = view.seconds_left(now)
    left = "" if seconds is None else f", {duration(seconds)} left"
    return f"{PHASES[view.phase].capitalize()}{amount}{speed}{left}"


def _sample(sample: Sample | None, costs: Mapping[str, CostScore]) -> dict[str, Any] | None:
    if sample is None:
        return None
    score = costs.get(sample.path)
    return {
        "thumbnail": thumbnail_of(sample.path, _SIDE),
        "alt": f"{sample.prompt}, step {sample.step}",
        "score": score,
        "covered": score is None or score.band != "safe",
    }
