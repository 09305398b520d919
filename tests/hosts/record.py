"""What ran on which real host: written by the host suites, and turned into the tables of the docs.

    RECORD_HOSTS=1 COMFYUI_DIR=... COMFYUI_PYTHON=... python -m pytest -m "" tests/hosts/comfyui
    python -m tests.hosts.record        writes the tables of docs/comfyui.md and docs/webui.md

A suite is recorded as a whole only: its entry says how many tests passed, were skipped and failed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tests" / "data" / "hosts.json"
BEGIN, END = "<!-- hosts: python -m tests.hosts.record -->", "<!-- /hosts -->"
PACKAGES = ("comfyui-frontend-package", "torch", "gradio", "pydantic")
PAGES = {"comfyui": ROOT / "docs" / "comfyui.md", "webui": ROOT / "docs" / "webui.md"}


@dataclass(frozen=True)
class Entry:
    """A host suite that ran.

    Attributes:
        suite: 'comfyui' or 'webui'.
        host: name of the program.
        version: of it.
        python: version of its Python.
        packages: versions of those of PACKAGES that it has.
        day: ISO date of the run.
        passed: number of tests.
        skipped: number of tests, where a host lacks what they are about.
        failed: number of tests.
    """

    suite: str
    host: str
    version: str
    python: str
    packages: Mapping[str, str]
    day: str
    passed: int
    skipped: int
    failed: int


class Recorder:
    """A pytest plugin that counts the tests of a host suite and writes its entry."""

    def __init__(self, suite: str, folder: Path, python: str) -> None:
        """Record a suite on the host in `folder`, which runs with `python`."""
        self._suite, self._folder, self._python = suite, folder, python
        self._counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: by its call, or by what kept it from being called."""
        below = f"tests/hosts/{self._suite}/" in report.nodeid
        if below and (report.when == "call" or report.outcome != "passed"):
            self._counts[report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        """Write the entry."""
        counts = self._counts
        if not counts["passed"]:
            return
        host, version = identify(self._folder)
        write(
            Entry(
                self._suite,
                host,
                version,
                *_python_versions(self._python),
                date.today().isoformat(),
                counts["passed"],
                counts["skipped"],
                counts["failed"],
            )
        )


def recorder(suite: str, folder: str, python: str) -> Recorder | None:
    """Return the plugin, where RECORD_HOSTS asks for it and a host is named."""
    return Recorder(suite, Path(folder), python) if folder and os.environ.get("RECORD_HOSTS") else None


def identify(folder: Path) -> tuple[str, str]:
    """Return name and version of the program in a folder, as its own files say.

    Raises:
        ValueError: it is none that is known here.
    """
    comfyui, forge = folder / "comfyui_version.py", folder / "modules_forge" / "forge_version.py"
    if comfyui.is_file():
        return "ComfyUI", _assigned(comfyui, "__version__")
    if forge.is_file():
        version = _assigned(forge, "version")
        return ("Forge Neo", _assigned(forge, "release")) if version == "neo" else ("Forge", version)
    changes = folder / "CHANGELOG.md"
    match = re.search(r"^## ([\d.]+)", changes.read_text("utf-8"), re.M) if changes.is_file() else None
    if match is None or not (folder / "modules" / "processing.py").is_file():
        raise ValueError(f"{folder} holds no host that is known here.")
    return "A1111", match[1]


def _assigned(file: Path, name: str) -> str:
    match = re.search(rf"^{name} *= *['\"]([^'\"]+)['\"]", file.read_text("utf-8"), re.M)
    if match is None:
        raise ValueError(f"{file} assigns no {name}.")
    return match[1]


def _python_versions(python: str) -> tuple[str, dict[str, str]]:
    code = (
        "import json, platform, importlib.metadata as m\n"
        "def v(n):\n try: return m.version(n)\n except m.PackageNotFoundError: return ''\n"
        f"print(json.dumps([platform.python_version(), {{n: v(n) for n in {PACKAGES!r} if v(n)}}]))"
    )
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    version, packages = json.loads(found.stdout)
    return version, packages


def read() -> list[Entry]:
    """Return all entries, newest version of each host first."""
    rows = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else []
    return [Entry(**row) for row in rows]


def write(entry: Entry) -> None:
    """Put an entry in the place of the one for the same host and version."""
    others = [old for old in read() if (old.host, old.version) != (entry.host, entry.version)]
    entries = sorted([*others, entry], key=_newest_first)
    FILE.write_text(json.dumps([asdict(each) for each in entries], indent=1) + "\n", "utf-8")


def _newest_first(entry: Entry) -> tuple[Any, ...]:
    return entry.suite, entry.host, [-int(number) for number in re.findall(r"\d+", entry.version)]


def table(suite: str) -> str:
    """Return the docs' table of a suite, in Markdown."""
    lines = [
        "| host | version | its packages | last run | passed | not for this host | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in (each for each in read() if each.suite == suite):
        packages = [f"Python {entry.python}"]
        packages += [f"{name.removesuffix('-package')} {value}" for name, value in entry.packages.items()]
        cells = [entry.host, entry.version, ", ".join(packages), entry.day]
        lines.append(f"| {' | '.join([*cells, *map(str, (entry.passed, entry.skipped, entry.failed))])} |")
    return "\n".join(lines)


def with_table(page: str, suite: str) -> str:
    """Return a page with its table as the records have it now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(suite)}\n{END}{after}"


def main() -> int:
    """Write the tables."""
    for suite, path in PAGES.items():
        path.write_text(with_table(path.read_text("utf-8"), suite), "utf-8")
        print(f"{path.relative_to(ROOT)}: {len(table(suite).splitlines()) - 2} hosts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
