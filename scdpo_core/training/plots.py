"""Training curves as a picture, from the events of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from ..files import atomic_path
from .events import Progress, Record, Validated

# Title, metrics with their labels, and the value that stands for "nothing learnt yet".
_PANELS: tuple[tuple[str, dict[str, str], float | None], ...] = (
    ("Preference loss (log 2 at the start)", {"preference_loss": "preference loss"}, math.log(2)),
    ("Preference u (above 0: chosen preferred)", {"u": "u"}, 0.0),
    (
        "Implicit accuracy (share of u > 0)",
        {"implicit_accuracy": "trained", "held_out_accuracy": "held out"},
        0.5,
    ),
    (
        "Error against the base model (below 0: learnt)",
        {
            "winner_gap": "chosen pictures",
            "loser_gap": "rejected pictures",
            "held_out_winner_gap": "chosen, held out",
            "held_out_loser_gap": "rejected, held out",
        },
        0.0,
    ),
    ("Loss that is minimised", {"loss": "loss"}, None),
    ("Focus on difficult pairs (spread of DFM weights)", {"dfm_spread": "spread"}, None),
)


def series(records: Iterable[Record]) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every metric, in the order of steps; those of held-out pairs as held_out_NAME.

    Where a run was interrupted and some steps were made twice, the later figure counts.
    """
    values: dict[str, dict[int, float]] = {}
    for record in records:
        event = record.event
        if isinstance(event, Progress) and event.phase == "train":
            prefix = ""
        elif isinstance(event, Validated):
            prefix = "held_out_"
        else:
            continue
        for name, value in event.metrics.items():
            if value is not None:
                values.setdefault(f"{prefix}{name}", {})[event.step] = value
    return {name: sorted(points.items()) for name, points in values.items()}


def draw_curves(records: Iterable[Record], path: Path) -> bool:
    """Write the curves of a run as PNG; False if there is nothing to draw yet.

    Raises:
        OSError: the picture cannot be written.
    """
    curves = series(records)
    if "loss" not in curves:
        return False
    # Not pyplot: it keeps global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (title, names, neutral) in zip(figure.subplots(2, 3).flat, _PANELS, strict=True):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.grid(alpha=0.3)
        if neutral is not None:
            panel.axhline(neutral, color="black", linewidth=0.8, linestyle=":")
        for name, label in names.items():
            if points := curves.get(name):
                panel.plot([step for step, _ in points], [value for _, value in points], label=label)
        if len(panel.lines) > 1 + (neutral is not None):
            panel.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return True
