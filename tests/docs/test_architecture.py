"""The pages for developers name files, packages and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("CONTRIBUTING.md", "docs/architecture.md")
TOPS = tuple(path.name for path in ROOT.iterdir())


def paths_in(text: str) -> set[str]:
    """Paths in code spans and fences whose first part is a file or folder of the repository."""
    code = " ".join(re.findall(r"`([^`\n]+)`", text) + re.findall(r"^    (.+)$", text, re.MULTILINE))
    words = re.findall(r"[\w./-]+", code)
    return {word.rstrip(".") for word in words if "/" in word and word.split("/")[0] in TOPS}


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str) -> None:
    found = paths_in((ROOT / page).read_text("utf-8"))
    assert found
    assert [path for path in sorted(found) if not (ROOT / path).exists()] == []


def test_every_package_of_the_core_has_its_row() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    packages = [path.parent.name for path in (ROOT / "scdpo_core").glob("*/__init__.py")]
    assert len(packages) > 10
    assert [name for name in packages if f"`{name}/`" not in text] == []


def test_a_path_that_is_not_there_would_be_seen() -> None:
    assert paths_in("see `scdpo_core/no_such.py`, `docs/`\n\n    python trainer/lora.py x\n") == {
        "scdpo_core/no_such.py",
        "docs/",
        "trainer/lora.py",
    }
