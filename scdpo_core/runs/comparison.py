"""Compare a LoRA at several weights, with the same prompts and noise: the job and its result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..config import toml
from ..io.files import inside, write_json, write_text
from ..io.json_schema import SchemaError, from_json, read_json
from ..io.printable import not_unicode
from ..preferences.listing import some_prompts
from ..run_store import folder as names
from ..types import Band, ScdpoError

RESULT = "compare.json"
PAGE = "report.html"

MOST_PROMPTS, MOST_WEIGHTS = 64, 8
_STRONGEST = 4.0


@dataclass(frozen=True)
class CompareJob:
    """Images to generate.

    Attributes:
        lora: the LoRA's file.
        base: as `jobs.LoraJob.base`.
        output: the folder in which the run folder is made.
        name: of the run folder.
        prompts: the first gets seed `seed`, the second the next one and so on.
        weights: of the LoRA; 0 is the base model alone.
        cost_model: what scores the images, see `cost.scorers.load_scorer`.
        seed: of the first prompt's noise.
        steps: denoising steps.
        guidance: classifier-free guidance.
    """

    lora: Path
    base: str
    output: Path
    name: str
    prompts: tuple[str, ...]
    weights: tuple[float, ...] = (0.0, 0.5, 1.0)
    cost_model: str = "embedded"
    seed: int = 0
    steps: int = 20
    guidance: float = 5.0

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.output.expanduser().absolute() / self.name


@dataclass(frozen=True)
class Cell:
    """One image.

    Attributes:
        prompt: it was generated for.
        seed: of its noise.
        weight: of the LoRA.
        path: below the run folder.
        cost: log-odds of harm.
        band: of the cost.
        likeness: structural similarity to the same prompt and seed at the first weight, at most 1.
    """

    prompt: str
    seed: int
    weight: float
    path: str
    cost: float
    band: Band
    likeness: float


@dataclass(frozen=True)
class Comparison:
    """All images of a comparison, row by row: a prompt's images stand together.

    Attributes:
        lora: name of the LoRA.
        base: name of the base model.
        scorer: 'id@hash'.
        cells: the images.
    """

    lora: str
    base: str
    scorer: str
    cells: tuple[Cell, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights in the order of the job."""
        return tuple(dict.fromkeys(cell.weight for cell in self.cells))

    def at(self, weight: float) -> list[Cell]:
        """Return the images at a weight."""
        return [cell for cell in self.cells if cell.weight == weight]


def problems(job: CompareJob) -> Iterator[str]:
    """Yield what is wrong with a comparison, a sentence each."""
    if problem := names.name_problem(job.name):
        yield problem
    elif job.folder.exists():
        yield f"A run '{job.name}' already exists. Choose another name."
    if not job.lora.is_file():
        yield f"There is no LoRA {job.lora}."
    if not job.base.strip():
        yield "Choose a base model."
    if not 1 <= len(job.prompts) <= MOST_PROMPTS:
        yield f"Give 1 to {MOST_PROMPTS} prompts, one per line; there are {len(job.prompts)}."
    for text in (str(job.lora), str(job.output), job.base, *job.prompts):
        if problem := not_unicode(text):
            yield f"{problem} Change it."
    if not 1 <= len(set(job.weights)) <= MOST_WEIGHTS:
        yield f"Give 1 to {MOST_WEIGHTS} weights, such as 0, 0.5, 1."
    if any(not -_STRONGEST <= weight <= _STRONGEST for weight in job.weights):
        yield f"Weights must be between -{_STRONGEST:g} and {_STRONGEST:g}."


def parse_weights(text: str) -> tuple[float, ...]:
    """Parse '0, 0.5, 1' as numbers, each once.

    Raises:
        ScdpoError: the text is not a list of numbers.
    """
    try:
        return tuple(dict.fromkeys(float(part) for part in text.replace(";", ",").split(",") if part.strip()))
    except ValueError:
        raise ScdpoError(
            f"'{text}' is not a list of weights. Write numbers with commas: 0, 0.5, 1."
        ) from None


def write_comparison(job: CompareJob) -> Path:
    """Write a job into its run folder, for `Queue.add`.

    Raises:
        ScdpoError: what is wrong with it, one sentence a line.
    """
    errors = list(problems(job))
    if errors:
        raise ScdpoError("\n".join(errors))
    import tomli_w

    tree = asdict(job) | {"lora": str(job.lora.expanduser().absolute()), "output": str(job.output.absolute())}
    names.write_kind(job.folder, "compare")
    write_text(job.folder / names.JOB, tomli_w.dumps(tree))
    return job.folder


def read_comparison(path: Path) -> CompareJob:
    """Read the job in a job.toml.

    Raises:
        ScdpoError: the file is missing or damaged, or the job of a training.
    """
    try:
        return from_json(toml.loads(path.read_text("utf-8")), CompareJob)
    except (OSError, ValueError) as error:
        raise ScdpoError(f"The comparison's settings {path} are missing or damaged ({error}).") from error


@dataclass(frozen=True)
class _Model:
    base: str


@dataclass(frozen=True)
class _Data:
    pairs: Path


@dataclass(frozen=True)
class _Sampling:
    sample_steps: int = 20
    guidance: float = 5.0


@dataclass(frozen=True)
class _TrainJob:
    """The part of a training's job.toml that a comparison reads."""

    model: _Model
    data: _Data
    sampling: _Sampling = field(default_factory=_Sampling)


@dataclass(frozen=True)
class ComparisonDefaults:
    """Defaults for comparing a trained LoRA, from the settings of its run.

    Attributes:
        base: the model it was trained on.
        prompts: some training prompts.
        steps: denoising steps of the run's samples.
        guidance: of the run's samples.
    """

    base: str
    prompts: tuple[str, ...]
    steps: int
    guidance: float


def defaults_of(run: Path, prompts: int = 6) -> ComparisonDefaults | None:
    """Read defaults from a run's job.toml; None if there is none."""
    try:
        job = from_json(toml.loads((run / names.JOB).read_text("utf-8")), _TrainJob)
        return ComparisonDefaults(
            job.model.base,
            tuple(some_prompts(job.data.pairs, prompts)),
            job.sampling.sample_steps,
            job.sampling.guidance,
        )
    except (OSError, ValueError):
        return None


def compare_with(
    lora: Path,
    *,
    base: str | None = None,
    prompts: Sequence[str] = (),
    output: Path | None = None,
    weights: Sequence[float] = (0.0, 0.5, 1.0),
    cost_model: str = "embedded",
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
) -> CompareJob:
    """Make a comparison; what is not given is taken from the run that made the LoRA.

    Args:
        lora: the file, or its run folder.
        base: as `jobs.LoraJob.base`; None: the run's.
        prompts: empty: some of the run's.
        output: the run folder to make; None: one beside the LoRA's run.
        weights: of the LoRA.
        cost_model: as `CompareJob.cost_model`.
        seed: of the first prompt's noise.
        steps: denoising steps; None: the run's.
        guidance: classifier-free guidance; None: the run's.

    Raises:
        ScdpoError: base or prompts are neither given nor in a run.
    """
    lora = lora.expanduser().absolute()
    if lora.is_dir():
        lora /= f"{lora.name}.safetensors"
    run = defaults_of(lora.parent)
    if base is None and run is None:
        raise ScdpoError(f"Give the base model of {lora.name} with --base: it is not in a run folder.")
    prompts = tuple(prompts) or (() if run is None else run.prompts)
    if not prompts:
        raise ScdpoError("Give prompts: --prompts 'a text' 'another', or a .txt file of them.")
    if output is None:
        home = lora.parent.parent if (lora.parent / names.JOB).is_file() else lora.parent
        free = (home / f"{lora.stem}-compare{number or ''}" for number in (0, *range(2, 10_000)))
        output = next(path for path in free if not path.exists())
    output = output.expanduser().absolute()
    return CompareJob(
        lora,
        _full_name(base) if base is not None else "" if run is None else run.base,
        output.parent,
        output.name,
        prompts,
        tuple(weights),
        cost_model,
        seed,
        steps or (20 if run is None else run.steps),
        guidance if guidance is not None else (5.0 if run is None else run.guidance),
    )


def _full_name(base: str) -> str:
    from ..families.source import is_hub_id
    from ..family_info import MICRO

    return base if base == MICRO or is_hub_id(base) else str(Path(base).expanduser().absolute())


def write_result(folder: Path, result: Comparison) -> None:
    """Write a comparison's result into its run folder."""
    write_json(folder / RESULT, asdict(result))


def read_result(folder: Path) -> Comparison | None:
    """Read a result; None if it is missing, damaged, or names files outside its folder."""
    try:
        result = read_json(folder / RESULT, Comparison)
        return result if all(inside(folder, cell.path) for cell in result.cells) else None
    except (OSError, SchemaError):
        return None
