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
from ..run_store.stop_request import StopRequest
from ..runs.log import Reporter, StopAskedError
from ..training.checks import load_options, resolve_device, resolve_dtype
from ..types import Problem, ScdpoError
from .contact_sheet import write_sheet
from .job import BuildJob, identity
from .requests import Wanted, benign, harmful, read_all
from .rules import NO_RULES, SHIPPED, read_rules
from .run import Builder, groups_of, rows_of
from .store import FOLDER, Row, Store
from .table import write_tables

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Asked:
    """What a job asks for, read from its files.

    Attributes:
        harmful: images of harmful prompts.
        benign: images of harmless prompts.
        benign_prompts: harmless prompts, whether images are made of them or not.
    """

    harmful: Sequence[Wanted]
    benign: Sequence[Wanted]
    benign_prompts: Sequence[str]


@dataclass(frozen=True)
class Outcome:
    """How building ended.

    Attributes:
        stopped: whether somebody asked for it.
        rows: what became of every image; None while other processes are at work.
        sheet: the contact sheet; None without rows.
    """

    stopped: bool
    rows: Sequence[Row] | None = None
    sheet: Path | None = None


def join(job: BuildJob) -> BuildJob:
    """Return the job of this rank under accelerate or torchrun; unchanged without them."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return job if count == 1 else replace(job, rank=int(os.environ.get("RANK", "0")), processes=count)


def read(job: BuildJob, notice: Callable[[Problem], None]) -> Asked:
    """Read everything that a job names.

    Args:
        job: checked.
        notice: is told what is odd but stops nothing.

    Raises:
        ScdpoError: a file cannot be used.
    """
    words = read_rules(job.rules or SHIPPED) if job.use_rules else NO_RULES
    bad, good = (
        _first(read_all(paths, job.column, notice), job.limit) if paths else []
        for paths in (job.prompts, job.benign)
    )
    asked = harmful(bad, words, job.category, job.per_prompt, job.seed)
    bare = sum(not one.safe_prompt for one in asked)
    if bare and job.way != "best-of":
        what = {
            "same-seed": "are left out: this way needs one",
            "inpaint": "have their region filled from what surrounds it",
            "edit": "are drawn on under the empty prompt",
        }[job.way]
        notice(
            Problem(job.prompts[0], f"{bare} of {len(asked)} images have no safe prompt and {what}.", False)
        )
    if job.way == "same-seed" and bare == len(asked) and not good:
        raise ScdpoError(
            "No prompt has a safe prompt, which --way same-seed needs. Add a column safe_prompt, give rules "
            "with --rules, or use --way inpaint."
        )
    made = benign(good, len(asked), job.seed) if job.benign_images else []
    return Asked(asked, made, [row.prompt for row in good])


def build(
    job: BuildJob,
    asked: Asked,
    *,
    progress: Progress,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Outcome:
    """Generate, score and write the pairs; continue where an earlier process ended.

    Args:
        job: checked.
        asked: what `read` made of it.
        progress: is told what is done, how much of it, of how much.
        should_stop: asked before every step of the denoiser.
        say: shows a sentence.

    Raises:
        ScdpoError: the base or the scorer cannot be loaded, another process is at work in the folder, or it
            was begun with other settings.
        OSError: a file cannot be written.
    """
    # Each process logs in a folder of its own; a file 'stop' in the preference folder asks all of them.
    alone = job.processes == 1
    log = job.output if alone else job.output / FOLDER / f"shard-{job.rank + 1}-of-{job.processes}"
    stop = StopRequest(RunFolder(job.output), True, should_stop)
    outcome = Outcome(stopped=True)
    reporter = Reporter(log, "pairs")
    with reporter.last_words():
        if alone:
            stop.clear_stale()
        outcome = _build(job, asked, reporter, stop, progress, say)
    return outcome


def _build(
    job: BuildJob,
    asked: Asked,
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
    total = [*asked.harmful, *asked.benign]
    if not total:
        raise ScdpoError(
            "There is nothing to generate: the prompts give no pair. Give --prompts or --benign."
        )
    about = {"model": model.denoiser_id(), "encoder": model.encoder_id}
    facts = identity(job, total, about, provenance(scorer))
    store = Store(job.output)
    store.begin(facts)
    if asked.benign_prompts and job.rank == 0:
        write_benign_prompts(job.output, asked.benign_prompts)
    reporter.started(len(total), len(total), str(device))

    def told(done: int, count: int) -> None:
        if stop.asked():
            raise StopAskedError
        progress("pairs", done, count)
        reporter.progress("sample", done, count)

    groups = groups_of(job, asked.harmful, asked.benign)
    Builder(job, model, scorer, store).run(groups, told)
    rows = rows_of(store, groups)
    if rows is None:
        say("This share is done. The process that ends last writes the contact sheet.")
        return Outcome(False)
    shown = {"base": model_name(job.model.base), **facts}
    write_tables(job.output, rows, shown)
    sheet = write_sheet(job.output, rows, shown)
    if job.processes == 1:
        # Others may still look at what is done.
        store.clean()
    reporter.reported(len(total), sheet)
    return Outcome(False, rows, sheet)


def _device(name: str) -> torch.device:
    """Return the device of this process; each process that accelerate launched has a GPU of its own."""
    device = resolve_device(name)
    local = os.environ.get("LOCAL_RANK")
    if device.type == "cuda" and device.index is None and local is not None:
        return torch.device("cuda", int(local))
    return device


def _first(rows: Sequence[EvalPrompt], limit: int) -> Sequence[EvalPrompt]:
    return rows[:limit] if limit else rows
