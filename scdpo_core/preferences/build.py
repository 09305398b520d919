"""Preference pairs from drawn images: which two of them say something, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from ..io.files import write_text
from ..types import CostScore, PreferencePair, ScdpoError
from .folder import BENIGN_PROMPTS, SAFE_PROMPTS
from .writer import check_category, pair_files, write_files

Rule = Literal["safe against harmful", "less harmful wins", "as prompted"]
RULES: dict[Rule, str] = {
    "safe against harmful": "kept when the chosen image is harmless and the rejected one is not",
    "less harmful wins": "the image with the lower cost is chosen, kept when the costs differ by enough",
    "as prompted": "the image of the safe prompt is always chosen; costs decide nothing",
}
"""What makes two images a pair."""


@dataclass(frozen=True)
class Drawn:
    """An image and what it costs.

    Attributes:
        image: RGB.
        score: its cost.
        seed: of its noise.
    """

    image: Image.Image
    score: CostScore
    seed: int


@dataclass(frozen=True)
class Match:
    """Two images that make a pair, or the reason why they make none.

    Attributes:
        chosen: the preferred one.
        rejected: the other one.
        reason: '' for a pair.
    """

    chosen: Drawn
    rejected: Drawn
    reason: str = ""


def match(drawn: Sequence[Drawn], safe: Sequence[Drawn], rule: Rule, gap: float) -> list[Match]:
    """Put the images of one prompt together.

    With images of a safe prompt, those of the same place belong together. Without, the least harmful
    image stands against the most harmful one, the second against the second last, and so on.

    Args:
        drawn: the images of the prompt.
        safe: as many images of the safe prompt, with the same seeds; none to compare the prompt's own.
        rule: see RULES.
        gap: least difference of the costs, log-odds; not asked for by 'as prompted'.

    Raises:
        ScdpoError: an unknown rule, or one that needs a safe prompt.
    """
    check_rule(rule, bool(safe))
    if safe:
        return [_judged(good, bad, rule, gap) for bad, good in zip(drawn, safe, strict=True)]
    ranked = sorted(drawn, key=lambda one: one.score.value)
    return [_judged(ranked[k], ranked[-1 - k], rule, gap) for k in range(len(ranked) // 2)]


def check_rule(rule: str, safe_prompt: bool) -> None:
    """Check that a rule can pair the images of a prompt, before they are drawn.

    Args:
        rule: see RULES.
        safe_prompt: whether the prompt has a safe prompt beside it.

    Raises:
        ScdpoError: an unknown rule, or one that needs a safe prompt.
    """
    if rule not in RULES:
        raise ScdpoError(f"There is no rule '{rule}'. Choose one of: {', '.join(RULES)}.")
    if rule == "as prompted" and not safe_prompt:
        raise ScdpoError(
            "The rule 'as prompted' needs safe prompts: without them nothing says what to choose."
        )


def check_names(category: str, rule: str) -> None:
    """Check what can be checked of pairs before their prompts are known.

    Raises:
        ScdpoError: the category cannot be the name of a folder, or there is no such rule.
    """
    check_category(category)
    check_rule(rule, safe_prompt=True)


def _judged(good: Drawn, bad: Drawn, rule: Rule, gap: float) -> Match:
    if rule == "less harmful wins" and good.score.value > bad.score.value:
        good, bad = bad, good
    low, high = good.score.value, bad.score.value
    reason = f"costs {low:+.2f} and {high:+.2f}"
    if good.image.tobytes() == bad.image.tobytes():
        return Match(good, bad, "both images are the same")
    if rule == "safe against harmful" and not low <= 0 < high:
        return Match(good, bad, f"not a harmless and a harmful image: {reason}")
    if rule != "as prompted" and high - low < gap:
        return Match(good, bad, f"too close: {reason}")
    return Match(good, bad)


def prompts_of(text: str) -> list[str]:
    """Return a prompt a line; empty lines and lines that begin with # are left out."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def with_safe(prompts: Sequence[str], safe: Sequence[str]) -> list[tuple[str, str]]:
    """Return each prompt and its safe prompt, '' for none.

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


def write_pair(
    folder: Path, prompt: str, category: str, result: Match, safe_prompt: str = ""
) -> tuple[PreferencePair, bool]:
    """Write a pair into a preference folder; its name is derived from its content.

    Args:
        folder: with chosen/ and rejected/, which are made.
        prompt: that the images were made for.
        category: its subfolder; '' for none.
        found: the two images.
        safe_prompt: what is to be drawn instead, kept in safe_prompts/; '' for none.

    Returns:
        The pair, and whether it is new: the same pair is not written twice, and a half-written one is mended.

    Raises:
        ScdpoError: the category cannot be a folder's name, or the folder cannot be written to.
    """
    chosen, rejected = result.chosen.image, result.rejected.image
    files = pair_files(folder, prompt, category, chosen, rejected)
    pair = PreferencePair(
        files.stem, prompt, files.chosen, files.rejected, files.category, safe_prompt=safe_prompt
    )
    new = not files.complete
    if new:
        write_files(files, prompt, chosen, rejected)
    text = folder / SAFE_PROMPTS / f"{files.stem}.txt"
    if safe_prompt and not text.exists():
        try:
            write_text(text, f"{safe_prompt}\n")
        except OSError as error:
            raise ScdpoError(f"{text} cannot be written ({error.strerror or error}).") from error
    return pair, new


def write_benign_prompts(folder: Path, prompts: Sequence[str]) -> None:
    """List the harmless prompts of a preference folder for training, one a line, each once.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(folder / BENIGN_PROMPTS, "".join(f"{prompt}\n" for prompt in dict.fromkeys(prompts)))
