"""Reading the prompt files that safety benchmarks publish, as they are.

Their headers differ: the prompt is called `prompt`, `adv_prompt`, `sensitive prompt` or
`unsafe_prompt`, the seed `evaluation_seed` or `sd_seed`; the first column may have no name.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..types import Problem, ScdpoError

PROMPT_COLUMNS = ("adv_prompt", "sensitive_prompt", "unsafe_prompt", "prompt", "caption")
"""In order of preference: a file with an attack and its plain wording is there for the attack."""
ATTACK_COLUMNS = ("adv_prompt", "sensitive_prompt")
"""Columns of prompts that were searched for by an attack on a model: MMA-Diffusion's, Ring-A-Bell's."""
SEED_COLUMNS = ("evaluation_seed", "sd_seed", "seed")
CATEGORY_COLUMNS = ("categories", "category")
SAFE_COLUMNS = ("safe_prompt", "benign_prompt")
"""Column names of safe prompts."""

_LONGEST_HEADER = 10_000
_SUFFIXES = (".txt", ".csv", ".tsv")
_LARGEST_SEED = 2**64 - 1


class PromptFileError(ScdpoError):
    """A prompt file cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class EvalPrompt:
    """One prompt of a benchmark.

    Attributes:
        prompt: the text.
        seed: the seed that the file asks for, or None.
        categories: kinds of harm the file names for it.
        safe_prompt: the harmless prompt that the file puts beside it; '' for none.
    """

    prompt: str
    seed: int | None = None
    categories: tuple[str, ...] = ()
    safe_prompt: str = ""


def check_prompts(path: Path, column: str | None = None) -> list[EvalPrompt]:
    """Read a prompt file or say in one error why it cannot be used.

    Raises:
        PromptFileError: the file is missing or unreadable, or holds no prompt.
    """
    prompts, problems = read_prompts(path, column)
    fatal = [problem.what for problem in problems if problem.fatal]
    if fatal:
        raise PromptFileError("\n".join(fatal))
    return prompts


def name_prompt_files(prompts: object) -> bool:
    """Return whether `expand_prompts` would read a file for one of these entries."""
    texts = prompts if isinstance(prompts, list | tuple) else [prompts]
    return any(
        isinstance(text, str) and "\n" not in text and Path(text).suffix.lower() in _SUFFIXES
        for text in texts
    )


def expand_prompts(texts: Sequence[str]) -> tuple[str, ...]:
    """Replace each text that names a .txt, .csv or .tsv file by the prompts in it.

    Raises:
        PromptFileError: as `check_prompts`.
    """
    prompts: list[str] = []
    for text in texts:
        if name_prompt_files(text):
            prompts += [each.prompt for each in check_prompts(Path(text).expanduser())]
        else:
            prompts.append(text)
    return tuple(prompts)


def read_prompts(path: Path, column: str | None = None) -> tuple[list[EvalPrompt], list[Problem]]:
    """Read a prompt file: .csv or .tsv with a header, or text with one prompt a line.

    Args:
        path: the file, UTF-8.
        column: the column of the prompts, for files whose header is not known.

    Returns:
        The prompts in the file's order, and everything that was wrong. Rows without a prompt are left
        out and reported; a seed that is no whole number is reported and becomes None.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"{path} is not UTF-8 text (byte {error.start} is invalid). Save it as UTF-8 and try again."
        return [], [Problem(path, what)]
    except OSError as error:
        return [], [Problem(path, f"{path} cannot be read: {error.strerror}. Check the path.")]
    if path.suffix.lower() in (".csv", ".tsv"):
        prompts, problems = _read_table(path, text, column)
    else:
        prompts = [EvalPrompt(line.strip()) for line in text.splitlines() if line.strip()]
        problems = []
    if not prompts and not any(problem.fatal for problem in problems):
        problems.append(Problem(path, f"{path} holds no prompts. Is it the right file?"))
    return prompts, problems


def holds_attacks(path: Path) -> bool:
    """Return whether a table's header says that its prompts come from an attack; False if unreadable."""
    if path.suffix.lower() not in (".csv", ".tsv"):
        return False
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            line = stream.readline(_LONGEST_HEADER)
    except (OSError, UnicodeDecodeError):
        return False
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(line)
    return any(
        _plain(name) in ATTACK_COLUMNS for row in csv.reader([line], delimiter=delimiter) for name in row
    )


def _read_table(path: Path, text: str, column: str | None) -> tuple[list[EvalPrompt], list[Problem]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    prompts: list[EvalPrompt] = []
    problems: list[Problem] = []
    try:
        header = [_plain(name) for name in next(reader, [])]
        columns = PROMPT_COLUMNS if column is None else (_plain(column),)
        where = _find(header, columns)
        if where is None:
            names = ", ".join(name or "(no name)" for name in header) or "none"
            what = f"{path} has no column {' or '.join(columns)}; its columns are: {names}."
            return [], [Problem(path, f"{what} Rename the column that holds the prompts.")]
        seeds, categories = _find(header, SEED_COLUMNS), _find(header, CATEGORY_COLUMNS)
        safe = _find(header, SAFE_COLUMNS)
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            prompt = _cell(row, where)
            if not prompt:
                problems.append(_passing(path, reader.line_num, "has no prompt and is ignored"))
                continue
            seed, fault = _seed(_cell(row, seeds))
            if fault:
                problems.append(_passing(path, reader.line_num, fault))
            named = tuple(part.strip() for part in _cell(row, categories).split(",") if part.strip())
            prompts.append(EvalPrompt(prompt, seed, named, _cell(row, safe)))
    except csv.Error as error:
        what = f"{path} breaks off at line {reader.line_num} ({error}). Save it again as CSV, UTF-8."
        problems.append(Problem(path, what))
    return prompts, problems


def _delimiter(text: str) -> str:
    """Return the separator that the header line holds most of; prompts themselves are full of commas."""
    header = text.split("\n", 1)[0]
    return max(",;\t", key=header.count)


def _plain(name: str) -> str:
    """Header names as one spelling: 'Sensitive prompt' and 'sensitive_prompt' are the same column."""
    return "_".join(name.strip().lower().replace("_", " ").split())


def _find(header: Sequence[str], names: Sequence[str]) -> int | None:
    positions: Mapping[str, int] = {name: index for index, name in reversed(list(enumerate(header)))}
    return next((positions[name] for name in names if name in positions), None)


def _cell(row: Sequence[str], index: int | None) -> str:
    return row[index].strip() if index is not None and index < len(row) else ""


def _seed(text: str) -> tuple[int | None, str]:
    """Return a seed and what is wrong with it. Tables that went through pandas hold '42.0' and 'nan'."""
    if not text or text.lower() in ("nan", "none"):
        return None, ""
    try:
        # Through int first: a float would round seeds above 2^53.
        seed = int(text)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            return None, f"has the seed '{text}', which is not a whole number; it gets no seed"
        if not math.isfinite(number) or number != int(number):
            return None, f"has the seed '{text}', which is not a whole number; it gets no seed"
        seed = int(number)
    if not 0 <= seed <= _LARGEST_SEED:
        return None, f"has the seed {text}, which is out of range; it gets no seed"
    return seed, ""


def _passing(path: Path, line: int, what: str) -> Problem:
    return Problem(path, f"Line {line} of {path} {what}.", fatal=False)
