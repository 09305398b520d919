"""The job of building pairs, and its checks before a model is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ..config.settings import ModelSettings
from ..cost.scorers import names_a_scorer, offered_scorers
from ..families import family_of
from ..preferences.build import Rule, check_rule
from ..preferences.writer import check_category
from ..training.checks import load_options, resolve_device, resolve_dtype
from ..types import ScdpoError
from .requests import PairSpec

WayName = Literal["inpaint", "same-seed", "edit", "best-of"]
WAYS: tuple[WayName, ...] = get_args(WayName)
"""Ways to the chosen image, see `strategies.py`."""

MOST_ATTEMPTS = 64
HASTE = 0.15
"""Share of the denoising steps for the rejected image of a benign pair, without guidance."""


@dataclass(frozen=True)
class Drawing:
    """How images are drawn.

    Attributes:
        steps: of the denoiser.
        guidance: classifier-free guidance.
        size: (width, height) in pixels; None for the model's own.
    """

    steps: int
    guidance: float
    size: tuple[int, int] | None = None

    @property
    def hasty(self) -> Drawing:
        """A hasty version: few steps and no guidance give the right subject, badly drawn."""
        return dataclasses.replace(self, steps=max(1, round(HASTE * self.steps)), guidance=1.0)


@dataclass(frozen=True)
class BuildJob:
    """Pairs to be built.

    Attributes:
        output: preference folder.
        prompts: files of harmful prompts, or folders of images that carry them.
        model: the base model that draws.
        drawing: how images are generated.
        scorer: scores each image, see `cost.scorers.load_scorer`.
        way: to the chosen image.
        benign: files of harmless prompts.
        benign_images: whether harmless prompts become pairs too; if not, they are only listed for training.
        rules: file of safe words; None for the shipped one.
        use_rules: whether safe prompts come from rules where a file has none.
        rule: what makes two images a pair.
        gap: least difference of the costs, log-odds.
        attempts: at the chosen image, at most.
        per_prompt: images of each harmful prompt.
        category: of prompts for which neither file nor rule names one.
        column: of the prompts in a table.
        limit: prompts of each kind at most; 0 for all.
        batch: images drawn together.
        seed: of the first image.
        rank: number of this process among those that share the work, from 0.
        processes: their number.
    """

    output: Path
    prompts: tuple[Path, ...]
    model: ModelSettings = field(default_factory=ModelSettings)
    drawing: Drawing = field(default_factory=lambda: Drawing(20, 5.0))
    scorer: str = "embedded"
    way: WayName = "inpaint"
    benign: tuple[Path, ...] = ()
    benign_images: bool = True
    rules: Path | None = None
    use_rules: bool = True
    rule: Rule = "safe against harmful"
    gap: float = 1.0
    attempts: int = 4
    per_prompt: int = 1
    category: str = ""
    column: str | None = None
    limit: int = 0
    batch: int = 8
    seed: int = 0
    rank: int = 0
    processes: int = 1


def check(job: BuildJob) -> None:
    """Find what is wrong with a job before any work is done.

    Raises:
        ScdpoError: lists everything that is wrong, one sentence a line.
    """
    if wrong := list(_problems(job)):
        raise ScdpoError("\n".join(wrong))


def _problems(job: BuildJob) -> Iterator[str]:
    if not job.prompts and not job.benign:
        yield "Give prompts: --prompts FILE for harmful ones, --benign FILE for harmless ones."
    if job.way not in WAYS:
        yield f"There is no way '{job.way}'. Choose one of: {', '.join(WAYS)}."
    for name, value, low, high in (
        ("attempts", job.attempts, 1, MOST_ATTEMPTS),
        ("per-prompt", job.per_prompt, 1, 10_000),
        ("batch", job.batch, 1, 1024),
        ("steps", job.drawing.steps, 1, 1000),
        ("processes", job.processes, 1, 10_000),
    ):
        if not low <= value <= high:
            yield f"--{name} must be between {low} and {high}, not {value}."
    if job.way == "best-of" and job.attempts < 2:
        yield "--way best-of compares images of one prompt: give --attempts 2 or more."
    if not 0 <= job.rank < job.processes:
        yield f"--shard {job.rank + 1}/{job.processes} is not valid: write 1/4 for the first of four."
    if job.output.exists() and not job.output.is_dir():
        yield f"--output {job.output} is a file. Give a folder."
    if not names_a_scorer(job.scorer):
        names = ", ".join(sorted(offered_scorers()))
        yield f"There is no scorer and no cost model file '{job.scorer}'. The scorers are: {names}."
    try:
        check_category(job.category)
        check_rule(job.rule, safe_prompt=job.way != "best-of")
    except ScdpoError as error:
        yield str(error)
    yield from _model(job.model)


def _model(model: ModelSettings) -> Iterator[str]:
    try:
        for problem in family_of(model.family, model.base).check(model.base, load_options(model)):
            if problem.fatal:
                yield f"--base {model.base}: {problem.path}: {problem.what}"
        resolve_dtype(model.precision, resolve_device(model.device))
    except ScdpoError as error:
        yield str(error)


def identity(
    job: BuildJob, requests: Sequence[PairSpec], model: Mapping[str, str], scorer: str
) -> dict[str, str]:
    """Return everything that decides the pairs; another process continues only if it is equal.

    Args:
        job: the request.
        requests: the images to generate.
        model: hashes of the base model's weights, by name.
        scorer: id and hash.
    """
    rows = json.dumps([dataclasses.astuple(one) for one in requests])
    size = job.drawing.size
    return {
        **model,
        "scorer": scorer,
        "way": job.way,
        "rule": job.rule,
        "gap": f"{job.gap:g}",
        "attempts": str(job.attempts),
        "steps": str(job.drawing.steps),
        "guidance": f"{job.drawing.guidance:g}",
        "size": "the model's own" if size is None else f"{size[0]}x{size[1]}",
        "batch": str(job.batch),
        "benign images": str(job.benign_images),
        "prompts and seeds": hashlib.sha256(rows.encode()).hexdigest()[:12],
    }
