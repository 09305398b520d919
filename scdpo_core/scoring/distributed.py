"""Run a job in one process, or in several that accelerate launched to share a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from ..cost.protocol import Scorer
from .job import JobResult, Progress, ScoreJob, explain, finish, gather, score_files


@dataclass(frozen=True)
class Member:
    """One process of a job.

    Attributes:
        job: with its share of the work.
        device: where its network runs.
        wait_for_all: returns once every process has called it.
    """

    job: ScoreJob
    device: str
    wait_for_all: Callable[[], None] = lambda: None

    @property
    def leads(self) -> bool:
        """Whether this process prints, and does what must be done once."""
        return self.job.rank == 0


def join(job: ScoreJob, device: str) -> Member:
    """Return this process as a member of the job: the only one, unless accelerate launched several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Member(job, device)
    from accelerate import PartialState

    # A process that is done early may wait for days; the library's half an hour would end the run.
    state = PartialState(cpu=device == "cpu", timeout=timedelta(days=30))
    return Member(
        replace(job, rank=state.process_index, processes=state.num_processes),
        # Each process has its own GPU.
        str(state.device) if device == "cuda" else device,
        state.wait_for_everyone,
    )


def run_job(
    member: Member, scorer: Scorer, progress: Progress = lambda what, done, total: None
) -> JobResult | None:
    """Score this process's share; the leading one then finishes the job.

    Args:
        member: this process; its job is checked.
        scorer: what scores, on its device.
        progress: called with the phase, the number done and the total.

    Returns:
        The result of the whole job; None for all processes but the leading one.

    Raises:
        ScdpoError: as `score_files`, `gather` and `finish`.
        OSError: a table or a folder cannot be written.
    """
    job = member.job
    result = score_files(job, scorer, progress)
    member.wait_for_all()
    if not member.leads:
        return None
    if job.processes > 1:
        result = gather(job)
    if job.heatmaps is not None:
        result = explain(job, result, scorer, progress)
    return finish(job, result, progress)
