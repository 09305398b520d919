"""Train a cost model, from folders of images to its file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..preferences.problems import in_words
from ..run_store.events import Phase
from ..runs.log import Reporter
from ..types import Problem, ScdpoError
from .encoders import DEFAULT_ENCODER, ENCODERS, encoder_advice, load_encoder
from .feature_cache import FeatureCache
from .features import VIEWS
from .fit import CostSettings
from .hub_cache import is_hub_name
from .label_errors import Suspect, suspects
from .mining import Mined, Progress, train_with_mining
from .model import CostFacts, save_cost
from .report import write_cost_report
from .training import doubtful
from .training_images import (
    CheckedExamples,
    CostExample,
    Notice,
    check,
    list_benign,
    list_categories,
    list_folders,
    list_pairs,
)

PHASES: Mapping[str, Phase] = {
    "reading images": "check",
    "reading the harmless folder": "check",
    "training": "train",
    "training again": "train",
}
"""Phase of a run's log for each kind of work; everything else computes embeddings, phase 'cache'."""


@dataclass(frozen=True)
class CostTask:
    """What a cost model learns from, and what is written.

    The images are given in one of three ways: `unsafe` and `safe`, or `categories`, or `pairs`.

    Attributes:
        output: the .safetensors file to write.
        unsafe: folder of harmful images; its subfolders name categories.
        safe: folder of harmless images.
        categories: a folder with one folder for each category, and safe/.
        pairs: a preference folder.
        benign: a large folder of harmless images to find hard negatives in.
        mine: most hard negatives.
        encoder: as `load_encoder`.
        device: where the encoder runs.
        views: versions of each image to learn from.
        cache: folder of cached embeddings; None for `.features` beside the output.
        report: HTML page about the training, or None.
        name: id of the scorer in every score; None for the output's name.
        overwrite: whether the output may exist already.
        skip_bad: leave out images that cannot be used.
        settings: of the training.
    """

    output: Path
    unsafe: Path | None = None
    safe: Path | None = None
    categories: Path | None = None
    pairs: Path | None = None
    benign: Path | None = None
    mine: int = 500
    encoder: str = DEFAULT_ENCODER
    device: str = "cpu"
    views: int = VIEWS
    cache: Path | None = None
    report: Path | None = None
    name: str | None = None
    overwrite: bool = False
    skip_bad: bool = False
    settings: CostSettings = field(default_factory=CostSettings)

    @property
    def has_one_source(self) -> bool:
        """Whether exactly one source of images is given."""
        folders = [self.unsafe, self.safe]
        ways = [self.pairs is not None, self.categories is not None, folders != [None, None]]
        return ways.count(True) == 1 and (None not in folders or folders == [None, None])


@dataclass(frozen=True)
class CostOutcome:
    """Result of a training.

    Attributes:
        mined: the model, its figures and its training data.
        encoder: id of the image encoder.
        pool: number of harmless images searched for hard negatives.
        misfiled: images that look misfiled, and their files.
    """

    mined: Mined
    encoder: str
    pool: int
    misfiled: Sequence[tuple[Suspect, Path]]


def run_cost_task(
    task: CostTask,
    *,
    progress: Progress = lambda phase, done, total, loss: None,
    checked: Callable[[CheckedExamples], None] = lambda images: None,
    reporter: Reporter | None = None,
) -> CostOutcome:
    """Check everything, train, and write the cost model and the page about it.

    Args:
        task: what to do.
        progress: called with phase, number done, total, and the held-out loss while training (else None).
        checked: called once with the images, before any work.
        reporter: of the run folder, if there is one.

    Raises:
        ScdpoError: folders, images or settings cannot be used; lists all problems with images at once.
        StopAskedError: a stop was requested through the run folder.
    """
    _require_writable(task)

    def report(phase: str, done: int, total: int, loss: float | None = None) -> None:
        progress(phase, done, total, loss)
        if reporter is not None:
            reporter.progress(PHASES.get(phase, "cache"), done, total, loss)

    notes: list[Problem] = []
    images = check(_listed(task, notes.append), lambda done, total: report("reading images", done, total))
    if images.problems and not task.skip_bad:
        raise ScdpoError(
            f"{len(images.problems)} images cannot be used:\n{in_words(images.problems)}\n"
            "Repair or remove them, or leave them out with --skip-bad."
        )
    checked(replace(images, notes=notes))
    pool: Sequence[CostExample] = ()
    if task.benign is not None:
        benign = list_benign(task.benign)
        # Broken files of a large folder are left out.
        pool = check(benign, lambda done, total: report("reading the harmless folder", done, total)).examples
    if reporter is not None:
        reporter.started(task.settings.steps, len(images.examples) + len(pool), task.device)
    encoder = load_encoder(task.encoder, task.device)
    cache = FeatureCache(task.cache or task.output.parent / ".features")
    mined = train_with_mining(
        images.examples,
        pool,
        encoder,
        task.settings,
        count=task.mine,
        views=task.views,
        cache=cache,
        progress=report,
    )
    data, result = mined.data, mined.result
    if doubtful(result.figures):
        result = replace(result, warnings=(*result.warnings, encoder_advice(encoder.id)))
        mined = replace(mined, result=result)
    facts = CostFacts(
        name=task.name or task.output.stem,
        encoder=encoder.id,
        encoder_hash=encoder.hash,
        encoder_source=_source(task.encoder),
        training_set=data.training_set,
        untrained=tuple(name for name, figures in result.categories.items() if figures is None),
        calibration=_nested(result.calibration),
        figures=_nested({"": result.figures, **result.categories}),
    )
    save_cost(task.output, result.model, facts)
    files = {example.digest: example.path for example in (*images.examples, *mined.chosen)}
    misfiled = suspects(result.held_out, data.unsafe, list(data.digests))
    if task.report is not None:
        write_cost_report(task.report, facts.name, result, misfiled, files)
    if reporter is not None:
        for warning in (*(f"{note.path}: {note.what}" for note in notes), *result.warnings):
            reporter.warned(warning)
        reporter.finished(result.steps, task.output, task.report)
    return CostOutcome(mined, encoder.id, len(pool), [(one, files[one.digest]) for one in misfiled])


def _listed(task: CostTask, notice: Notice) -> list[CostExample]:
    if task.pairs is not None:
        return list_pairs(task.pairs, notice)
    if task.categories is not None:
        return list_categories(task.categories, notice)
    if task.unsafe is None or task.safe is None:
        raise ScdpoError("Give the folders of the harmful and of the harmless images.")
    return list_folders(task.unsafe, task.safe, notice)


def _require_writable(task: CostTask) -> None:
    """Check that the output can be written, before the training."""
    output = task.output
    if output.suffix != ".safetensors":
        raise ScdpoError(f"The output must be a file that ends in .safetensors, not {output}.")
    if output.exists() and not task.overwrite:
        raise ScdpoError(f"{output} already exists. Choose another name, or add --overwrite.")
    for folder in (output.parent, *(() if task.report is None else (task.report.parent,))):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ScdpoError(
                f"The folder {folder} cannot be written to ({error.strerror or error}). Choose another "
                "output."
            ) from error


def _nested(heads: Mapping[str, Any]) -> dict[str, object]:
    """Nest values by head: the overall cost at the top, each category with a head below 'categories'."""
    by_head = {name: asdict(value) for name, value in heads.items() if value is not None}
    return {**by_head.pop(""), "categories": by_head}


def _source(spec: str) -> str:
    """Return where the encoder lies, for the file; the home folder becomes '~', because it names a person."""
    if spec in ENCODERS or (is_hub_name(spec) and not Path(spec).exists()):
        return spec
    full = Path(spec).expanduser().resolve()
    home = Path.home().resolve()
    return str(Path("~") / full.relative_to(home)) if full.is_relative_to(home) else str(full)
