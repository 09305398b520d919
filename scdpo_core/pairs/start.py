"""A job for build_pairs.py as the doors write it: checks that need no model, and the run folder's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..cost.scorers import names_a_scorer
from ..io.files import write_text
from ..io.printable import not_unicode
from ..run_store import folder as names
from ..types import ScdpoError
from .store import FOLDER

if TYPE_CHECKING:
    from .job import WayName

WAY_TITLES: Mapping[str, WayName] = {
    "redraw only the harmful part": "inpaint",
    "draw the safe prompt from the same noise": "same-seed",
    "edit the harmful image, more with each attempt": "edit",
    "draw several images and choose the safest": "best-of",
}
"""What the doors call the ways to the chosen image."""
MOST_ATTEMPTS, MOST_PER_PROMPT = 64, 1000
_INPUTS = Path(FOLDER, "inputs")


@dataclass(frozen=True)
class PairsJob:
    """Pairs to build. The run folder is the preference folder.

    Attributes:
        output: the folder in which the run folder is made.
        name: of the run folder.
        base: as `jobs.LoraJob.base`.
        prompts: files of harmful prompts, or folders of images that carry them.
        benign: the same, of harmless prompts.
        typed: harmful prompts, one a line.
        way: to the chosen image, see `job.WAYS`.
        scorer: as `BuildJob.scorer`.
        per_prompt: images of each harmful prompt.
        attempts: at each chosen image, at most.
        limit: prompts of each kind at most; 0 for all.
    """

    output: Path
    name: str
    base: str
    prompts: tuple[Path, ...] = ()
    benign: tuple[Path, ...] = ()
    typed: str = ""
    way: WayName = "inpaint"
    scorer: str = "embedded"
    per_prompt: int = 1
    attempts: int = 4
    limit: int = 0

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.output.expanduser().absolute() / self.name


def problems(job: PairsJob) -> Iterator[str]:
    """Yield what is wrong with a job, a sentence each; loads no model."""
    if wrong := names.name_problem(job.name):
        yield wrong
    elif job.folder.exists():
        yield f"There is a folder '{job.name}' already. Resume it, or choose another name."
    if not job.base.strip():
        yield "Choose the model that draws."
    if not (job.prompts or job.benign or job.typed.strip()):
        yield "Give prompts: name a prompt file, drop one into the field, or write prompts, one per line."
    for path in (*job.prompts, *job.benign):
        if not path.exists():
            yield f"There is no prompt file or folder {path}."
    for text in (job.base, job.typed, *map(str, (*job.prompts, *job.benign, job.output))):
        if wrong := not_unicode(text):
            yield f"{wrong} Change it."
    if job.way not in WAY_TITLES.values():
        yield f"There is no way '{job.way[:80]}'. Choose one of: {', '.join(WAY_TITLES.values())}."
    if not names_a_scorer(job.scorer):
        yield f"There is no cost model '{job.scorer[:300]}'."
    for title, value, low, high in (
        ("Attempts", job.attempts, 2 if job.way == "best-of" else 1, MOST_ATTEMPTS),
        ("Images per prompt", job.per_prompt, 1, MOST_PER_PROMPT),
        ("The limit of prompts", job.limit, 0, 10_000_000),
    ):
        if not low <= value <= high:
            yield f"{title} must lie between {low} and {high}, not {value}."


def write_pairs_job(job: PairsJob) -> Path:
    """Write a job into its run folder, with copies of its prompt files, for `Queue.add`.

    Raises:
        ScdpoError: what is wrong with it, one thing a line.
    """
    if wrong := list(problems(job)):
        raise ScdpoError("\n".join(wrong))
    import tomli_w

    from ..families.source import is_hub_id
    from ..family_info import MICRO

    base = job.base.strip()
    inputs = job.folder / _INPUTS
    prompts = [*names.copy_inputs(inputs, job.prompts)]
    if job.typed.strip():
        prompts.append(inputs / "typed.txt")
        write_text(prompts[-1], job.typed.strip() + "\n")
    settings = {
        "base": base if base == MICRO or is_hub_id(base) else str(Path(base).expanduser().absolute()),
        "prompts": [str(path) for path in prompts],
        "benign": [str(path) for path in names.copy_inputs(inputs, job.benign)],
        "output": str(job.folder),
        "way": job.way,
        "scorer": job.scorer,
        "per_prompt": job.per_prompt,
        "attempts": job.attempts,
        **({"limit": job.limit} if job.limit else {}),
    }
    write_text(job.folder / names.JOB, tomli_w.dumps(settings))
    names.write_kind(job.folder, "pairs")
    return job.folder
