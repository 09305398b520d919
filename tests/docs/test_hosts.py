"""The tables of tested hosts are what the host suites recorded, and hosts tell who they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts.record import BEGIN, END, PAGES, identify, read, with_table


@pytest.mark.parametrize("suite", list(PAGES))
def test_the_docs_have_what_was_recorded(suite: str) -> None:
    page = PAGES[suite].read_text("utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert with_table(page, suite) == page


def test_every_recorded_suite_ran_on_a_host_that_is_known() -> None:
    entries = read()
    assert {entry.host for entry in entries} <= {"ComfyUI", "A1111", "Forge", "Forge Neo"}
    assert all(entry.passed > 0 for entry in entries)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"comfyui_version.py": '__version__ = "0.33.0"\n'}, ("ComfyUI", "0.33.0")),
        (
            {"modules_forge/forge_version.py": 'version = "neo"\nrelease = "2.26"\n'},
            ("Forge Neo", "2.26"),
        ),
        ({"modules_forge/forge_version.py": "version = 'f2.0.1v1.10.1'\n"}, ("Forge", "f2.0.1v1.10.1")),
        ({"CHANGELOG.md": "## 1.10.1\n\n## 1.10.0\n", "modules/processing.py": ""}, ("A1111", "1.10.1")),
    ],
)
def test_a_host_is_known_by_its_own_files(
    tmp_path: Path, files: dict[str, str], expected: tuple[str, str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    assert identify(tmp_path) == expected


def test_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "CHANGELOG.md").write_text("## 2.0\n", "utf-8")
    with pytest.raises(ValueError, match="no host that is known"):
        identify(tmp_path)
