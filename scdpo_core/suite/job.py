"""What is to be evaluated: settings, what is wrong with them, and their file in the run folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..config import toml
from ..cost.scorers import names_a_scorer, offered_scorers
from ..io.files import sha256_of, write_text
from ..io.json_schema import from_json
from ..io.printable import not_unicode
from ..run_store import folder as names
from ..runs.rerun import Request
from ..types import ScdpoError
from .attack_names import attack_problem, needs_harmful, needs_words
from .folder import IMAGES, REPORT

WORLD_JUDGE = "micro-judge"
"""Name of the judge of the embedded world, beside the scorers."""

INPUTS = "inputs"
"""The folder in a run folder with copies of the prompt files."""
MOST_WEIGHTS, MOST_SEEDS, MOST_LORAS = 8, 100, 2
_STRONGEST = 4.0
_TAKEN = "There is a run '{}' already. Choose another name."
_MOST_STEPS, _MOST_BATCH = 1000, 256


@dataclass(frozen=True)
class EvalJob:
    """An evaluation.

    Attributes:
        base: base model, as `families.family_of` takes it.
        output: the run folder.
        loras: none (the base alone), one, or two that are compared.
        prompts: prompt files that ask for harm.
        attack_prompts: prompt files that were searched for by attacks on other models.
        benign: prompt files that ask for nothing harmful.
        column: the column of the prompts; '' for those that `io.prompt_files` knows.
        weights: of each LoRA; the first one is the one that counts in the headline.
        seeds: images of each prompt.
        seed: of the first prompt that has none of its own.
        limit: prompts of each file, spread evenly over it; 0 for all.
        scorers: who judges: names of scorers, cost model files, or `WORLD_JUDGE`.
        attacks: what is tried on the LoRA, see `attack_names.ATTACKS`.
        attack_words: words of the prompts that attacks learn to replace.
        attack_count: prompts that each attack is tried on.
        reference: folder of images to measure the Fréchet distance to.
        encoder: image encoder of that distance; '' for the embedded one.
        clip: folder of a CLIP model for CLIP scores.
        steps: of denoising.
        guidance: classifier-free guidance.
        width: of the images; 0 for the model's own.
        height: of the images; 0 for the model's own.
        batch: images drawn together.
    """

    base: str
    output: Path
    loras: tuple[Path, ...] = ()
    prompts: tuple[Path, ...] = ()
    attack_prompts: tuple[Path, ...] = ()
    benign: tuple[Path, ...] = ()
    column: str = ""
    weights: tuple[float, ...] = (1.0,)
    seeds: int = 1
    seed: int = 0
    limit: int = 0
    scorers: tuple[str, ...] = ("embedded",)
    attacks: tuple[str, ...] = ()
    attack_words: tuple[str, ...] = ()
    attack_count: int = 40
    reference: Path | None = None
    encoder: str = ""
    clip: Path | None = None
    steps: int = 20
    guidance: float = 5.0
    width: int = 0
    height: int = 0
    batch: int = 4

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels; None for the model's own."""
        return (self.width, self.height) if self.width and self.height else None


def problems(job: EvalJob) -> Iterator[str]:
    """Yield what is wrong with the settings, a sentence each; reads no prompt file and loads no model."""
    if not job.base.strip():
        yield "Choose a base model: --base."
    if job.output.exists() and not job.output.is_dir():
        yield f"--output {job.output} is a file. Give a folder."
    yield from _missing_files(job)
    if not (job.prompts or job.attack_prompts or job.benign):
        yield "Name the prompts: --prompts FILE, --benign FILE or --attack-prompts FILE (.csv, .tsv or .txt)."
    if len(job.loras) > MOST_LORAS:
        yield f"Give one LoRA, or two to compare; there are {len(job.loras)}."
    if len({path.resolve() for path in job.loras}) < len(job.loras):
        yield "Both LoRAs are the same file. Give two different ones, or one."
    if not 1 <= len(set(job.weights)) <= MOST_WEIGHTS:
        yield f"Give 1 to {MOST_WEIGHTS} weights, such as --weights 1 0.75 0.5."
    if any(weight == 0 or not -_STRONGEST <= weight <= _STRONGEST for weight in job.weights):
        yield (
            f"Weights lie between -{_STRONGEST:g} and {_STRONGEST:g} and are not 0: the base model is "
            "always drawn as well."
        )
    for name, value, low, high in (
        ("--seeds", job.seeds, 1, MOST_SEEDS),
        ("--seed", job.seed, 0, 2**63 - 1),
        ("--limit", job.limit, 0, 2**31),
        ("--steps", job.steps, 1, _MOST_STEPS),
        ("--guidance", job.guidance, 0, 100),
        ("--batch", job.batch, 1, _MOST_BATCH),
        ("--attack-count", job.attack_count, 1, 100_000),
    ):
        if not low <= value <= high:
            yield f"{name} is {value:g}; it lies between {low} and {high}."
    yield from _size_problems(job)
    yield from _judge_problems(job)
    yield from _attack_problems(job)


def _missing_files(job: EvalJob) -> Iterator[str]:
    for path in (*job.prompts, *job.attack_prompts, *job.benign):
        if not path.is_file():
            yield f"There is no prompt file {path}."
    for path in job.loras:
        if not path.is_file():
            yield f"There is no LoRA {path}."
    for flag, file in (("--reference", job.reference), ("--clip", job.clip)):
        if file is not None and not file.is_dir():
            yield f"{flag}: there is no folder {file}."
    if job.reference is not None and not job.benign:
        yield "--reference is compared with benign images: give --benign."
    if job.encoder and job.reference is None:
        yield "--encoder has no effect without --reference FOLDER."
    texts = [job.base, job.encoder, job.column, *job.scorers, *job.attacks, *job.attack_words]
    paths = (*job.prompts, *job.attack_prompts, *job.benign, *job.loras, job.output, job.reference, job.clip)
    for text in (*texts, *(str(path) for path in paths if path is not None)):
        if wrong := not_unicode(text):
            yield f"{wrong} Change it."


def _size_problems(job: EvalJob) -> Iterator[str]:
    if bool(job.width) != bool(job.height):
        yield "Give both --width and --height, or neither."
    elif job.size is not None and any(side < 8 or side % 8 for side in job.size):
        yield f"--width and --height are multiples of 8, not {job.width} and {job.height}."


def _judge_problems(job: EvalJob) -> Iterator[str]:
    if not job.scorers:
        yield "Somebody has to judge: --scorer NAME."
    if len(set(job.scorers)) < len(job.scorers):
        yield "A judge is named twice after --scorer."
    for spec in job.scorers:
        if spec != WORLD_JUDGE and not names_a_scorer(spec):
            yield (
                f"There is no scorer and no cost model file '{spec}'. The scorers are: "
                f"{', '.join((*sorted(offered_scorers()), WORLD_JUDGE))}."
            )


def _attack_problems(job: EvalJob) -> Iterator[str]:
    if len(set(job.attacks)) < len(job.attacks):
        yield "An attack is named twice after --attack."
    wrong = [problem for spec in job.attacks if (problem := attack_problem(spec))]
    yield from wrong
    if not wrong and job.attack_words and not any(map(needs_words, job.attacks)):
        yield "--attack-words has no effect without --attack inversion or --attack search."
    if wrong or not job.attacks:
        return
    if not job.loras:
        yield "Attacks are tried on a LoRA: give --lora."
    if not job.prompts:
        yield "Attacks are tried on harmful prompts: give --prompts."
    if any(map(needs_words, job.attacks)) and not job.attack_words and job.base != "micro":
        yield (
            "Inversion and search put something else in the place of a word: name words that your harmful "
            "prompts use (--attack-words knife blood)."
        )
    if not job.benign and any(not needs_harmful(spec) for spec in job.attacks):
        yield "--attack relearn learns from the base model's benign images: give --benign."


def write_job(job: EvalJob) -> None:
    """Write the settings into the run folder, for `job_in` and for whoever looks later."""
    write_text(job.output / names.JOB, _text(job))


def _text(job: EvalJob) -> str:
    import tomli_w

    tree = {
        key: [str(item) if isinstance(item, Path) else item for item in value]
        if isinstance(value, tuple)
        else str(value)
        if isinstance(value, Path)
        else value
        for key, value in asdict(job).items()
        if value is not None
    }
    return tomli_w.dumps(tree)


def write_evaluation(job: EvalJob) -> Path:
    """Write a new evaluation into its run folder, with copies of its prompt files, for `Queue.add`.

    Raises:
        ScdpoError: what is wrong with it, one thing a line.
    """
    wrong = [] if names.name_problem(job.output.name) or not job.output.exists() else [_TAKEN]
    _refuse([*(text.format(job.output.name) for text in wrong), *_all_problems(job)])
    _write(job)
    return job.output


def request(job: EvalJob) -> Request:
    """Return an evaluation as `rerun.prepare` takes it: the same one where settings and files are the same.

    Raises:
        ScdpoError: what is wrong with it, one thing a line; the folder is another run's.
    """
    folder = job.output
    _refuse([*_all_problems(job)])
    names.check_kind(folder, "evaluate")
    files = (*job.loras, *job.prompts, *job.attack_prompts, *job.benign)
    try:
        hashes = "".join(f"# {file.name}: {sha256_of(file)}\n" for file in files)
    except OSError as error:
        raise ScdpoError(f"{error.filename} cannot be read ({error.strerror or error}).") from error
    # The content of prompt files counts, and not where they lie.
    text = hashes + _text(replace(job, prompts=(), attack_prompts=(), benign=()))

    def write() -> None:
        if (folder / names.KIND).exists():
            shutil.rmtree(folder / INPUTS, ignore_errors=True)
        _write(job)

    return Request(folder, text, folder / REPORT, write, lambda: (folder / IMAGES).exists())


def _refuse(wrong: Sequence[str]) -> None:
    if wrong:
        raise ScdpoError("\n".join(wrong))


def _all_problems(job: EvalJob) -> Iterator[str]:
    if wrong := names.name_problem(job.output.name):
        yield wrong
    yield from problems(job)


def _write(job: EvalJob) -> None:
    inputs = job.output / INPUTS
    prompts, attack_prompts, benign = (
        names.copy_inputs(inputs, files) for files in (job.prompts, job.attack_prompts, job.benign)
    )
    write_job(replace(job, prompts=prompts, attack_prompts=attack_prompts, benign=benign))
    names.write_kind(job.output, "evaluate")


def job_in(folder: Path) -> EvalJob:
    """Return the settings in a run folder's job.toml, for that folder: it may have been moved or passed on.

    Raises:
        ScdpoError: the file is missing or damaged, or holds the settings of something else.
    """
    path = folder / names.JOB
    try:
        return replace(from_json(toml.loads(path.read_text("utf-8")), EvalJob), output=folder)
    except (OSError, ValueError) as error:
        raise ScdpoError(f"The evaluation's settings {path} are missing or damaged ({error}).") from error
