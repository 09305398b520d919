"""Which Python trains: the host's own if it has all that training needs, else the project's .venv.

Packages are asked for their versions in a process of their own: nothing is imported here.
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
_LOOK = 0.2  # seconds between two looks at install.py
# What leads a Python to packages of another one.
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
        python: the program.
        owner: whose it is: the host's, or the project's own .venv.
        flags: to start it with.
    """

    python: Path
    owner: Literal["host", "project"] = "host"
    flags: tuple[str, ...] = ()


def environment() -> dict[str, str]:
    """The variables that a trainer is started with."""
    kept = {name: value for name, value in os.environ.items() if name not in _LEADS_OUT}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def find(host: Path | None = None, project: Path = ROOT) -> Interpreter | None:
    """The Python to train with, None if none has all that is needed; takes a fraction of a second.

    Args:
        host: the Python of the host; not given, the one that runs this.
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
    """The Python to train with, made by install.py if there is none yet, which takes minutes.

    Args:
        tell: is told how it goes on: each step of install.py, and nothing of what pip says.
        host: as for `find`.
        project: as for `find`.
        check: called several times a second; what it raises ends the set-up and is passed on.

    Raises:
        ScdpoError: it cannot be made; says why.
    """
    # Two doors, or two clicks, would write into the same environment.
    with exclusive(Path(gettempdir()) / f"scdpo-{_mark(project)}.lock", check):
        found = find(host, project)
        if found is not None:
            return found
        command = [str(host or sys.executable), *_flags(), str(project / "install.py"), "--trainer"]
        code, lines = _install(command, project, tell, check)
        made = find(host, project) if code == 0 else None
    if made is None:
        last = "\n".join(lines[-6:])
        raise ScdpoError(f"The trainer's packages could not be set up.\n{last}")
    return made


def _install(
    command: list[str], project: Path, tell: Callable[[str], None], check: Callable[[], None]
) -> tuple[int, list[str]]:
    """Run install.py to its end, or until `check` raises; its exit status and what it said."""
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
        # A group of its own, so that it can be ended together with its pip.
        start_new_session=sys.platform != "win32",
    ) as process:
        identity = look(process.pid)
        reader = threading.Thread(target=read, name="scdpo-install", daemon=True)
        reader.start()
        told = 0
        try:
            while reader.is_alive():
                check()
                reader.join(_LOOK)
                steps = [line for line in lines[:] if not line.startswith(" ")]
                for line in steps[told:]:
                    tell(line)
                told = len(steps)
        except BaseException:
            if identity is not None:
                end(identity[0])
            raise
    return process.returncode, lines


def lacking(interpreter: Interpreter, project: Path = ROOT) -> tuple[str, ...]:
    """What a Python lacks for training, a phrase each: 'peft>=0.18 (there is 0.13.0)'. Empty if nothing.

    Raises:
        ScdpoError: the project's own pyproject.toml is missing or damaged.
    """
    wanted = [_parse(text) for text in requirements(project)]
    command = [str(interpreter.python), *interpreter.flags, "-c", _PROBE, *(name for name, _, _ in wanted)]
    try:
        told = subprocess.run(
            command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        answer = json.loads(told.stdout)
        python, packages = tuple(answer["python"]), answer["packages"]
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):
        return (f"{interpreter.python} cannot be run",)
    missing = []
    for name, bounds, marker in wanted:
        if marker is not None and python >= marker:
            continue
        have = packages.get(name)
        if have is None:
            missing.append(f"{name}{bounds} (missing)")
        elif not satisfies(have, bounds):
            missing.append(f"{name}{bounds} (there is {have})")
    return tuple(missing)


def requirements(project: Path = ROOT) -> tuple[str, ...]:
    """What training needs: the project's dependencies and its extra 'train'.

    Raises:
        ScdpoError: pyproject.toml is missing or damaged.
    """
    path = project / "pyproject.toml"
    try:
        facts: Mapping[str, Any] = toml.loads(path.read_text("utf-8"))["project"]
        return (*facts["dependencies"], *facts["optional-dependencies"]["train"])
    except (OSError, ValueError, KeyError) as error:
        raise ScdpoError(f"{path} is missing or damaged. Download the project again.") from error


def satisfies(version: str, bounds: str) -> bool:
    """Whether a version lies in bounds such as '>=2.0,<3'; of a version its numbers count, no suffix.

    Raises:
        ValueError: a bound is neither >=, < nor ==.
    """
    have = _numbers(version)
    for bound in filter(None, bounds.split(",")):
        found = re.fullmatch(r"\s*(>=|<|==)\s*([\d.]+)\s*", bound)
        if found is None:
            raise ValueError(f"cannot read the bound '{bound}'")
        limit = _numbers(found[2])
        if not {">=": have >= limit, "<": have < limit, "==": have == limit}[found[1]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a release, zeros at its end left out: 2.10.0+cu128 is (2, 10)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _parse(requirement: str) -> tuple[str, str, tuple[int, ...] | None]:
    """Name, bounds, and the first Python that does not need it."""
    text, _, marker = requirement.partition(";")
    found = re.fullmatch(r"([\w.-]+)\s*(.*)", text.strip())
    if found is None:
        raise ValueError(f"cannot read the requirement '{requirement}'")
    below = re.search(r"python_version\s*<\s*['\"]([\d.]+)", marker)
    return found[1], found[2], tuple(map(int, below[1].split("."))) if below else None


def _candidates(host: Path | None, project: Path) -> list[Interpreter]:
    own = project / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    of_host = Interpreter(host or Path(sys.executable), "host", _flags())
    return [of_host, *([Interpreter(own, "project")] if own.exists() else [])]


def _flags() -> tuple[str, ...]:
    """A portable host that leaves the user's own packages out does so for what it starts, too."""
    return ("-s",) if sys.flags.no_user_site else ()


def _mark(project: Path) -> str:
    return hashlib.sha256(str(project).encode()).hexdigest()[:12]
