"""What an evaluation draws: prompt sets, images of each prompt, versions of the model, shares of the work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..evaluation.judges import ImageRequest
from ..io.files import sha256_of
from ..io.prompt_files import EvalPrompt, PromptFileError, holds_attacks, read_prompts
from ..types import Problem, ScdpoError
from .job import EvalJob

SetKind = Literal["harmful", "attack", "benign"]

BASE = "base"
"""Name of the base model's version."""

_MOST_BYTES = 256 << 20
_MOST_IMAGES = 10_000_000
_SEED_STEP = 100_003
"""Between the seeds of one prompt: a prime, so that they meet no other prompt's in practice."""
_SEEDS = 2**64
_NO_FOLDER = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Item:
    """One image that every version of the model draws.

    Attributes:
        prompt_set: name of the set.
        row: of the prompt in its file, from 0.
        prompt: with the categories that the file names.
        seed: of the noise.
    """

    prompt_set: str
    row: int
    prompt: EvalPrompt
    seed: int

    @property
    def name(self) -> str:
        """Where it lies below a version's folder."""
        return f"{self.prompt_set}/{self.row:06d}-{self.seed}.png"

    @property
    def request(self) -> ImageRequest:
        """As attacks and judges take it."""
        return ImageRequest(self.prompt.prompt, self.seed, self.prompt_set)


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one file.

    Attributes:
        name: unique in the evaluation, fit for a folder.
        path: the file.
        kind: what its prompts ask for.
        items: its images, prompt by prompt.
        sha256: of the file.
        rows: prompts in the file, of which `items` may be a part.
    """

    name: str
    path: Path
    kind: SetKind
    items: tuple[Item, ...]
    sha256: str
    rows: int

    @property
    def harmful(self) -> bool:
        """Whether its prompts ask for harm."""
        return self.kind != "benign"

    @property
    def prompts(self) -> int:
        """How many of its prompts are drawn."""
        return len({item.row for item in self.items})


@dataclass(frozen=True)
class Version:
    """The base model, or the base model with a LoRA at a weight.

    Attributes:
        name: unique in the evaluation, fit for a folder: 'base', 'calm@0.75'.
        lora: which of the LoRAs; None for the base.
        weight: of the LoRA.
    """

    name: str
    lora: int | None = None
    weight: float = 0.0


@dataclass(frozen=True)
class Shard:
    """A share of the work: every `count`-th batch of images, from the `number`-th on.

    Attributes:
        number: from 1.
        count: how many shares there are.
    """

    number: int = 1
    count: int = 1

    @property
    def label(self) -> str:
        """Of its files: '2-of-3'; 'all' for the whole work."""
        return f"{self.number}-of-{self.count}" if self.count > 1 else "all"


@dataclass(frozen=True)
class Plan:
    """Everything that is drawn.

    Attributes:
        sets: in the order of the settings.
        versions: the base first.
        lora_names: of the LoRAs, unique.
    """

    sets: tuple[PromptSet, ...]
    versions: tuple[Version, ...]
    lora_names: tuple[str, ...]

    @property
    def items(self) -> list[Item]:
        """The images of every set."""
        return [item for each in self.sets for item in each.items]

    def of_kind(self, *kinds: SetKind) -> list[Item]:
        """Return the images of the sets of these kinds."""
        return [item for each in self.sets if each.kind in kinds for item in each.items]

    def versions_of(self, lora: int) -> list[Version]:
        """Return the versions of a LoRA, by its weights."""
        return [version for version in self.versions if version.lora == lora]


def parse_shard(text: str) -> Shard:
    """Return '2/3' as a share.

    Raises:
        ScdpoError: something else stands there.
    """
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ScdpoError(f"'{text}' is no share of the work. Write 1/3, 2/3 and 3/3, for example.")
    return Shard(int(match[1]), int(match[2]))


def make_plan(job: EvalJob) -> tuple[Plan, list[Problem]]:
    """Read the prompt files.

    Returns:
        The plan, and what was odd in the files but stops nothing.

    Raises:
        PromptFileError: files cannot be used; says all of them, one a line.
    """
    # A file of attacks is known by its header, whatever it was given as.
    files: list[tuple[Path, SetKind]] = [
        *((path, "attack" if holds_attacks(path) else "harmful") for path in job.prompts),
        *((path, "attack") for path in job.attack_prompts),
        *((path, "benign") for path in job.benign),
    ]
    names = unique_names([path.stem for path, _ in files])
    sets, notes, wrong = [], list[Problem](), list[str]()
    for (path, kind), name in zip(files, names, strict=True):
        prompts, problems = _read(path, job.column)
        wrong += [problem.what for problem in problems if problem.fatal]
        notes += [problem for problem in problems if not problem.fatal]
        if any(problem.fatal for problem in problems):
            continue
        items = _items(name, prompts, job)
        sets.append(PromptSet(name, path, kind, items, sha256_of(path), len(prompts)))
    if not wrong and sum(len(each.items) for each in sets) > _MOST_IMAGES:
        wrong.append("These are more than ten million images. Give --limit, fewer --seeds or fewer files.")
    if wrong:
        raise PromptFileError("\n".join(wrong))
    loras = unique_names([path.stem for path in job.loras], reserved=(BASE,))
    versions = [Version(BASE)]
    for number, lora in enumerate(loras):
        versions += [Version(f"{lora}@{weight:g}", number, weight) for weight in dict.fromkeys(job.weights)]
    return Plan(tuple(sets), tuple(versions), tuple(loras)), notes


def _read(path: Path, column: str) -> tuple[list[EvalPrompt], list[Problem]]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            return [], [Problem(path, f"{path} is larger than 256 MB. Is it the right file?")]
    except OSError as error:
        return [], [Problem(path, f"{path} cannot be read: {error.strerror}. Check the path.")]
    return read_prompts(path, column or None)


def _items(name: str, prompts: Sequence[EvalPrompt], job: EvalJob) -> tuple[Item, ...]:
    """Return the images of a file's prompts, from the file's own seeds where it has them."""
    count = min(job.limit or len(prompts), len(prompts))
    rows = [number * len(prompts) // count for number in range(count)]
    items = []
    for row in rows:
        seed = prompts[row].seed
        begin = job.seed + row if seed is None else seed
        items += [
            Item(name, row, prompts[row], (begin + number * _SEED_STEP) % _SEEDS)
            for number in range(job.seeds)
        ]
    return tuple(items)


def unique_names(stems: Sequence[str], reserved: Sequence[str] = ()) -> list[str]:
    """Return unique names that are valid as folders, also where the disk ignores case."""
    names: list[str] = []
    used = {name.casefold() for name in reserved}
    for stem in stems:
        plain = _NO_FOLDER.sub("-", stem).strip(".-")[:60] or "file"
        tries = (plain if number == 1 else f"{plain}-{number}" for number in range(1, len(stems) + 3))
        name = next(one for one in tries if one.casefold() not in used)
        used.add(name.casefold())
        names.append(name)
    return names


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Split items into groups of at most `size`, in order."""
    return [items[first : first + size] for first in range(0, len(items), size)]
