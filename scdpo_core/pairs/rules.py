"""Safe prompts by rule: harmful words of a prompt, and what is to be drawn in their place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..io.infotext import plain
from ..preferences.writer import check_category
from ..types import ScdpoError

SHIPPED = Path(__file__).with_name("safe_words.txt")
"""Rules for common harms. Ours."""

STAYS = "="
"""Instead of a word: it is harmless though a harmful one is part of it, as in 'butter knife'."""

_MOST_BYTES = 4 << 20
_LONGEST = 200
# What stands between a word that goes and the one before it goes along.
_JOINER = r"(?:\s*(?:,|\band\b|\bwith\b|\bholding\b|\bnext to\b|\bbeside\b))?\s*"
_ARTICLE = r"\b(?:an?|the|some)\s+"
_LEADING = re.compile(r"^\s*(?:,|and\b|with\b|holding\b|next to\b|beside\b)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Replacement:
    """What stands in a word's place.

    Attributes:
        words: '' for nothing, '=' for the word itself.
        category: kind of harm of the word; '' for none said.
    """

    words: str
    category: str = ""


@dataclass(frozen=True)
class SafeWords:
    """Rules that make a safe prompt of a harmful one.

    Attributes:
        words: by harmful word or words, lower case, single spaces between.
    """

    words: Mapping[str, Replacement]

    def apply(self, prompt: str) -> tuple[str, str]:
        """Replace the harmful words of a prompt.

        Args:
            prompt: on one line.

        Returns:
            The safe prompt, and the category of the first harmful word. '' and '' where no rule fits; an
            empty safe prompt where nothing is left of it.
        """
        matches = self._pattern.finditer(prompt) if self.words else ()
        entries = (self._entry(match)[0] for match in matches)
        first = next((entry for entry in entries if entry.words != STAYS), None)
        if first is None:
            return "", ""
        text = self._pattern.sub(self._replaced, prompt)
        safe = plain(_LEADING.sub("", text))
        return safe, first.category

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # The longest first: alternatives are tried in their order.
        names = sorted(self.words, key=lambda name: (-len(name), name))
        any_word = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in names)
        return re.compile(
            rf"(?P<joiner>{_JOINER})(?P<article>{_ARTICLE})?(?<!\w)(?P<word>{any_word})(?P<plural>e?s)?(?!\w)",
            re.IGNORECASE,
        )

    def _entry(self, match: re.Match[str]) -> tuple[Replacement, str]:
        """Return the rule for what was found, and the plural's ending that it does not name itself."""
        return self.words[" ".join(match["word"].lower().split())], match["plural"] or ""

    def _replaced(self, match: re.Match[str]) -> str:
        entry, plural = self._entry(match)
        if entry.words == STAYS:
            return match[0]
        if not entry.words:
            return " "
        article = match["article"] or ""
        if article.strip().lower() in ("a", "an"):
            article = f"{'an' if entry.words[0].lower() in 'aeiou' else 'a'} "
        ending = "s" if plural and not entry.words.endswith("s") else ""
        return f"{match['joiner']}{article}{entry.words}{ending}"


NO_RULES = SafeWords({})


def read_rules(path: Path) -> SafeWords:
    """Read a rule file; `safe_words.txt` beside this module says how one is written.

    Raises:
        ScdpoError: it cannot be read, or a line is no rule; names the line.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ScdpoError(f"The rules {path} cannot be read ({error.strerror}). Check the path.") from error
    except UnicodeDecodeError as error:
        raise ScdpoError(f"The rules {path} are not UTF-8 text. Save them as UTF-8.") from error
    if len(content) > _MOST_BYTES:
        raise ScdpoError(f"The rules {path} are over 4 MB. Give a list of some hundred words.")
    rules: dict[str, Replacement] = {}
    category = ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"Line {number} of {path}"
        if line.startswith("[") and line.endswith("]"):
            try:
                category = check_category(line[1:-1])
            except ScdpoError as error:
                raise ScdpoError(f"{where}: {error}") from error
            continue
        words, arrow, instead = line.partition("->")
        names = [" ".join(word.lower().split()) for word in words.split(",")]
        if not arrow or not all(names) or max(map(len, [*names, instead])) > _LONGEST:
            raise ScdpoError(
                f"{where} is not a rule. Write: word, word -> replacement. At most {_LONGEST} letters each."
            )
        for name in names:
            # The first one stands: a general entry further down does not take it back.
            rules.setdefault(name, Replacement(" ".join(instead.split()), category))
    if not rules:
        raise ScdpoError(f"The rules {path} hold none. Write: knife, knives -> spoon")
    return SafeWords(rules)
