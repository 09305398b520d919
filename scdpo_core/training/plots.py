"""Training curves as an image, from the events of a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..io.files import atomic_path
from ..reports.curves import charted_curves
from ..reports.raster_charts import training_curves
from ..run_store.events import Progress, Record, Validated

_SIZE = (1200, 340)  # pixels, of a row of charts


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
    curves = series(records)
    if "loss" not in charted_curves(curves):
        return False
    with atomic_path(path) as temporary:
        training_curves(curves, 0, _SIZE, detail=True).save(temporary, "PNG")
    return True
