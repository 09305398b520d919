"""Find the Python that trains: the host's if it has all that training needs, else the project's .venv.

Package versions are read in a subprocess: nothing is imported here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Literal

from ..config import toml
from ..run_store.file_lock import exclusive
from ..run_store.process import end, look
from ..types import ScdpoError

ROOT = Path(__file__).resolve().parents[2]
_POLL = 0.2  # seconds between two reads of install.py's output
# Variables that make a Python import packages of another one.
_LEADS_OUT = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
_PROBE = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps({"python": list(sys.version_info[:2]), "packages": found}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python that can train.

    Attributes:
        python: its executable.
        owner: 'host', or 'project' for the project's .venv.
        flags: command line flags.
    """

    python: Path
    owner: Literal["host", "project"] = "host"
    flags: tuple[str, ...] = ()


def environment() -> dict[str, str]:
    """Return the environment variables that a trainer is started with."""
    variables = {name: value for name, value in os.environ.items() if name not in _LEADS_OUT}
    return {**variables, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def find(host: Path | None = None, project: Path = ROOT) -> Interpreter | None:
    """Find the Python to train with, None if none has all that is needed; takes a fraction of a second.

    Args:
        host: the Python of the host; None for the running one.
        project: the folder with pyproject.toml, install.py and perhaps .venv.

    Raises:
        ScdpoError: the project's own pyproject.toml is missing or damaged.
    """
    return next((one for one in _candidates(host, project) if not lacking(one, project)), None)


def prepare(
    tell: Callable[[str], None] = lambda line: None,
    host: Path | None = None,
    project: Path = ROOT,
    check: Callable[[], None] = lambda: None,
) -> Interpreter:
    """Find the Python to train with, or install it with install.py, which takes minutes.

    Args:
        tell: called with each step of install.py; pip's own output is left out.
        host: as for `find`.
        project: as for `find`.
        check: called several times a second; an exception from it ends the installation.

    Raises:
        ScdpoError: the installation failed; says why.
    """
    # Two doors, or two clicks, would otherwise write to the same environment.
    with exclusive(Path(gettempdir()) / f"scdpo-{_mark(project)}.lock", check):
        existing = find(host, project)
        if existing is not None:
            return existing
        command = [str(host or sys.executable), *_flags(), str(project / "install.py"), "--trainer"]
        code, lines = _install(command, project, tell, check)
        installed = find(host, project) if code == 0 else None
    if installed is None:
        last = "\n".join(lines[-6:])
        raise ScdpoError(f"The trainer's packages could not be installed.\n{last}")
    return installed


def _install(
    command: list[str], project: Path, tell: Callable[[str], None], check: Callable[[], None]
) -> tuple[int, list[str]]:
    """Run install.py until it ends or `check` raises; returns its exit status and output lines."""
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in map(str.rstrip, process.stdout):
            if line:
                lines.append(line)

    with subprocess.Popen(
        command,
        cwd=project,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        # A new process group, so that it can be ended together with its pip.
        start_new_session=sys.platform != "win32",
    ) as process:
        identity = look(process.pid)
        reader = threading.Thread(target=read, name="scdpo-install", daemon=True)
        reader.start()
        reported = 0
        try:
            while reader.is_alive():
                check()
                reader.join(_POLL)
                steps = [line for line in lines[:] if not line.startswith(" ")]
                for line in steps[reported:]:
                    tell(line)
                reported = len(steps)
        except BaseException:
            if identity is not None:
                end(identity[0])
            raise
    return process.returncode, lines


def lacking(interpreter: Interpreter, project: Path = ROOT) -> tuple[str, ...]:
    """List what a Python lacks for training: 'peft>=0.18 (0.13.0 is installed)'.

    Raises:
        ScdpoError: the project's own pyproject.toml is missing or damaged.
    """
    required = [_parse(text) for text in requirements(project)]
    command = [str(interpreter.python), *interpreter.flags, "-c", _PROBE, *(name for name, _, _ in required)]
    try:
        process = subprocess.run(
            command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        answer = json.loads(process.stdout)
        python, packages = tuple(answer["python"]), answer["packages"]
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):
        return (f"{interpreter.python} cannot be run",)
    missing = []
    for name, bounds, marker in required:
        if marker is not None and python >= marker:
            continue
        installed = packages.get(name)
        if installed is None:
            missing.append(f"{name}{bounds} (missing)")
        elif not satisfies(installed, bounds):
            missing.append(f"{name}{bounds} ({installed} is installed)")
    return tuple(missing)


def requirements(project: Path = ROOT) -> tuple[str, ...]:
    """Return what training needs: the project's dependencies and its extra 'train'.

    Raises:
        ScdpoError: pyproject.toml is missing or damaged.
    """
    path = project / "pyproject.toml"
    try:
        project_table: Mapping[str, Any] = toml.loads(path.read_text("utf-8"))["project"]
        return (*project_table["dependencies"], *project_table["optional-dependencies"]["train"])
    except (OSError, ValueError, KeyError) as error:
        raise ScdpoError(f"{path} is missing or damaged. Download the project again.") from error


def satisfies(version: str, bounds: str) -> bool:
    """Return whether a version lies in bounds such as '>=2.0,<3'; suffixes are ignored.

    Raises:
        ValueError: a bound is neither >=, < nor ==.
    """
    numbers = _numbers(version)
    for bound in filter(None, bounds.split(",")):
        match = re.fullmatch(r"\s*(>=|<|==)\s*([\d.]+)\s*", bound)
        if match is None:
            raise ValueError(f"cannot read the bound '{bound}'")
        limit = _numbers(match[2])
        if not {">=": numbers >= limit, "<": numbers < limit, "==": numbers == limit}[match[1]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """Return a release's numbers without trailing zeros: 2.10.0+cu128 is (2, 10)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _parse(requirement: str) -> tuple[str, str, tuple[int, ...] | None]:
    """Split a requirement into name, bounds, and the first Python that does not need it."""
    text, _, marker = requirement.partition(";")
    match = re.fullmatch(r"([\w.-]+)\s*(.*)", text.strip())
    if match is None:
        raise ValueError(f"cannot read the requirement '{requirement}'")
    below = re.search(r"python_version\s*<\s*['\"]([\d.]+)", marker)
    return match[1], match[2], tuple(map(int, below[1].split("."))) if below else None


def _candidates(host: Path | None, project: Path) -> list[Interpreter]:
    venv = project / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    of_host = Interpreter(host or Path(sys.executable), "host", _flags())
    return [of_host, *([Interpreter(venv, "project")] if venv.exists() else [])]


def _flags() -> tuple[str, ...]:
    """Return the flags that keep user packages out, if the running Python keeps them out."""
    return ("-s",) if sys.flags.no_user_site else ()


def _mark(project: Path) -> str:
    return hashlib.sha256(str(project).encode()).hexdigest()[:12]
