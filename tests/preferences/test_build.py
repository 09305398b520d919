"""Pairs from drawn images: which ones are kept, and what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scdpo_core.preferences.build import (
    RULES,
    Drawn,
    Match,
    match,
    prompts_of,
    with_safe,
    write_pair,
)
from scdpo_core.preferences.folder import check_folder
from scdpo_core.types import CostScore, ScdpoError


def drawn(cost: float, seed: int = 0) -> Drawn:
    """An image whose colour tells its cost and seed."""
    colour = (int(128 + 10 * cost) % 256, seed % 256, 7)
    return Drawn(Image.new("RGB", (8, 8), colour), CostScore(cost, {}, "test", "0" * 12), seed)


def costs(found: Match) -> tuple[float, float]:
    return found.chosen.score.value, found.rejected.score.value


def test_safe_against_harmful_keeps_only_pairs_on_both_sides_of_zero() -> None:
    bad = [drawn(2.0, 0), drawn(-1.0, 1), drawn(3.0, 2), drawn(0.4, 3)]
    good = [drawn(-2.0, 0), drawn(-2.0, 1), drawn(1.0, 2), drawn(-0.4, 3)]
    found = match(bad, good, "safe against harmful", 1.0)
    assert [costs(one) for one in found] == [(-2.0, 2.0), (-2.0, -1.0), (1.0, 3.0), (-0.4, 0.4)]
    assert [one.reason for one in found] == [
        "",
        "not a harmless and a harmful image: costs -2.00 and -1.00",
        "not a harmless and a harmful image: costs +1.00 and +3.00",
        "too close: costs -0.40 and +0.40",
    ]


def test_the_less_harmful_one_wins_whichever_prompt_it_was_drawn_for() -> None:
    found = match([drawn(-1.0)], [drawn(2.0, 1)], "less harmful wins", 1.0)
    assert [costs(one) for one in found] == [(-1.0, 2.0)] and not found[0].reason


def test_as_prompted_trusts_the_prompts_alone() -> None:
    (found,) = match([drawn(-3.0)], [drawn(3.0, 1)], "as prompted", 9.0)
    assert costs(found) == (3.0, -3.0) and not found.reason


def test_without_safe_prompts_the_best_stands_against_the_worst() -> None:
    found = match(
        [drawn(c, k) for k, c in enumerate((1.0, -2.0, 4.0, 0.0, 0.5))], [], "less harmful wins", 0.0
    )
    # Sorted -2, 0, 0.5, 1, 4: the one in the middle has no partner.
    assert [costs(one) for one in found] == [(-2.0, 4.0), (0.0, 1.0)]


def test_two_equal_images_are_no_pair() -> None:
    (found,) = match([drawn(1.0)], [drawn(1.0)], "as prompted", 0.0)
    assert found.reason == "both images are the same"


def test_rules_that_cannot_be_followed_say_so() -> None:
    with pytest.raises(ScdpoError, match="needs safe prompts"):
        match([drawn(1.0)], [], "as prompted", 0.0)
    with pytest.raises(ScdpoError, match=r"There is no rule 'best'\. Choose one of: safe against harmful"):
        match([drawn(1.0)], [], "best", 0.0)  # type: ignore[arg-type]


# A busy machine draws its inputs slowly, which says nothing of the code.
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=9),
    st.sampled_from([rule for rule in RULES if rule != "as prompted"]),
    st.floats(0, 5),
)
def test_what_is_kept_keeps_its_rule(values: list[float], rule: str, gap: float) -> None:
    found = match([drawn(value, k) for k, value in enumerate(values)], [], rule, gap)  # type: ignore[arg-type]
    assert len(found) == len(values) // 2
    for one in found:
        low, high = costs(one)
        assert low <= high
        if not one.reason:
            assert high - low >= gap
            assert rule != "safe against harmful" or low <= 0 < high


def test_prompts_are_lines() -> None:
    assert prompts_of("  a  gun\n\n# not this\n蛇\r\n") == ["a gun", "蛇"]


def test_safe_prompts_are_one_each_or_one_for_all_or_none() -> None:
    assert with_safe(["a", "b"], ["x", "y"]) == [("a", "x"), ("b", "y")]
    assert with_safe(["a", "b"], ["x"]) == [("a", "x"), ("b", "x")]
    assert with_safe(["a", "b"], []) == [("a", ""), ("b", "")]
    with pytest.raises(ScdpoError, match="3 prompts and 2 safe prompts"):
        with_safe(["a", "b", "c"], ["x", "y"])
    with pytest.raises(ScdpoError, match="at least one prompt"):
        with_safe([], ["x"])


def test_pairs_are_written_once_and_read_back(tmp_path: Path) -> None:
    good, bad = drawn(-2.0, 1), drawn(2.0, 2)
    pair, new = write_pair(tmp_path, "A gun, on a table!", "weapon", Match(good, bad))
    assert new and pair.id.startswith("weapon/a-gun-on-a-table-")
    assert write_pair(tmp_path, "A gun, on a table!", "weapon", Match(good, bad)) == (pair, False)
    other, new = write_pair(tmp_path, "A gun, on a table!", "weapon", Match(bad, good))
    assert new and other.id != pair.id
    plain, _ = write_pair(tmp_path, "蛇", "", Match(good, bad))
    assert plain.id.startswith("pair-") and plain.category == ""
    read = check_folder(tmp_path)
    assert {each.id: each for each in read} == {each.id: each for each in (pair, other, plain)}
    with Image.open(pair.chosen) as image:
        assert image.getpixel((0, 0)) == good.image.getpixel((0, 0))


def test_a_safe_prompt_is_kept_beside_its_pair_and_an_old_one_stays(tmp_path: Path) -> None:
    found = Match(drawn(-2.0), drawn(2.0))
    first, new = write_pair(tmp_path, "a gun", "weapon", found, "a vase")
    assert new and (tmp_path / "safe_prompts" / f"{first.id}.txt").read_text("utf-8") == "a vase\n"
    assert [pair.safe_prompt for pair in check_folder(tmp_path)] == ["a vase"]
    write_pair(tmp_path, "a gun", "weapon", found, "a bowl")
    assert [pair.safe_prompt for pair in check_folder(tmp_path)] == ["a vase"]
    # Pairs that were made before safe prompts were kept get theirs.
    second = Match(drawn(-3.0), drawn(3.0))
    write_pair(tmp_path, "a gun", "weapon", second)
    write_pair(tmp_path, "a gun", "weapon", second, "a bowl")
    assert sorted(pair.safe_prompt for pair in check_folder(tmp_path)) == ["a bowl", "a vase"]


def test_a_half_written_pair_is_mended(tmp_path: Path) -> None:
    found = Match(drawn(-2.0, 1), drawn(2.0, 2))
    pair, _ = write_pair(tmp_path, "a gun", "", found)
    pair.chosen.unlink()
    assert write_pair(tmp_path, "a gun", "", found) == (pair, True)
    assert check_folder(tmp_path) == [pair]


@pytest.mark.parametrize("category", ["../up", "a/b", "a:b", ".hidden"])
def test_a_category_is_a_folders_name(tmp_path: Path, category: str) -> None:
    with pytest.raises(ScdpoError, match="cannot be the name of a folder"):
        write_pair(tmp_path, "a gun", category, Match(drawn(-2.0), drawn(2.0)))
    assert not any(tmp_path.iterdir())
