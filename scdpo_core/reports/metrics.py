"""The one table of the phases, states and metrics of a run, and of which metrics share a chart."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass

PHASES: Mapping[str, str] = {
    "start": "starting the trainer",
    "check": "checking the images",
    "score": "scoring the images",
    "load": "loading the model",
    "cache": "encoding the images",
    "base_images": "generating everyday images with the base model",
    "reference": "measuring the base model",
    "sample": "generating samples",
    "train": "training",
}
"""What is being done, by the `phase` of an event."""

STATES: Mapping[str, str] = {
    "queued": "is waiting in the queue",
    "running": "is running",
    "stopping": "is saving its work and will stop",
    "finished": "is finished",
    "failed": "has failed",
    "stopped": "was stopped and can be resumed",
    "interrupted": "was interrupted and can be resumed",
}
"""How a run stands, by its state."""


@dataclass(frozen=True)
class Metric:
    """A figure of a training run.

    Attributes:
        title: of a separate chart.
        short: beside others, in a line or a legend.
        neutral: the value before training, or None.
    """

    title: str
    short: str
    neutral: float | None = None


METRICS: Mapping[str, Metric] = {
    "loss": Metric("Loss that is minimised", "loss"),
    "redirect": Metric("Redirect: harmful prompts, error to the chosen image", "redirect"),
    "distil": Metric("Distil: harmful prompts, distance to the safe prompt's answer", "distil"),
    "esd": Metric("ESD: harmful prompts, distance to the answer pushed away", "esd"),
    "gem": Metric("GEM: harmful prompts, nearer to the safe answer", "gem"),
    "keep": Metric("Keep: benign pairs, distance to the base model", "keep", 0.0),
    "keep_empty": Metric("Keep: empty prompt, distance to the base model", "keep empty", 0.0),
    "keep_text": Metric("Keep: everyday prompts, distance to the base model", "keep text", 0.0),
    "preference_loss": Metric("Preference loss (0.693 at the start)", "preference", math.log(2)),
    "u": Metric("Preference u (above 0: chosen preferred)", "u", 0.0),
    "implicit_accuracy": Metric("Prefers the chosen image, share", "accuracy", 0.5),
    "held_out_accuracy": Metric("Prefers the chosen image, held-out pairs", "accuracy, held out", 0.5),
    "winner_gap": Metric("Error on chosen images (below 0: learnt)", "chosen gap", 0.0),
    "loser_gap": Metric("Error on rejected images (above 0: unlearnt)", "rejected gap", 0.0),
    "held_out_winner_gap": Metric("Error on chosen images, held-out pairs", "chosen gap, held out", 0.0),
    "held_out_loser_gap": Metric("Error on rejected images, held-out pairs", "rejected gap, held out", 0.0),
    "dfm_spread": Metric("Focus on difficult pairs (spread of DFM weights)", "dfm", 0.0),
    "margin": Metric("Margin by which the chosen image must be preferred", "margin", 0.0),
    "prior": Metric("DUO's prior: answer to pure noise, distance to the base model", "prior", 0.0),
    "rejected_cost": Metric("Mean cost of the rejected images", "cost of rejected", 0.0),
}
"""Every figure that is shown to people, the most telling first."""

HARM_METRICS = ("redirect", "distil", "esd", "gem")
KEEP_METRICS = ("keep", "keep_empty", "keep_text")
TERM_METRICS = (*HARM_METRICS, *KEEP_METRICS)

OPTIONAL_METRICS = frozenset({"dfm_spread", "margin"})
"""Figures that every objective over pairs reports, and that stay 0 where it has no such part."""


@dataclass(frozen=True)
class ChartGroup:
    """Figures that share one chart.

    Attributes:
        title: of the chart.
        metrics: names in `METRICS`; those that a run lacks are left out.
        neutral: level of a dotted line, or None.
        neutral_title: caption of that level.
        detail: whether only full reports show it.
    """

    title: str
    metrics: tuple[str, ...]
    neutral: float | None = None
    neutral_title: str = ""
    detail: bool = False


CHARTS: tuple[ChartGroup, ...] = (
    ChartGroup("Loss that is minimised", ("loss",)),
    # Keep is hundreds of times smaller: in one chart with the others it would be a flat line.
    ChartGroup("Harmful prompts: distance to the aim", HARM_METRICS),
    ChartGroup("Keep: distance to the base model", KEEP_METRICS, 0.0, "base model"),
    ChartGroup("Preference loss (0.693 at the start)", ("preference_loss",), math.log(2), "nothing learnt"),
    ChartGroup("Preference u (above 0: chosen preferred)", ("u",), 0.0, "base model", detail=True),
    ChartGroup(
        "Prefers the chosen image, share",
        ("implicit_accuracy", "held_out_accuracy"),
        0.5,
        "chance",
        detail=True,
    ),
    ChartGroup(
        "Error against the base model (below 0: learnt)",
        ("winner_gap", "loser_gap", "held_out_winner_gap", "held_out_loser_gap"),
        0.0,
        "base model",
    ),
    ChartGroup("Focus on difficult pairs (spread of DFM weights)", ("dfm_spread",), detail=True),
    ChartGroup("Margin by which the chosen must be preferred", ("margin",), detail=True),
    ChartGroup("DUO's prior: distance to the base model", ("prior",), detail=True),
)
"""The charts of a run, in order; a chart without any figure is left out."""


def charts_of(curves: Container[str], *, detail: bool = False) -> list[ChartGroup]:
    """Return the charts that have at least one of these curves, in order.

    Args:
        curves: names of metrics.
        detail: whether the charts of full reports count too.
    """
    return [
        group
        for group in CHARTS
        if (detail or not group.detail) and any(name in curves for name in group.metrics)
    ]
