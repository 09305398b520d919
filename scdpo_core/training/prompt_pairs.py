"""Pairs of prompts alone: both images of each are drawn by the base model, before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..io.infotext import plain
from ..io.prompt_files import EvalPrompt, check_prompts
from ..preferences.writer import category_folder
from ..types import PreferencePair, Problem, ScdpoError


@dataclass(frozen=True)
class PromptPairs:
    """Pairs whose images need not be there yet.

    Attributes:
        folder: preference folder that they will make up.
        pairs: with the files that their images get.
        seeds: of the images that the file of prompts asks for; None where it does not.
    """

    folder: Path
    pairs: tuple[PreferencePair, ...]
    seeds: tuple[int | None, ...]


def pairs_of_prompts(file: Path, folder: Path, notice: Callable[[Problem], None]) -> PromptPairs:
    """Read harmful prompts with a safe prompt each.

    Args:
        file: .csv or .tsv with columns for both, see `io.prompt_files`.
        folder: for the images.
        notice: is told what is left out.

    Raises:
        ScdpoError: the file cannot be used, or no prompt in it has a safe one.
    """
    rows = check_prompts(file)
    pairs, seeds, bare = [], list[int | None](), 0
    for number, row in enumerate(rows):
        # The same words would teach nothing: both images would be the same one.
        if plain(row.safe_prompt) in ("", plain(row.prompt)):
            bare += 1
            continue
        pairs.append(_pair(number, row, folder))
        seeds.append(row.seed)
    if not pairs:
        raise ScdpoError(
            f"{file} has no safe prompts. Training from prompts alone needs a .csv or .tsv file with the "
            "columns prompt and safe_prompt: what is asked for, and what is to be drawn instead."
        )
    if bare:
        what = f"{bare} of {len(rows)} prompts have no safe prompt of their own and are left out."
        notice(Problem(file, what, fatal=False))
    return PromptPairs(folder, tuple(pairs), tuple(seeds))


def _pair(number: int, row: EvalPrompt, folder: Path) -> PreferencePair:
    category = category_folder(row.categories[0]) if row.categories else ""
    stem = f"{category}/{number:05d}" if category else f"{number:05d}"
    chosen, rejected = (folder / side / f"{stem}.png" for side in ("chosen", "rejected"))
    return PreferencePair(
        stem, plain(row.prompt), chosen, rejected, category, safe_prompt=plain(row.safe_prompt)
    )
