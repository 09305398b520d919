"""Training curves as an image, from the events of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from ..io.files import atomic_path
from ..reports.curves import FEWEST_FOR_A_TREND, known_curves, trend
from ..reports.metrics import CHARTS, METRICS
from ..run_store.events import Progress, Record, Validated


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
        OSError: the image cannot be written.
    """
    curves = known_curves(series(records))
    if "loss" not in curves:
        return False
    # Not pyplot: it keeps global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [chart for chart in CHARTS if any(curves.get(name) for name in chart.metrics)]
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(4 * columns, 3.5 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for chart, panel in zip(shown, panels, strict=False):
        panel.set_title(chart.title, fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.grid(alpha=0.3)
        if chart.neutral is not None:
            panel.axhline(chart.neutral, color="black", linewidth=0.8, linestyle=":")
        shares = [name for name in chart.metrics if curves.get(name)]
        for number, name in enumerate(shares):
            points = trend(curves[name])
            if len(points) >= FEWEST_FOR_A_TREND:
                panel.plot(*zip(*curves[name], strict=True), color=f"C{number}", linewidth=0.8, alpha=0.35)
            if points:
                panel.plot(*zip(*points, strict=True), color=f"C{number}", label=METRICS[name].short)
        if len(shares) > 1:
            panel.legend(fontsize=8)
    for panel in panels:
        panel.set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return True
