"""Before and after: a LoRA at several weights, same prompts and noise, as a job and its result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import write_json, write_text
from ..preferences.listing import some_prompts
from ..types import Band, ScdpoError
from . import folder as names
from . import toml
from .jobs import NO_NAME

RESULT = "compare.json"
PAGE = "report.html"

MOST_PROMPTS, MOST_WEIGHTS = 64, 8
_STRONGEST = 4.0


@dataclass(frozen=True)
class CompareJob:
    """Pictures to draw.

    Attributes:
        lora: the LoRA's file.
        base: as `jobs.LoraJob.base`.
        output: the folder in which the run folder is made.
        name: of the run folder.
        prompts: what to draw; the first with seed `seed`, the second with the next one and so on.
        weights: of the LoRA; 0 is the base model alone.
        cost_model: what scores the pictures, see `cost.scorers.load_scorer`.
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
    """One picture.

    Attributes:
        prompt: that it was drawn for.
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
    """All pictures of a comparison, row by row: a prompt's pictures stand together.

    Attributes:
        lora: name of the LoRA.
        base: name of the base model.
        scorer: 'id@hash'.
        cells: the pictures.
    """

    lora: str
    base: str
    scorer: str
    cells: tuple[Cell, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """In the order they were asked for."""
        return tuple(dict.fromkeys(cell.weight for cell in self.cells))

    def at(self, weight: float) -> list[Cell]:
        """The pictures at a weight."""
        return [cell for cell in self.cells if cell.weight == weight]


def problems(job: CompareJob) -> Iterator[str]:
    """What is wrong with a comparison, a sentence each."""
    if not job.name or NO_NAME.search(job.name):
        yield f"'{job.name}' cannot be the name of a folder."
    elif job.folder.exists():
        yield f"There is a run '{job.name}' already. Choose another name."
    if not job.lora.is_file():
        yield f"There is no LoRA {job.lora}."
    if not job.base.strip():
        yield "Choose a base model."
    if not 1 <= len(job.prompts) <= MOST_PROMPTS:
        yield f"Give 1 to {MOST_PROMPTS} prompts, one a line; there are {len(job.prompts)}."
    if not 1 <= len(set(job.weights)) <= MOST_WEIGHTS:
        yield f"Give 1 to {MOST_WEIGHTS} weights, such as 0, 0.5, 1."
    if any(not -_STRONGEST <= weight <= _STRONGEST for weight in job.weights):
        yield f"Weights lie between -{_STRONGEST:g} and {_STRONGEST:g}."


def parse_weights(text: str) -> tuple[float, ...]:
    """'0, 0.5, 1' as numbers, each once.

    Raises:
        ScdpoError: something else stands there.
    """
    try:
        return tuple(dict.fromkeys(float(part) for part in text.replace(";", ",").split(",") if part.strip()))
    except ValueError:
        raise ScdpoError(f"'{text}' are no weights. Write numbers with commas between: 0, 0.5, 1.") from None


def write_comparison(job: CompareJob) -> Path:
    """Write a job into its run folder, for `Queue.add`.

    Raises:
        ScdpoError: what is wrong with it, one thing a line.
    """
    wrong = list(problems(job))
    if wrong:
        raise ScdpoError("\n".join(wrong))
    import tomli_w

    tree = asdict(job) | {"lora": str(job.lora.expanduser().absolute()), "output": str(job.output.absolute())}
    names.write_kind(job.folder, "compare")
    write_text(job.folder / names.JOB, tomli_w.dumps(tree))
    return job.folder


def read_comparison(path: Path) -> CompareJob:
    """The job in a job.toml.

    Raises:
        ScdpoError: it is missing or damaged.
    """
    try:
        tree = toml.loads(path.read_text("utf-8"))
        return CompareJob(
            **{
                **tree,
                "lora": Path(tree["lora"]),
                "output": Path(tree["output"]),
                "prompts": tuple(tree["prompts"]),
                "weights": tuple(map(float, tree["weights"])),
            }
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ScdpoError(f"The comparison's settings {path} are missing or damaged ({error}).") from error


@dataclass(frozen=True)
class Usual:
    """How a trained LoRA is usually compared, as its run's own settings have it.

    Attributes:
        base: the model it was trained on.
        prompts: some of those it was trained with.
        steps: denoising steps of the run's samples.
        guidance: of the run's samples.
    """

    base: str
    prompts: tuple[str, ...]
    steps: int
    guidance: float


def usual(run: Path, prompts: int = 6) -> Usual | None:
    """What a run's job.toml says; None if there is none."""
    try:
        tree = toml.loads((run / names.JOB).read_text("utf-8"))
        pairs, sampling = Path(tree["data"]["pairs"]), tree.get("sampling", {})
        return Usual(
            str(tree["model"]["base"]),
            tuple(some_prompts(pairs, prompts)),
            int(sampling.get("sample_steps", 20)),
            float(sampling.get("guidance", 5.0)),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_result(folder: Path, result: Comparison) -> None:
    """Write what came of it into its run folder."""
    write_json(folder / RESULT, asdict(result))


def read_result(folder: Path) -> Comparison | None:
    """What came of it; None while there is nothing or if the file is damaged."""
    try:
        values: dict[str, Any] = json.loads((folder / RESULT).read_text("utf-8"))
        cells: Sequence[dict[str, Any]] = values.pop("cells")
        return Comparison(**values, cells=tuple(Cell(**cell) for cell in cells))
    except (OSError, ValueError, KeyError, TypeError):
        return None
