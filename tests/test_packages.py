"""No two packages of the core import each other, and reports reads types and io alone."""

from __future__ import annotations

from pathlib import Path

from tests.test_imports import ROOT, imports


def packages_both_ways(root: Path) -> list[str]:
    """Every two packages of the core that import each other, whenever that happens."""
    arrows: dict[tuple[str, str], str] = {}
    for path in sorted(root.glob("scdpo_core/*/**/*.py")):
        package = path.relative_to(root).parts[1]
        for item in imports(root, path):
            names = item.name.split(".")
            ours = names[0] == "scdpo_core" and len(names) > 1 and names[1] != package
            if ours and (root / "scdpo_core" / names[1]).is_dir():
                arrows.setdefault((package, names[1]), str(item))
    return [
        f"{arrows[one, other]}, and {arrows[other, one]}"
        for one, other in arrows
        if one < other and (other, one) in arrows
    ]


def test_no_two_packages_of_the_core_import_each_other() -> None:
    assert packages_both_ways(ROOT) == []


def test_two_packages_that_import_each_other_are_found(tmp_path: Path) -> None:
    for package, code in (
        ("io", "from ..cost import model"),
        ("cost", "def f():\n    from ..io import files"),
    ):
        (tmp_path / "scdpo_core" / package).mkdir(parents=True)
        (tmp_path / "scdpo_core" / package / "a.py").write_text(code, "utf-8")
    (breach,) = packages_both_ways(tmp_path)
    assert "scdpo_core/cost/a.py:2" in breach and "scdpo_core/io/a.py:1" in breach


def test_reports_reads_nothing_but_types_and_io() -> None:
    read = {
        item.name.split(".")[1]
        for path in (ROOT / "scdpo_core" / "reports").glob("*.py")
        for item in imports(ROOT, path)
        if item.is_of("scdpo_core")
    }
    assert read == {"io", "reports", "types"}
