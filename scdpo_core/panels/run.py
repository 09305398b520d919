"""A training run while it goes on and afterwards: bar, curves, sample images with costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ..reports.metrics import PHASES
from ..reports.wording import what_terms_did
from ..run_store.events import Sample
from ..run_store.state import State
from ..runs.follow import RunView
from ..types import CostScore
from .curves import charts
from .elements import cost, listed, notice, veiled, wrapped

_STATES: Mapping[State, str] = {
    "queued": "waits for its turn",
    "running": "is running",
    "stopping": "saves its work and ends",
    "finished": "is finished",
    "failed": "failed",
    "stopped": "is stopped; resume goes on with it",
    "interrupted": "was interrupted; resume goes on with it",
}
_MOST_COLUMNS = 5


def status(view: RunView, now: float | None = None, *, unit: str = "steps") -> str:
    """How a run stands: its bar, what went wrong, what it left.

    Args:
        view: of the run.
        now: seconds since 1970, by default the clock's.
        unit: what its total counts.
    """
    head = f"<h3>{escape(view.run)} <small>{_STATES[view.state]}</small></h3>"
    bad = view.state in ("failed", "interrupted")
    warnings = f"<h4>Worth knowing</h4>{listed(view.warnings)}" if view.warnings else ""
    said = notice(view.message, "bad" if bad else "info")
    return wrapped(f"{head}{_bar(view, now, unit)}{_memory(view)}{said}{_result(view)}{warnings}", "run")


def curves(view: RunView) -> str:
    """Its curves, and what each term did in words; '' while there are none."""
    drawn = charts(view.curves, view.steps)
    return wrapped(drawn + _terms(view), "run") if drawn else ""


def samples(view: RunView, costs: Mapping[str, CostScore]) -> str:
    """Its sample images; '' while there are none.

    Args:
        view: of the run.
        costs: of sample images, by path; those without one are shown without.
    """
    drawn = _samples(view.samples, costs)
    return wrapped(drawn, "run") if drawn else ""


def waiting(lines: Sequence[str]) -> str:
    """The queue, one run a line; '' if nobody waits."""
    return wrapped(f"<h4>Waiting</h4>{listed(lines)}", "queue") if lines else ""


def _bar(view: RunView, now: float | None, unit: str) -> str:
    if view.state not in ("running", "stopping"):
        if not view.steps:
            return ""
        return f'<p class="soft">{view.trained or view.step:,} of {view.steps:,} {unit}</p>'
    share = view.step / view.total if view.total else 0.0
    amount = f"{view.step:,} of {view.total:,}" if view.total else ""
    speed = (
        f", {view.steps_per_second:.2g} steps a second"
        if view.steps_per_second and view.phase == "train"
        else ""
    )
    left = view.seconds_left(now)
    ends = f", {duration(left)} left" if left is not None else ""
    words = f"{PHASES[view.phase].capitalize()}{f': {amount}' if amount else ''}{speed}{ends}"
    return (
        f'<div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{share * 100:.0f}" aria-valuetext="{escape(words, quote=True)}">'
        f'<span style="width:{share * 100:.1f}%"></span></div><p class="soft">{escape(words)}</p>'
    )


def _memory(view: RunView) -> str:
    if view.memory is None or view.state not in ("running", "stopping"):
        return ""
    there = "" if view.available is None else f"; {view.available / 2**30:.1f} GB are there for it"
    return f'<p class="soft">It needs about {view.memory / 2**30:.1f} GB of memory{there}.</p>'


def duration(seconds: float) -> str:
    """'40 seconds', '7 minutes', '2 h 5 min'."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _terms(view: RunView) -> str:
    told = what_terms_did(view.curves)
    return f"<h4>What each term did</h4>{listed(told)}" if told else ""


def _result(view: RunView) -> str:
    files = [f"The LoRA: {view.result}"] if view.result is not None else []
    files += [f"{what.capitalize()}: {path}" for what, path in view.files.items() if what != "checkpoint"]
    return listed(files)


def _samples(samples: Sequence[Sample], costs: Mapping[str, CostScore]) -> str:
    if not samples:
        return ""
    steps = sorted({sample.step for sample in samples})
    if len(steps) > _MOST_COLUMNS:
        steps = [steps[0], *steps[-_MOST_COLUMNS + 1 :]]
    at = {(sample.prompt, sample.seed, sample.step): sample for sample in samples}
    rows = dict.fromkeys((sample.prompt, sample.seed) for sample in samples)
    titles = "".join(
        f'<th scope="col">{"before" if step == 0 else f"after {step:,} steps"}</th>' for step in steps
    )
    body = "".join(
        f'<tr><th scope="row">{escape(prompt)}</th>'
        + "".join(_sample(at.get((prompt, seed, step)), costs) for step in steps)
        + "</tr>"
        for prompt, seed in rows
    )
    return (
        "<h4>Sample images, always from the same noise</h4>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Sample images"><table>'
        f"<thead><tr><td></td>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _sample(sample: Sample | None, costs: Mapping[str, CostScore]) -> str:
    if sample is None:
        return "<td></td>"
    score = costs.get(sample.path)
    image = veiled(
        Path(sample.path),
        f"{sample.prompt}, step {sample.step}",
        192,
        veil=score is None or score.band != "safe",
    )
    said = "" if score is None else f"<div>{cost(score.value, score.band)}</div>"
    return f"<td>{image}{said}</td>"
