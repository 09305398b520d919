"""Importing tables: the columns of published data sets, hostile rows, many rows in flat memory."""

from __future__ import annotations

import base64
import builtins
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scdpo_core.importers.columns import parse_mapping
from scdpo_core.importers.grouping import ALONE
from scdpo_core.importers.images import MISSING, NO_IMAGE, ON_THE_NETWORK, OUTSIDE
from scdpo_core.importers.rows import BAD_WEIGHT, DAMAGED_ROW, MISSING_FIELD, TIE, RowError, clean_prompt
from scdpo_core.io.infotext import prompt_in
from scdpo_core.types import ScdpoError
from tests.support.import_sources import (
    holds,
    image_bytes,
    imported,
    pairs_in,
    pickapic_row,
    write_csv,
    write_image,
    write_jsonl,
    write_parquet,
)


def test_shards_of_pickapic_are_benign_pairs_and_ties_are_counted(tmp_path: Path) -> None:
    shards = tmp_path / "pickapic/data"
    write_parquet(shards / "train-00000-of-00002.parquet", [pickapic_row(0, 1), pickapic_row(1, 0)], 1)
    write_parquet(shards / "train-00001-of-00002.parquet", [pickapic_row(2, 0.5), pickapic_row(3, 0)])
    outcome = imported(tmp_path / "pickapic", tmp_path / "pairs")
    assert (outcome.state.format, outcome.state.imported) == ("pickapic", 3)
    assert outcome.state.skipped[TIE].count == 1
    first, second, last = sorted(pairs_in(tmp_path / "pairs"), key=lambda pair: pair.prompt)
    assert first.category == "benign" and first.prompt == "a castle number 0"
    assert holds(first, image_bytes(0, "JPEG"), image_bytes(1, "JPEG"))
    assert holds(second, image_bytes(3, "JPEG"), image_bytes(2, "JPEG"))
    assert last.prompt == "a castle number 3"


def test_without_labels_the_uid_of_the_best_image_decides(tmp_path: Path) -> None:
    rows = [pickapic_row(number, label) for number, label in enumerate((1.0, 0.0, 0.5))]
    for row in rows:
        del row["label_0"], row["label_1"]
    outcome = imported(write_parquet(tmp_path / "a.parquet", rows), tmp_path / "pairs")
    assert outcome.state.imported == 2 and outcome.state.skipped[TIE].count == 1
    one = next(pair for pair in pairs_in(tmp_path / "pairs") if pair.prompt.endswith("1"))
    assert holds(one, image_bytes(3, "JPEG"), image_bytes(2, "JPEG"))


def test_images_as_the_datasets_library_writes_them(tmp_path: Path) -> None:
    row = {"prompt": "a fox", "chosen": {"bytes": image_bytes(1), "path": None}}
    row["rejected"] = {"bytes": image_bytes(2, "WEBP"), "path": "x.webp"}
    imported(write_parquet(tmp_path / "a.parquet", [row]), tmp_path / "pairs")
    (pair,) = pairs_in(tmp_path / "pairs")
    assert holds(pair, image_bytes(1), image_bytes(2, "WEBP")) and pair.rejected.suffix == ".webp"


def test_invoke_training(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / f"data/images/{number}.jpg", number, "JPEG")
    rows = [
        {
            "prompt": "p",
            "image_0": "images/0.jpg",
            "image_1": "images/1.jpg",
            "prefer_0": False,
            "prefer_1": True,
        },
        {
            "prompt": "q",
            "image_0": "images/2.jpg",
            "image_1": "images/3.jpg",
            "prefer_0": False,
            "prefer_1": False,
        },
    ]
    write_jsonl(tmp_path / "data/metadata.jsonl", rows)
    outcome = imported(tmp_path / "data", tmp_path / "pairs", category="weapon")
    assert outcome.state.format == "labelled" and outcome.state.skipped[TIE].count == 1
    (pair,) = pairs_in(tmp_path / "pairs")
    assert pair.category == "weapon" and holds(pair, image_bytes(1, "JPEG"), image_bytes(0, "JPEG"))


def test_safetydpo_has_paths_in_the_columns_of_pickapic(tmp_path: Path) -> None:
    write_image(tmp_path / "set/unsafe/a.png", 1)
    write_image(tmp_path / "set/safe/a.png", 2)
    row = {"caption": "a fight, bloody", "jpg_0": "unsafe/a.png", "jpg_1": "safe/a.png", "label_0": 0}
    table = write_csv(tmp_path / "set/train.csv", [row | {"category": "Violence"}])
    outcome = imported(table, tmp_path / "pairs", format="safetydpo")
    (pair,) = pairs_in(tmp_path / "pairs")
    assert outcome.state.format == "labelled" and pair.category == "Violence"
    assert pair.prompt == "a fight, bloody" and holds(pair, image_bytes(2), image_bytes(1))


def test_hpd_version_2_trains_with_preferences_and_tests_with_ranks(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / f"hpd/train/{number}.jpg", number, "JPEG")
        write_image(tmp_path / f"hpd/test/{number}.jpg", number, "JPEG")
    train = [{"prompt": "p", "image_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1], "user_hash": "x"}]
    (tmp_path / "hpd/train.json").write_text(json.dumps(train))
    names = [f"{number}.jpg" for number in range(4)]
    test = [{"prompt": "q", "image_path": names, "rank": [2, 1, 4, 3], "raw_annotations": []}]
    (tmp_path / "hpd/test.json").write_text(json.dumps(test, indent=1))
    imported(tmp_path / "hpd/train.json", tmp_path / "train")
    (pair,) = pairs_in(tmp_path / "train")
    assert pair.category == "benign" and holds(pair, image_bytes(1, "JPEG"), image_bytes(0, "JPEG"))
    imported(tmp_path / "hpd/test.json", tmp_path / "best")
    (pair,) = pairs_in(tmp_path / "best")
    assert holds(pair, image_bytes(1, "JPEG"), image_bytes(2, "JPEG"))
    # Four images without a tie: 4 * 3 / 2 pairs.
    assert imported(tmp_path / "hpd/test.json", tmp_path / "all", per_prompt="all").state.imported == 6
    with pytest.raises(ScdpoError, match=r"several tables \(test\.json, train\.json\)"):
        imported(tmp_path / "hpd", tmp_path / "which")


def test_hpd_version_3_names_the_better_image_first(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.jpg", 1, "JPEG")
    write_image(tmp_path / "images/b.jpg", 2, "JPEG")
    rows = [{"prompt": "p", "path1": "images/a.jpg", "path2": "images/b.jpg", "confidence": 0.9}]
    rows += [rows[0] | {"tie_case": True}]
    outcome = imported(write_jsonl(tmp_path / "all.jsonl", rows), tmp_path / "pairs")
    (pair,) = pairs_in(tmp_path / "pairs")
    assert outcome.state.format == "hpd" and outcome.state.skipped[TIE].count == 1
    assert holds(pair, image_bytes(1, "JPEG"), image_bytes(2, "JPEG"))


def test_columns_of_any_name_weights_and_safe_prompts(tmp_path: Path) -> None:
    for number in range(6):
        write_image(tmp_path / f"i/{number}.png", number)
    rows = [
        {
            "Text": f"p{n}",
            "A": f"i/{2 * n}.png",
            "B": f"i\\{2 * n + 1}.png",
            "W": weight,
            "Safe": "q",
            "Kind": kind,
        }
        for n, (weight, kind) in enumerate((("2.5", "gore/blood"), ("", "../out"), ("heavy", "x")))
    ]
    table = write_csv(tmp_path / "mine.csv", rows)
    with pytest.raises(ScdpoError, match=r"--columns prompt=COLUMN"):
        imported(table, tmp_path / "pairs")
    mapping = parse_mapping(["chosen=A", "rejected=B", "weight=W", "safe_prompt=Safe", "category=Kind"])
    outcome = imported(table, tmp_path / "pairs", columns=mapping)
    assert outcome.state.skipped[BAD_WEIGHT].examples == ("mine.csv row 3: heavy",)
    plain, gore = sorted(pairs_in(tmp_path / "pairs"), key=lambda pair: pair.category)
    assert (gore.category, gore.weight, gore.safe_prompt) == ("gore-blood", 2.5, "q")
    # A name that cannot be a folder's costs the category, not the pair.
    assert (plain.category, plain.weight) == ("", 1.0) and sum(
        t.count for t in outcome.state.notes.values()
    ) == 1
    with pytest.raises(ScdpoError, match="There is no column 'C'"):
        imported(table, tmp_path / "others", columns={"chosen": "C"})
    with pytest.raises(ScdpoError, match="write MEANING=COLUMN"):
        parse_mapping(["nice=A"])


def rated(folder: Path, ratings: dict[str, tuple[str, str]]) -> Path:
    """Images with (prompt, rating) and the table."""
    for number, name in enumerate(ratings):
        write_image(folder / name, number)
        (folder / name).with_suffix(".txt").write_text(ratings[name][0])
    rows = [{"filename": name, "rating": rating} for name, (_, rating) in ratings.items()]
    return write_csv(folder / "ratings.csv", rows)


def test_ratings_of_images_that_carry_their_prompts(tmp_path: Path) -> None:
    table = rated(
        tmp_path,
        {
            "a.png": ("a fox", "5"),
            "b.png": ("a boat", "3"),
            "c.png": ("a fox", "1"),
            "d.png": ("a fox", "3"),
            "e.png": ("a boat", "3"),
            "f.png": ("a tree", "4"),
            "g.png": ("a tree", "good"),
        },
    )
    outcome = imported(table, tmp_path / "pairs")
    assert outcome.state.format == "ratings"
    (pair,) = pairs_in(tmp_path / "pairs")
    assert pair.prompt == "a fox" and holds(pair, image_bytes(0), image_bytes(2))
    counts = {reason: tally.count for reason, tally in outcome.state.skipped.items()}
    assert counts == {TIE: 1, ALONE: 1, MISSING_FIELD: 1}
    assert imported(table, tmp_path / "all", per_prompt="all").state.imported == 3


def test_images_in_base64_in_jsonl(tmp_path: Path) -> None:
    plain = base64.b64encode(image_bytes(1, side=64)).decode()
    address = "data:image/png;base64," + base64.b64encode(image_bytes(2)).decode()
    rows = [{"prompt": "a fox", "chosen": plain, "rejected": address}]
    imported(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "pairs")
    assert holds(pairs_in(tmp_path / "pairs")[0], image_bytes(1, side=64), image_bytes(2))


def test_paths_lead_nowhere_but_into_the_source(tmp_path: Path) -> None:
    secret = write_image(tmp_path / "secret.png", 9)
    write_image(tmp_path / "set/a.png", 1)
    (tmp_path / "set/link.png").symlink_to(secret)
    names = [
        "../secret.png",
        str(secret),
        "link.png",
        "b/../../secret.png",
        "..\\secret.png",
        "C:\\secret.png",
    ]
    names += ["https://example.invalid/a.png", "missing.png", "a.png\0", ".", "/dev/zero", "x" * 3000]
    rows = [{"prompt": "p", "chosen": name, "rejected": "a.png"} for name in names]
    outcome = imported(write_jsonl(tmp_path / "set/a.jsonl", rows), tmp_path / "pairs")
    counts = {reason: tally.count for reason, tally in outcome.state.skipped.items()}
    assert outcome.state.imported == 0 and sum(counts.values()) == len(names)
    assert counts[OUTSIDE] == 9 and counts[ON_THE_NETWORK] == 1 and counts[MISSING] == 2
    # An absolute name inside the source is a name like any other.
    rows = [{"prompt": "p", "chosen": str(tmp_path / "set/a.png"), "rejected": "c.png"}]
    write_image(tmp_path / "set/c.png", 2)
    assert imported(write_jsonl(tmp_path / "set/b.jsonl", rows), tmp_path / "others").state.imported == 1


def test_rows_that_cannot_be_read_cost_themselves_alone(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 1)
    write_image(tmp_path / "b.png", 2)
    good = json.dumps({"prompt": "a fox", "chosen": "a.png", "rejected": "b.png"}).encode()
    nul = json.dumps({"prompt": "a\0fox", "chosen": b"x".hex() * 9000, "rejected": "b.png"}).encode()
    lines = [
        good,
        b"{",
        b"[1]",
        b'{"prompt": "\xff", "chosen": "a.png", "rejected": "b.png"}',
        nul,
        b"[" * 99999,
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    outcome = imported(tmp_path / "a.jsonl", tmp_path / "pairs")
    assert outcome.state.imported == 1 and len(pairs_in(tmp_path / "pairs")) == 1
    assert outcome.state.skipped[DAMAGED_ROW].count == 3 and outcome.state.skipped[NO_IMAGE].count == 1


def test_a_damaged_parquet_file_says_so_and_a_missing_library_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(ScdpoError, match="damaged or no Parquet"):
        imported(tmp_path / "a.parquet", tmp_path / "pairs")
    real = builtins.__import__

    def without(name: str, *more: Any, **others: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *more, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ScdpoError, match="pip install pyarrow"):
        imported(tmp_path / "a.parquet", tmp_path / "pairs")


@given(st.text(max_size=200))
@settings(max_examples=300)
def test_a_prompt_that_was_cleaned_is_read_again_as_it_is(text: str) -> None:
    try:
        words = clean_prompt(text)
    except RowError:
        return
    assert (words == "") == (prompt_in(words) == "") and len(words.splitlines()) <= 1
    words.encode("utf-8")


def test_the_limit_of_csv_cells_is_the_process_s_own_again(tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "b.png")):
        write_image(tmp_path / name, number)
    row = {"prompt": "a cat", "chosen": "a.png", "rejected": "b.png"}
    before = csv.field_size_limit()
    imported(write_csv(tmp_path / "pairs.csv", [row]), tmp_path / "out")
    assert csv.field_size_limit() == before
