"""From settings to a preference folder with its tables and contact sheet; one process of perhaps several."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..cost.protocol import provenance
from ..cost.scorers import load_scorer
from ..families import family_of
from ..families.source import model_name
from ..io.prompt_files import EvalPrompt
from ..preferences.build import write_benign_prompts
from ..run_store.folder import RunFolder
from ..run_store.stop_request import StopAskedError, StopRequest
from ..runs.log import Reporter
from ..training.checks import load_options, resolve_device, resolve_dtype
from ..types import Problem, ScdpoError
from .contact_sheet import write_sheet
from .job import BuildJob, identity
from .requests import PairSpec, benign, harmful, read_all
from .rules import NO_RULES, SHIPPED, read_rules
from .run import Builder, groups_of, rows_of
from .store import FOLDER, Row, Store
from .table import write_tables

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Requests:
    """The requests of a job, read from its files.

    Attributes:
        harmful: images of harmful prompts.
        benign: images of harmless prompts.
        benign_prompts: harmless prompts, whether images are made of them or not.
    """

    harmful: Sequence[PairSpec]
    benign: Sequence[PairSpec]
    benign_prompts: Sequence[str]


@dataclass(frozen=True)
class Outcome:
    """How building ended.

    Attributes:
        stopped: whether a stop was requested.
        rows: the outcome of every image; None while other processes are working.
        sheet: the contact sheet; None without rows.
    """

    stopped: bool
    rows: Sequence[Row] | None = None
    sheet: Path | None = None


def join(job: BuildJob) -> BuildJob:
    """Return the job of this rank under accelerate or torchrun; unchanged without them."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return job if count == 1 else replace(job, rank=int(os.environ.get("RANK", "0")), processes=count)


def read(job: BuildJob, notice: Callable[[Problem], None]) -> Requests:
    """Read everything that a job names.

    Args:
        job: checked.
        notice: called with what is odd but stops nothing.

    Raises:
        ScdpoError: a file cannot be used.
    """
    words = read_rules(job.rules or SHIPPED) if job.use_rules else NO_RULES
    bad, good = (
        _first(read_all(paths, job.column, notice), job.limit) if paths else []
        for paths in (job.prompts, job.benign)
    )
    harmful_requests = harmful(bad, words, job.category, job.per_prompt, job.seed)
    without_safe_prompt = sum(not one.safe_prompt for one in harmful_requests)
    if without_safe_prompt and job.way != "best-of":
        what = {
            "same-seed": "are left out: this way needs one",
            "inpaint": "have their region filled to match its surroundings",
            "edit": "are drawn on under the empty prompt",
        }[job.way]
        notice(
            Problem(
                job.prompts[0],
                f"{without_safe_prompt} of {len(harmful_requests)} images have no safe prompt and {what}.",
                False,
            )
        )
    if job.way == "same-seed" and without_safe_prompt == len(harmful_requests) and not good:
        raise ScdpoError(
            "No prompt has a safe prompt, which --way same-seed needs. Add a column safe_prompt, give rules "
            "with --rules, or use --way inpaint."
        )
    benign_requests = benign(good, len(harmful_requests), job.seed) if job.benign_images else []
    return Requests(harmful_requests, benign_requests, [row.prompt for row in good])


def build(
    job: BuildJob,
    requests: Requests,
    *,
    progress: Progress,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Outcome:
    """Generate, score and write the pairs; continue where an earlier process ended.

    Args:
        job: checked.
        requests: as `read` returns.
        progress: called with the phase, the number done and the total.
        should_stop: asked before every step of the denoiser.
        say: shows a sentence.

    Raises:
        ScdpoError: the base or the scorer cannot be loaded, another process is working in the folder, or it
            was begun with other settings.
        OSError: a file cannot be written.
    """
    # Each process logs to its own folder; a file 'stop' in the preference folder stops all of them.
    alone = job.processes == 1
    log = job.output if alone else job.output / FOLDER / f"shard-{job.rank + 1}-of-{job.processes}"
    stop = StopRequest(RunFolder(job.output), True, should_stop)
    outcome = Outcome(stopped=True)
    reporter = Reporter(log, "pairs")
    with reporter.last_words():
        if alone:
            stop.clear_stale()
        outcome = _build(job, requests, reporter, stop, progress, say)
    return outcome


def _build(
    job: BuildJob,
    requests: Requests,
    reporter: Reporter,
    stop: StopRequest,
    progress: Progress,
    say: Callable[[str], None],
) -> Outcome:
    device = _device(job.model.device)
    scorer = load_scorer(job.scorer, str(device) if device.type == "cuda" else "cpu")
    overrides = job.model
    dtype = resolve_dtype(overrides.precision, device)
    model = family_of(overrides.family, overrides.base).load(
        overrides.base, device, dtype, load_options(overrides)
    )
    model.latent_shape(job.drawing.size)
    all_requests = [*requests.harmful, *requests.benign]
    if not all_requests:
        raise ScdpoError(
            "There is nothing to generate: the prompts give no pair. Give --prompts or --benign."
        )
    about = {"model": model.denoiser_id(), "encoder": model.encoder_id}
    facts = identity(job, all_requests, about, provenance(scorer))
    store = Store(job.output)
    store.begin(facts)
    if requests.benign_prompts and job.rank == 0:
        write_benign_prompts(job.output, requests.benign_prompts)
    reporter.started(len(all_requests), len(all_requests), str(device))

    def report(done: int, count: int) -> None:
        if stop.asked():
            raise StopAskedError
        progress("pairs", done, count)
        reporter.progress("sample", done, count)

    groups = groups_of(job, requests.harmful, requests.benign)
    Builder(job, model, scorer, store).run(groups, report)
    rows = rows_of(store, groups)
    if rows is None:
        say("This share is done. The last process to finish writes the contact sheet.")
        return Outcome(False)
    header = {"base": model_name(job.model.base), **facts}
    write_tables(job.output, rows, header)
    sheet = write_sheet(job.output, rows, header)
    if job.processes == 1:
        # Other processes may still read it.
        store.clean()
    reporter.reported(len(all_requests), sheet)
    return Outcome(False, rows, sheet)


def _device(name: str) -> torch.device:
    """Return the device of this process; each process that accelerate launched has its own GPU."""
    device = resolve_device(name)
    local = os.environ.get("LOCAL_RANK")
    if device.type == "cuda" and device.index is None and local is not None:
        return torch.device("cuda", int(local))
    return device


def _first(rows: Sequence[EvalPrompt], limit: int) -> Sequence[EvalPrompt]:
    return rows[:limit] if limit else rows
