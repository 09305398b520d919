"""What is asked of an import, and what can be found wrong with it before anything is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..preferences.writer import check_category
from ..types import ScdpoError
from .columns import TABLE_FORMATS
from .folders import Match
from .rows import PerPrompt

By = Literal["copy", "link"]
"""How images come into the preference folder."""

FORMATS: Mapping[str, str] = {
    "folders": "two folders, equal names: good/bad, w/l, win/lose, chosen/rejected, safe/unsafe",
    "suffixes": "one folder, names with suffixes: a_chosen.png and a_rejected.png, a_w.png and a_l.png",
    **{name: kind.about for name, kind in TABLE_FORMATS.items()},
    "ratings": "one image a row with a rating, such as images of A1111 or ComfyUI with ratings in a CSV",
    "simpletuner": "SimpleTuner's two data sets for Flow-DPO, from multidatabackend.json",
    "unpaired": "safe/ and unsafe/ without equal names; pairs are made of equal prompts, or by chance",
}
"""What can be imported."""

ALIASES: Mapping[str, str] = {
    "invoke": "labelled",
    "invoke-training": "labelled",
    "safetydpo": "labelled",
    "diffusers-dpo": "pickapic",
}
"""Other names for some of them."""


@dataclass(frozen=True)
class ImportJob:
    """An import.

    Attributes:
        output: preference folder to make, or to add to.
        source: file or folder; None where `chosen` and `rejected` are given.
        chosen: folder of preferred images.
        rejected: folder of the others.
        format: a name in `FORMATS` or `ALIASES`, or 'auto'.
        columns: column by meaning, see `columns.ROLES`.
        images: further folders that names of images may lead to.
        by: copies of the images, or links to them.
        per_prompt: which pairs are made of several images of one prompt.
        match: how images without a partner are paired.
        category: of pairs for which the source names none.
        prompt: of pairs for which neither the source nor an image states one.
        limit: pairs at most; 0 for all.
        seed: of pairing by chance.
        dry_run: whether to say what would be made, and write nothing.
    """

    output: Path
    source: Path | None = None
    chosen: Path | None = None
    rejected: Path | None = None
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    images: tuple[Path, ...] = ()
    by: By = "copy"
    per_prompt: PerPrompt = "best-worst"
    match: Match = "prompt"
    category: str = ""
    prompt: str = ""
    limit: int = 0
    seed: int = 0
    dry_run: bool = False

    @property
    def title(self) -> str:
        """The source's name, for the report."""
        return str(self.source if self.source is not None else f"{self.chosen} and {self.rejected}")

    @property
    def settings(self) -> dict[str, str]:
        """The settings that decide the pairs; an import continues only with the same ones."""
        return {
            "format": ALIASES.get(self.format, self.format),
            "columns": ", ".join(f"{role}={name}" for role, name in sorted(self.columns.items())),
            "images": ", ".join(str(folder.absolute()) for folder in self.images),
            "by": self.by,
            "per prompt": self.per_prompt,
            "match": f"{self.match} {self.seed}" if self.match == "random" else self.match,
            "category": self.category,
            "prompt": self.prompt,
        }


def check(job: ImportJob) -> None:
    """Find what is wrong with a job before any work is done.

    Raises:
        ScdpoError: lists everything that is wrong, one sentence a line.
    """
    if wrong := list(_problems(job)):
        raise ScdpoError("\n".join(wrong))


def _problems(job: ImportJob) -> Iterator[str]:
    if (job.chosen is None) != (job.rejected is None):
        yield "Give --chosen and --rejected together."
    if (job.source is None) == (job.chosen is None):
        yield "Give a source, or --chosen and --rejected, but not both."
    if job.format != "auto" and job.format not in FORMATS and job.format not in ALIASES:
        yield f"There is no format '{job.format}'. Choose one of: {', '.join([*FORMATS, *ALIASES])}."
    for folder in (job.chosen, job.rejected, *job.images):
        if folder is not None and not folder.is_dir():
            yield f"There is no folder {folder}."
    if job.source is not None and not job.source.exists():
        yield f"There is no file or folder {job.source}."
    if job.output.exists() and not job.output.is_dir():
        yield f"--output {job.output} is a file. Give a folder."
    if job.source is not None and job.output.absolute() == job.source.absolute():
        yield "--output is the source itself. Give another folder."
    elif job.source is not None and job.source.is_dir() and _lies_in(job.output, job.source):
        yield "--output lies inside the source, and would be read as a part of it. Give another folder."
    if job.limit < 0:
        yield f"--limit must be 0 or more, not {job.limit}."
    try:
        check_category(job.category)
    except ScdpoError as error:
        yield str(error)


def _lies_in(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
