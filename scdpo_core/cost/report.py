"""The report page of a trained cost model: figures, reliability, and images that look misfiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from ..io.files import write_text
from ..reports import html
from ..reports.charts import reliability
from ..reports.images import thumbnail_of
from .label_errors import Suspect
from .training import CostTrainingResult


def write_cost_report(
    path: Path,
    name: str,
    result: CostTrainingResult,
    suspects: Sequence[Suspect],
    files: Mapping[str, Path],
) -> None:
    """Write the page as one HTML file, atomically.

    Args:
        path: the .html file.
        name: of the cost model.
        result: of the training.
        suspects: the images that look misfiled.
        files: path of each image, by the SHA-256 of its file.

    Raises:
        OSError: the file cannot be written.
    """
    page = html.render(
        "cost_model.html",
        name=name,
        created=datetime.now().strftime("%Y-%m-%d %H:%M"),
        result=result,
        rows=[("overall", result.figures), *sorted(result.categories.items())],
        reliability=reliability(result.reliability),
        suspects=[
            (suspect, thumbnail_of(files[suspect.digest]), str(files[suspect.digest])) for suspect in suspects
        ],
    )
    write_text(path, page)
