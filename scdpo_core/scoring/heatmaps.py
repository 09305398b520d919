"""Heatmaps of existing files: an overlay and a mask for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL.PngImagePlugin import PngInfo

from ..cost.attribution import Method, explain
from ..cost.protocol import Scorer
from ..io.files import atomic_path
from ..io.image_frames import open_frame
from ..io.images import ImageError
from ..types import Problem
from .table import Row

_LONGEST = 200  # bytes; names may have 255, with '-digest.heatmap.png' behind this


def name_of(row: Row) -> str:
    """Return the stem of a file's heatmap and mask: the image's stem and its content's hash."""
    stem = os.fsencode(Path(row.path).stem)[:_LONGEST]
    return f"{stem.decode('utf-8', 'replace' if len(stem) < _LONGEST else 'ignore')}-{(row.sha256 or '')[:8]}"


def write_heatmaps(
    rows: Sequence[Row],
    scorer: Scorer,
    folder: Path,
    method: Method = "occlusion",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Problem]:
    """Write 'name-<hash>.heatmap.png' and 'name-<hash>.mask.png' for each scored file.

    Of a joint scorer, the text chunk `objection` names the network that objects most.

    Args:
        rows: with costs; of an animation the frame that was costliest is explained.
        scorer: the one that scored.
        folder: made if missing.
        method: as `cost.attribution.explain`.
        progress: called with the number done and the total.

    Returns:
        One problem for each file that could not be opened any more.

    Raises:
        OSError: the folder cannot be written to.
        ScorerError: the scorer does not have this method.
    """
    problems = []
    for done, row in enumerate(rows, 1):
        path = Path(row.path)
        try:
            image = open_frame(path, row.frame)
        except (ImageError, OSError) as error:
            what = error.what if isinstance(error, ImageError) else "the image cannot be read any more."
            problems.append(Problem(path, what))
        else:
            explanation = explain(scorer, image, method=method)
            stem = name_of(row)
            metadata = PngInfo()
            if explanation.objection:
                metadata.add_text("objection", explanation.objection)
            for suffix, output in (("heatmap", explanation.overlay(image)), ("mask", explanation.mask())):
                with atomic_path(folder / f"{stem}.{suffix}.png") as temporary:
                    output.save(temporary, "PNG", pnginfo=metadata)
        progress(done, len(rows))
    return problems
