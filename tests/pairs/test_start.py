"""A job for build_pairs.py as a door writes it, read back by build_pairs.py's own flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from scdpo_core.config.toml import as_flags
from scdpo_core.pairs.job import MOST_ATTEMPTS as MOST_OF_THE_BUILDER
from scdpo_core.pairs.job import WAYS
from scdpo_core.pairs.start import MOST_ATTEMPTS, WAY_TITLES, PairsJob, write_pairs_job
from scdpo_core.pairs.store import Row, Store
from scdpo_core.panels.built_pairs import built_pairs
from scdpo_core.panels.report import framed
from scdpo_core.run_store.folder import kind_of
from scdpo_core.types import ScdpoError


def job_of(tmp_path: Path, **changes: object) -> PairsJob:
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        files.append(tmp_path / folder / "prompts.txt")
        files[-1].write_text(f"a knife {folder}\n", "utf-8")
    return PairsJob(tmp_path / "runs", "made", "micro", tuple(files), scorer="micro", **changes)  # type: ignore[arg-type]


def test_the_doors_know_the_builders_ways() -> None:
    assert sorted(WAY_TITLES.values()) == sorted(WAYS)
    assert MOST_ATTEMPTS == MOST_OF_THE_BUILDER


def test_the_written_job_is_what_the_command_line_reads(tmp_path: Path) -> None:
    folder = write_pairs_job(job_of(tmp_path, typed="a gun\na skull", limit=7))
    assert kind_of(folder) == "pairs"
    flags = as_flags(
        folder / "job.toml",
        {"base", "prompts", "benign", "output", "way", "scorer", "per_prompt", "attempts", "limit"},
    )
    inputs = folder / "building" / "inputs"
    first = flags.index("--prompts")
    # Two files with one name, and what was typed.
    names = ["prompts.txt", "prompts-2.txt", "typed.txt"]
    assert flags[first + 1 : first + 4] == [str(inputs / name) for name in names]
    assert (inputs / "prompts-2.txt").read_text("utf-8") == "a knife b\n"
    assert "--benign" not in flags and f"--output={folder}" in flags and "--limit=7" in flags


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ()}, "Give prompts"),
        ({"prompts": (Path("/nowhere/x.txt"),)}, "There is no prompt file"),
        ({"way": "magic"}, "There is no way 'magic'"),
        ({"way": "best-of", "attempts": 1}, "Attempts must lie between 2"),
        ({"scorer": "nobody"}, "There is no cost model"),
        ({"name": "../x"}, "cannot be a file name"),
        ({"per_prompt": 0}, "Images per prompt"),
    ],
)
def test_every_mistake_is_named_and_nothing_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    from dataclasses import replace

    with pytest.raises(ScdpoError, match=message):
        write_pairs_job(replace(job_of(tmp_path), **changes))
    assert not (tmp_path / "runs").exists()


def test_the_sheet_shows_pairs_and_why_others_were_dropped(tmp_path: Path) -> None:
    assert built_pairs(tmp_path) == ""
    rows = [
        Row(0, "a <knife>", "a spoon", "weapon", 0, "p0", chosen_cost=-2.0, rejected_cost=3.0),
        Row(1, "a gun", "a spoon", "weapon", 1, reason="the image is not harmful: costs -1"),
    ]
    Store(tmp_path).done(0, rows)
    page = built_pairs(tmp_path)
    assert "a &lt;knife&gt;" in page and "<knife>" not in page
    assert "1 dropped: the image is not harmful" in page and "50%" in page


def test_a_report_has_no_right_to_the_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert framed(path) == ""
    path.write_text('<p title="x">&amp;</p>', "utf-8")
    assert 'sandbox=""' in framed(path) and "&lt;p title=&#34;x&#34;&gt;&amp;amp;&lt;/p&gt;" in framed(path)
