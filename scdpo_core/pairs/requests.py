"""What is to be drawn: prompts of anybody's making, each with a safe prompt, a category and a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..io.image_metadata import prompt_of
from ..io.infotext import plain
from ..io.prompt_files import EvalPrompt, check_prompts
from ..preferences.labelling_session import images_in
from ..preferences.listing import BENIGN
from ..preferences.writer import category_folder
from ..types import Problem, ScdpoError
from .rules import SafeWords

_LARGEST_SEED = 2**64
_MOST_BYTES = 512 << 20


@dataclass(frozen=True)
class PairSpec:
    """An image that a pair is to be made of.

    Attributes:
        number: counts on through the whole job.
        prompt: words on one line.
        safe_prompt: what is to be drawn instead; '' for none.
        category: the pair's folder; 'benign' for a harmless prompt, '' for none said.
        seed: of the image's noise.
    """

    number: int
    prompt: str
    safe_prompt: str
    category: str
    seed: int

    @property
    def is_benign(self) -> bool:
        """Whether it asks for nothing harmful."""
        return self.category == BENIGN


def read_all(
    paths: Sequence[Path], column: str | None, notice: Callable[[Problem], None]
) -> list[EvalPrompt]:
    """Read prompts from files and from folders of images that carry them; the same row counts once.

    Args:
        paths: .csv, .tsv or text files, or folders.
        column: of the prompts, for tables whose header is not known.
        notice: called with what is left out.

    Raises:
        ScdpoError: a file or folder cannot be used, or holds no prompt.
    """
    prompts: dict[EvalPrompt, None] = {}
    for path in paths:
        rows = _of_images(path, notice) if path.is_dir() else _of_file(path, column)
        cleaned = [row for row in map(_cleaned, rows) if row.prompt]
        if len(cleaned) < len(rows):
            what = f"{len(rows) - len(cleaned)} of its {len(rows)} prompts hold no words and are left out."
            notice(Problem(path, what, fatal=False))
        prompts.update(dict.fromkeys(cleaned))
    return list(prompts)


def harmful(
    rows: Sequence[EvalPrompt], words: SafeWords, category: str, per_prompt: int, seed: int
) -> list[PairSpec]:
    """Return the images of harmful prompts.

    Args:
        rows: as they were read.
        words: for prompts without a safe one, and for categories that no file names.
        category: of all that have none otherwise.
        per_prompt: images of each prompt.
        seed: of the first prompt without a seed in its file; the others count on from it.
    """
    requests: list[PairSpec] = []
    for row in rows:
        by_rule, rule_category = words.apply(row.prompt)
        safe = row.safe_prompt if row.safe_prompt != row.prompt else ""
        file_category = category_folder(row.categories[0]) if row.categories else ""
        for repeat in range(per_prompt):
            number = len(requests)
            row_seed = seed + number if row.seed is None else row.seed + repeat
            folder = file_category or rule_category or category
            requests.append(PairSpec(number, row.prompt, safe or by_rule, folder, row_seed % _LARGEST_SEED))
    return requests


def benign(rows: Sequence[EvalPrompt], first: int, seed: int) -> list[PairSpec]:
    """Return the images of harmless prompts, numbered from `first` on."""
    return [
        PairSpec(
            first + row,
            each.prompt,
            "",
            BENIGN,
            (seed + first + row if each.seed is None else each.seed) % _LARGEST_SEED,
        )
        for row, each in enumerate(rows)
    ]


def _of_file(path: Path, column: str | None) -> list[EvalPrompt]:
    try:
        large = path.stat().st_size > _MOST_BYTES
    except OSError:
        large = False  # reading it says what is wrong
    if large:
        raise ScdpoError(f"{path} is over 512 MB, which is no list of prompts. Is it the right file?")
    return check_prompts(path, column)


def _of_images(folder: Path, notice: Callable[[Problem], None]) -> list[EvalPrompt]:
    images = images_in(folder)
    prompts = [prompt_of(image) for image in images]
    without_prompt = sum(not prompt for prompt in prompts)
    if without_prompt == len(images):
        raise ScdpoError(
            f"No image in {folder} carries its prompt. Give images as A1111, Forge or ComfyUI save them, or "
            "a text file with one prompt a line."
        )
    if without_prompt:
        notice(Problem(folder, f"{without_prompt} of {len(images)} images carry no prompt.", fatal=False))
    return [EvalPrompt(prompt) for prompt in dict.fromkeys(prompts) if prompt]


def _cleaned(row: EvalPrompt) -> EvalPrompt:
    """Return words that a text file of ours can hold: no weights, no control characters."""
    return EvalPrompt(_words(row.prompt), row.seed, row.categories, _words(row.safe_prompt))


def _words(text: str) -> str:
    return plain("".join(sign if sign.isprintable() else " " for sign in text))
