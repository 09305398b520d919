"""Which Python trains: real environments with packages that are nothing but their names."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import gettempdir

import pytest

import install
from scdpo_core.run_store.file_lock import exclusive
from scdpo_core.run_store.process import look
from scdpo_core.runs import interpreter
from scdpo_core.runs.interpreter import Interpreter, find, lacking, prepare, requirements, satisfies
from scdpo_core.types import ScdpoError
from tests.support.runs_helpers import ROOT, until

PROJECT = """
[project]
name = "scdpo"
dependencies = ["torch>=2.1", "backport>=1; python_version < '3.4'"]
[project.optional-dependencies]
train = ["peft>=0.18", "torch>=2.6"]
"""
# Makes .venv with what training needs, and tells of it; or does not.
INSTALL = """
import subprocess, sys, time
from pathlib import Path
venv = Path(__file__).parent / ".venv"
print("1/4 an environment", sys.argv[1:], flush=True)
if (venv.parent / "broken").exists():
    print("The disk is full.", file=sys.stderr)
    sys.exit(1)
subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
site = next(venv.glob("**/site-packages"))
for name, version in (("torch", "2.9.0+cpu"), ("peft", "0.18.1")):
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
print("ready", flush=True)
"""


def environment(place: Path, **packages: str) -> Path:
    """A Python that has nothing but these packages; returns the program."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    site = next(place.glob("**/site-packages"))
    for name, version in packages.items():
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.fixture(name="project")
def _project(tmp_path: Path) -> Path:
    project = tmp_path / "my project"
    project.mkdir()
    (project / "pyproject.toml").write_text(PROJECT, "utf-8")
    (project / "install.py").write_text(INSTALL, "utf-8")
    return project


def test_a_host_that_has_everything_trains_itself(tmp_path: Path, project: Path) -> None:
    host = environment(tmp_path / "host", torch="2.6.0", peft="0.20.0.dev1")
    assert find(host, project) == Interpreter(host, "host", interpreter._flags())
    told: list[str] = []
    assert prepare(told.append, host, project).python == host and told == []


def test_what_is_lacking_is_named(tmp_path: Path, project: Path) -> None:
    host = environment(tmp_path / "host", torch="2.1.2+cu121")
    # In the host's range, and in neither of training's.
    assert lacking(Interpreter(host), project) == (
        "peft>=0.18 (missing)",
        "torch>=2.6 (2.1.2+cu121 is installed)",
    )
    assert find(host, project) is None
    assert lacking(Interpreter(tmp_path / "none"), project) == (f"{tmp_path / 'none'} cannot be run",)


def test_the_projects_own_is_made_once_with_progress(tmp_path: Path, project: Path) -> None:
    host = environment(tmp_path / "host", torch="2.1.2")
    told: list[str] = []
    made = prepare(told.append, host, project)
    assert made.owner == "project" and made.python.is_relative_to(project / ".venv")
    assert told == ["1/4 an environment ['--trainer']", "ready"]
    assert prepare(told.append, host, project) == made == find(host, project)
    assert len(told) == 2


SLOW = """
import subprocess, sys, time
from pathlib import Path
print("1/4 an environment", flush=True)
print("     0:00:30 Collecting torch", flush=True)
pip = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
Path("pip").write_text(str(pip.pid))
pip.wait()
"""


def test_an_interrupt_ends_the_set_up_and_its_pip_within_seconds(tmp_path: Path, project: Path) -> None:
    host = environment(tmp_path / "host")
    (project / "install.py").write_text(SLOW, "utf-8")
    told: list[str] = []

    def check() -> None:
        if (project / "pip").exists() and (project / "pip").read_text():
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        prepare(told.append, host, project, check)
    assert time.monotonic() - began < 30
    assert told == ["1/4 an environment"], "what pip says is in the log"
    pip = int((project / "pip").read_text())
    until(lambda: look(pip) is None, 10)
    # The lock is free again.
    (project / "install.py").write_text(INSTALL, "utf-8")
    assert prepare(told.append, host, project).owner == "project"


def test_waiting_for_another_set_up_can_be_left(tmp_path: Path, project: Path) -> None:
    host = environment(tmp_path / "host")
    looks: list[int] = []

    def check() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise KeyboardInterrupt

    lock = Path(gettempdir()) / f"scdpo-{interpreter._mark(project)}.lock"
    with exclusive(lock), pytest.raises(KeyboardInterrupt):
        prepare(host=host, project=project, check=check)


def test_a_failure_is_told_with_its_cause(tmp_path: Path, project: Path) -> None:
    host = environment(tmp_path / "host")
    (project / "broken").touch()
    with pytest.raises(ScdpoError, match=r"(?s)could not be installed.*The disk is full"):
        prepare(host=host, project=project)
    (project / "pyproject.toml").unlink()
    with pytest.raises(ScdpoError, match=r"pyproject\.toml is missing or damaged"):
        find(host, project)


def test_this_python_trains() -> None:
    assert lacking(Interpreter(Path(sys.executable))) == ()


def test_other_pythons_packages_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert "PYTHONPATH" not in interpreter.environment()


def test_every_requirement_can_be_read_and_install_knows_the_same_torch() -> None:
    wanted = dict(interpreter._parse(text)[:2] for text in requirements(ROOT))
    assert wanted["torch"] == ">=" + ".".join(map(str, install.OLDEST_TORCH))
    for bounds in wanted.values():
        satisfies("1.0", bounds)


@pytest.mark.parametrize(
    ("version", "bounds", "fine"),
    [
        ("2.10.0", ">=2.6", True),
        ("2.5.9", ">=2.6", False),
        ("2.6", ">=2.6.0", True),
        ("2.6.0+cu124", "==2.6", True),
        ("5.0.0.dev0", ">=5.0", True),
        ("3.0", ">=2,<3", False),
        ("2.9", ">=2,<3", True),
        ("1.0", "", True),
    ],
)
def test_versions(version: str, bounds: str, fine: bool) -> None:
    assert satisfies(version, bounds) is fine


def test_a_bound_that_nobody_understands_is_no_guess() -> None:
    with pytest.raises(ValueError, match="~=2"):
        satisfies("2.0", "~=2.0")
