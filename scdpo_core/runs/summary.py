"""Describe a run in words, for every door."""

from __future__ import annotations

from ..reports.metrics import METRICS, PHASES, STATES
from ..reports.terms import what_terms_did
from ..reports.wording import duration
from .follow import RunView

_FIGURES = ("loss", "redirect", "keep", "implicit_accuracy", "winner_gap", "loser_gap", "rejected_cost")


def now(view: RunView) -> str:
    """Say what a run is doing, in a few short lines."""
    if view.state not in ("running", "stopping"):
        return f"{view.run} {STATES[view.state]}."
    title = PHASES.get(view.phase, view.phase)
    doing = f"{title}: step {view.step} of {view.total}" if view.phase == "train" else title
    if view.phase != "train" and view.total > 1:
        doing = f"{title}: {view.step} of {view.total}"
    if view.state == "stopping":
        doing = f"{doing}; saving, then stopping"
    left = view.seconds_left()
    lines = [f"{view.run}: {doing}{'' if left is None else f', {duration(left)} left'}"]
    # Nodes and panes are narrow.
    figures = latest(view).split(", ")
    lines += [", ".join(figures[k : k + 2]) for k in range(0, len(figures), 2) if figures[0]]
    if view.warnings:
        lines.append(f"Note: {view.warnings[-1]}")
    return "\n".join(lines)


def report(view: RunView) -> str:
    """Say how a run went, one fact a line."""
    lines = [f"{view.run} {STATES[view.state]}."]
    if view.trained:
        of = f" of {view.steps}" if view.steps else ""
        lines.append(f"Steps: {view.trained}{of}, from {view.pairs} examples, on {view.device}.")
    if figures := latest(view):
        lines.append(f"At the end: {figures}.")
    lines += what_terms_did(view.curves)
    if view.message:
        lines.append(view.message)
    lines += [f"Note: {warning}" for warning in view.warnings]
    lines += [f"{what.capitalize()}: {path}" for what, path in view.files.items() if what != "checkpoint"]
    return "\n".join(lines)


def latest(view: RunView) -> str:
    """Format the latest figures of a run: 'loss 0.61, chosen gap -0.003'; '' before there are any."""
    curves = ((METRICS[name].short, view.curves.get(name)) for name in _FIGURES)
    return ", ".join(f"{name} {curve[-1][1]:.3g}" for name, curve in curves if curve)
