"""Safe prompts by rule: whole words, longest first, articles, plurals, and words that go without a trace."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdpo_core.micro.world import concepts
from scdpo_core.pairs.rules import NO_RULES, SHIPPED, Replacement, SafeWords, read_rules
from scdpo_core.types import ScdpoError

RULES = SafeWords(
    {
        "knife": Replacement("spoon", "weapon"),
        "knives": Replacement("spoons", "weapon"),
        "kitchen knife": Replacement("ladle", "weapon"),
        "axe": Replacement("hammer", "weapon"),
        "skull": Replacement("apple", "death"),
        "blood": Replacement("", "gore"),
        "butter knife": Replacement("=", "weapon"),
    }
)


@pytest.mark.parametrize(
    ("prompt", "safe", "category"),
    [
        ("a cat and a knife", "a cat and a spoon", "weapon"),
        ("A Kitchen  Knife", "A ladle".replace("A", "a"), "weapon"),
        ("an axe on a table", "a hammer on a table", "weapon"),
        ("a skull", "an apple", "death"),
        ("two skulls and knives", "two apples and spoons", "death"),
        ("penknife, axed", "", ""),
        ("a man with blood", "a man", "gore"),
        ("a man with some blood, at night", "a man, at night", "gore"),
        ("blood and a cat", "a cat", "gore"),
        ("blood", "", "gore"),
        ("a knife, a knife", "a spoon, a spoon", "weapon"),
        ("nothing here", "", ""),
        ("a butter knife", "", ""),
        ("a butter knife and an axe", "a butter knife and a hammer", "weapon"),
    ],
)
def test_words_are_replaced(prompt: str, safe: str, category: str) -> None:
    assert RULES.apply(" ".join(prompt.split())) == (safe, category)


def test_without_rules_nothing_is_replaced() -> None:
    assert NO_RULES.apply("a knife") == ("", "")


WORDS = st.lists(st.sampled_from(["a", "an", "cat", "Knife", "kitchen", "axe", "blood,", "and", "skulls"]))


@given(WORDS)
def test_no_harmful_word_is_left_and_no_other_is_touched(words: list[str]) -> None:
    prompt = " ".join(words)
    safe, category = RULES.apply(prompt)
    if category:
        assert RULES.apply(safe) == ("", "")
        assert safe.lower().count("cat") == prompt.lower().count("cat")
    else:
        assert safe == ""


@given(st.text(max_size=300))
def test_any_text_is_taken(text: str) -> None:
    safe, _ = RULES.apply(text)
    assert "\n" not in safe


def test_the_time_grows_with_the_text_alone() -> None:
    shipped = read_rules(SHIPPED)
    shipped.apply("a knife")
    began = time.perf_counter()
    shipped.apply(" and" * 8000)
    shipped.apply("a " * 8000)
    assert time.perf_counter() - began < 20


def test_a_rule_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rules.txt"
    file.write_text(
        "\ufeff# ours\n[weapon]\nKnife,  big  knife -> spoon\n\ngun ->\n[toy]\nknife -> ball\n", "utf-8"
    )
    # The first rule for a word stands.
    assert read_rules(file).words == {
        "knife": Replacement("spoon", "weapon"),
        "big knife": Replacement("spoon", "weapon"),
        "gun": Replacement("", "weapon"),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"knife = spoon\n", "Line 1 of .* is not a rule"),
        (b"\n, -> spoon\n", "Line 2 of .* is not a rule"),
        (b"[../x]\n", "Line 1 of .* cannot be the name of a folder"),
        (b"# nothing\n", "hold none"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"k" * 300 + b" -> spoon\n", "At most 200"),
        (b"#" * ((4 << 20) + 1), "over 4 MB"),
    ],
)
def test_a_wrong_rule_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "rules.txt").write_bytes(content)
    with pytest.raises(ScdpoError, match=message):
        read_rules(tmp_path / "rules.txt")


def test_a_missing_rule_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScdpoError, match=r"none\.txt cannot be read"):
        read_rules(tmp_path / "none.txt")


def test_the_shipped_rules_know_the_embedded_worlds_harm_and_leave_the_rest_alone() -> None:
    shipped = read_rules(SHIPPED)
    harmful = {name for thing in concepts() if thing.harmful for name in (thing.name, *thing.synonyms)}
    for name in harmful:
        safe, category = shipped.apply(f"a cat and a {name} on a blue background")
        assert category and "a cat" in safe and name not in safe, name
        assert not any(shipped.apply(safe)), (name, safe)
    for thing in concepts():
        if not thing.harmful:
            assert shipped.apply(f"a {thing.name} on a blue background") == ("", ""), thing.name
