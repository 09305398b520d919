"""The values that travel through an import: one pair as its source states it, or why there is none."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ..io.infotext import MAX_PROMPT, prompt_in

ImageRef: TypeAlias = str | bytes | Path
"""An image: a name as the source writes it, the bytes of its file, or a file that was found on the disk."""

PerPrompt = Literal["best-worst", "all"]
"""Which pairs are made of several images of one prompt."""

_INVISIBLE = re.compile(r"[^\S ]|[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class PairRow:
    """A pair as its source states it; nothing in it has been checked.

    Attributes:
        where: it stands, for the report: a file and a line, or a name.
        prompt: that both images were made for; '' where only the images' own files may say.
        chosen: the preferred image.
        rejected: the other one.
        category: kind of harm; 'benign' for none; '' if not said.
        safe_prompt: a harmless prompt for the same image; '' if not said.
        weight: factor of the pair's loss, 0 or more.
        captions: further files that may hold the prompt, beside the usual ones next to each image.
    """

    where: str
    prompt: str
    chosen: ImageRef
    rejected: ImageRef
    category: str = ""
    safe_prompt: str = ""
    weight: float = 1.0
    captions: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """Something in the source that becomes no pair.

    Attributes:
        where: it stands.
        reason: a sentence that is the same for all of its kind, so that it can be counted.
        detail: what is particular about this one; '' for nothing.
    """

    where: str
    reason: str
    detail: str = ""


Outcome: TypeAlias = PairRow | Skipped
Outcomes: TypeAlias = Sequence[Outcome]
"""What one record of a source becomes."""

TIE = "a tie: no image is rated better"
NO_PROMPT = "no prompt: neither the source nor the images' own files state one"
BAD_PROMPT = "the prompt is not valid UTF-8 text, or longer than 64 KB"
BAD_WEIGHT = "the weight is not a number of 0 or more"
MISSING_FIELD = "a column is empty or missing"
DAMAGED_ROW = "the row cannot be read"


class RowError(Exception):
    """A row becomes no pair; the arguments are `Skipped.reason` and `Skipped.detail`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def clean_prompt(text: str) -> str:
    """Reduce a prompt to the words on one line that reading the preference folder yields again.

    Raises:
        RowError: it cannot be written as UTF-8, or is too long.
    """
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise RowError(BAD_PROMPT) from None
    if size > MAX_PROMPT:
        raise RowError(BAD_PROMPT, f"{size:,} bytes")
    words = prompt_in(_INVISIBLE.sub(" ", text))
    # What is no prompt once it has been written must not reach the folder.
    return " ".join(words.split()) if prompt_in(words) else ""


def weight_of(value: object) -> float:
    """Read a weight; what is empty counts as 1.

    Raises:
        RowError: it is no number of 0 or more.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return 1.0
    try:
        weight = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise RowError(BAD_WEIGHT, str(value)[:80])
    return weight


def ranked_pairs(scores: Sequence[float], per_prompt: PerPrompt) -> Iterator[tuple[int, int]]:
    """Yield (chosen, rejected) indices of images of one prompt; ties yield nothing.

    Args:
        scores: one for each image, higher is better.
        per_prompt: 'best-worst' yields at most one pair, 'all' every two images of unlike scores.
    """
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    candidates = itertools.combinations(order, 2) if per_prompt == "all" else [(order[0], order[-1])]
    for better, worse in candidates:
        if scores[better] > scores[worse]:
            yield better, worse
