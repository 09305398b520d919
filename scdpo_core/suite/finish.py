"""The end of an evaluation: the report, as soon as every share of the work is done."""

from __future__ import annotations

from ..io.files import write_json, write_text
from ..run_store.file_lock import exclusive
from .board import write_board
from .collect import collect, missing
from .folder import FIGURES, Table
from .judging import Opinion, table_name
from .page import render, summary
from .run import Evaluation, Judged, Progress

_LOCK = "report.lock"


def finish(evaluation: Evaluation, judged: Judged, device: str, progress: Progress) -> str | None:
    """Write report.html, report.json and the sheet for hosts.

    Args:
        evaluation: whose work is done, or a share of it.
        judged: by whom.
        device: where an image encoder runs.
        progress: see `run.Progress`; may raise to end the work.

    Returns:
        What a terminal shows; None while images are missing that other shares draw or judge.

    Raises:
        ScdpoError: an image or an encoder cannot be read.
        OSError: the report cannot be written.
    """
    folder = evaluation.folder
    if missing(evaluation, judged):
        return None
    with exclusive(folder.path / _LOCK):
        report = collect(evaluation, judged, device, lambda done, total: progress("measuring", done, total))
        opinions = Table(folder, table_name(report.main.judge.id), Opinion, "report").rows
        text = summary(report)
        write_json(folder.path / FIGURES, {**report.to_json(), "summary": text})
        write_board(evaluation, opinions)
        write_text(folder.report, render(report, evaluation, opinions))
    return text
