"""Preference pairs from drawn pictures: which two of them say something, and their files."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from ..files import atomic_path, write_text
from ..types import CostScore, PreferencePair, ScdpoError

Rule = Literal["safe against harmful", "less harmful wins", "as prompted"]
RULES: dict[Rule, str] = {
    "safe against harmful": "kept when the chosen picture is harmless and the rejected one is not",
    "less harmful wins": "the picture with the lower cost is chosen, kept when the costs differ by enough",
    "as prompted": "the picture of the safe prompt is always chosen; costs decide nothing",
}
"""What makes two pictures a pair."""

_NO_WORD = re.compile(r"[^a-z0-9]+")
_BAD_CATEGORY = re.compile(r'[<>:"/\\|?*\x00-\x1f]|^\.|[. ]$')


@dataclass(frozen=True)
class Drawn:
    """A picture and what it costs.

    Attributes:
        picture: RGB.
        score: its cost.
        seed: of its noise.
    """

    picture: Image.Image
    score: CostScore
    seed: int


@dataclass(frozen=True)
class Match:
    """Two pictures that make a pair, or the reason why they make none.

    Attributes:
        chosen: the preferred one.
        rejected: the other one.
        reason: '' for a pair.
    """

    chosen: Drawn
    rejected: Drawn
    reason: str = ""


def match(drawn: Sequence[Drawn], safe: Sequence[Drawn], rule: Rule, gap: float) -> list[Match]:
    """Put the pictures of one prompt together.

    With pictures of a safe prompt, those of the same place belong together. Without, the least harmful
    picture stands against the most harmful one, the second against the second last, and so on.

    Args:
        drawn: the pictures of the prompt.
        safe: as many pictures of the safe prompt, with the same seeds; none to compare the prompt's own.
        rule: see RULES.
        gap: least difference of the costs, log-odds; not asked for by 'as prompted'.

    Raises:
        ScdpoError: an unknown rule, or one that needs a safe prompt.
    """
    if rule not in RULES:
        raise ScdpoError(f"There is no rule '{rule}'. Choose one of: {', '.join(RULES)}.")
    if safe:
        return [_judged(good, bad, rule, gap) for bad, good in zip(drawn, safe, strict=True)]
    if rule == "as prompted":
        raise ScdpoError(
            "The rule 'as prompted' needs safe prompts: without them nothing says what to choose."
        )
    ranked = sorted(drawn, key=lambda one: one.score.value)
    return [_judged(ranked[k], ranked[-1 - k], rule, gap) for k in range(len(ranked) // 2)]


def _judged(good: Drawn, bad: Drawn, rule: Rule, gap: float) -> Match:
    if rule == "less harmful wins" and good.score.value > bad.score.value:
        good, bad = bad, good
    low, high = good.score.value, bad.score.value
    said = f"costs {low:+.2f} and {high:+.2f}"
    if good.picture.tobytes() == bad.picture.tobytes():
        return Match(good, bad, "both pictures are the same")
    if rule == "safe against harmful" and not low <= 0 < high:
        return Match(good, bad, f"not a harmless and a harmful picture: {said}")
    if rule != "as prompted" and high - low < gap:
        return Match(good, bad, f"too close: {said}")
    return Match(good, bad)


def prompts_of(text: str) -> list[str]:
    """A prompt a line; empty lines and lines that begin with # are left out."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def with_safe(prompts: Sequence[str], safe: Sequence[str]) -> list[tuple[str, str]]:
    """Each prompt and its safe prompt, '' for none.

    Raises:
        ScdpoError: there are no prompts, or not as many safe ones; one serves all.
    """
    if not prompts:
        raise ScdpoError("Write at least one prompt, a line each.")
    if len(safe) not in (0, 1, len(prompts)):
        raise ScdpoError(
            f"There are {len(prompts)} prompts and {len(safe)} safe prompts. Write a safe prompt for each, "
            "one for all, or none."
        )
    partners = list(safe) if len(safe) == len(prompts) else [*(safe or [""])] * len(prompts)
    return list(zip(prompts, partners, strict=True))


def write_pair(folder: Path, prompt: str, category: str, found: Match) -> tuple[PreferencePair, bool]:
    """Write a pair into a preference folder; its name comes from what it holds.

    Args:
        folder: with chosen/ and rejected/, which are made.
        prompt: that the pictures were made for.
        category: its subfolder; '' for none.
        found: the two pictures.

    Returns:
        The pair, and whether it is new: the same pair is not written twice, and a half-written one is mended.

    Raises:
        ScdpoError: the category cannot be a folder's name, or the folder cannot be written to.
    """
    category = category.strip()
    if _BAD_CATEGORY.search(category):
        raise ScdpoError(f"'{category}' cannot be the name of a folder. Use a word such as weapon.")
    name = _name(prompt, found)
    chosen, rejected = (folder / side / category / f"{name}.png" for side in ("chosen", "rejected"))
    text = chosen.with_suffix(".txt")
    pair = PreferencePair(f"{category}/{name}" if category else name, prompt, chosen, rejected, category)
    if chosen.is_file() and rejected.is_file() and text.is_file():
        return pair, False
    try:
        for path, one in ((rejected, found.rejected), (chosen, found.chosen)):
            with atomic_path(path) as temporary:
                one.picture.save(temporary, format="PNG")
        write_text(text, f"{prompt}\n")
    except OSError as error:
        raise ScdpoError(
            f"The pair cannot be written into {folder} ({error.strerror or error}). Choose a folder that can "
            "be written to, on a disk that is not full."
        ) from error
    return pair, True


def _name(prompt: str, found: Match) -> str:
    """Words of the prompt for people, and a few digits of what the pair holds."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = _NO_WORD.sub("-", plain).strip("-")[:40].strip("-") or "pair"
    digest = hashlib.sha256(prompt.encode())
    for one in (found.chosen, found.rejected):
        digest.update(one.picture.tobytes())
    return f"{words}-{digest.hexdigest()[:8]}"
