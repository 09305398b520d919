"""A project in miniature for test_install: the real install.py, and wheels of a few bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import install

ROOT = Path(__file__).resolve().parents[2]

BACKEND = """
import pathlib, zipfile
def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "scdpo-0.1-py3-none-any.whl"
    facts = "Metadata-Version: 2.1\\nName: scdpo\\nVersion: 0.1\\n" + "".join(
        f"Provides-Extra: {extra}\\n" for extra in ("build", "eval", "score", "test", "train", "ui"))
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w") as wheel:
        wheel.writestr("scdpo.pth", str(pathlib.Path.cwd()) + "\\n")
        wheel.writestr("scdpo-0.1.dist-info/METADATA", facts)
        kind = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr("scdpo-0.1.dist-info/WHEEL", kind)
        wheel.writestr("scdpo-0.1.dist-info/RECORD", "")
    return name
"""
DEMO = """
import os, pathlib, sys, time
try:
    # The Ctrl-C may come before this line has returned.
    print("demo", sys.argv[1:], "in", os.getcwd(), flush=True)
    if "--wait" in sys.argv:
        time.sleep(60)
except KeyboardInterrupt:
    print("saved")
"""
PAGE = "import sys; print('page', sys.argv[1:])"
TOOL = "import os, sys; print('ran {name}', sys.argv[1:]); sys.exit(int(os.environ.get('{name}_EXIT', 0)))"


def write_wheel(folder: Path, name: str, version: str, modules: dict[str, str], requires: str = "") -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, code in modules.items():
            wheel.writestr(path, code)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


class Project:
    """A checkout in miniature, and an environment of variables in which only its own wheels exist."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "my comfy" / "custom_nodes" / "SC DPO"
        self.wheels = folder / "wheels"
        self.elsewhere = folder / "elsewhere"
        for path in (
            self.root / "trainer",
            self.root / "a1111_extension",
            self.root / "scdpo_core",
            self.wheels,
            self.elsewhere,
        ):
            path.mkdir(parents=True)
        shutil.copy(ROOT / "install.py", self.root)
        system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        files = {
            "pyproject.toml": system,
            "backend.py": BACKEND,
            "trainer/demo.py": DEMO,
            "a1111_extension/__main__.py": PAGE,
        }
        for name, text in {**files, "constraints.txt": "", "scdpo_core/__init__.py": ""}.items():
            (self.root / name).write_text(text, "utf-8")
        others = ("numpy", "PIL", "safetensors", "scipy", "diffusers", "transformers", "peft")
        modules = {f"{name}.py": "" for name in others}
        modules["torch/__init__.py"] = (
            "__version__ = '2.13.0'\nclass cuda:\n    is_available = staticmethod(bool)\n"
        )
        modules |= {f"{name}.py": TOOL.format(name=name) for name in ("ruff", "mypy", "pytest")}
        write_wheel(self.wheels, "torch", "2.13.0", modules)
        self.first = ""
        self.python = self.root / install.PYTHON.relative_to(install.ROOT)
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "SCDPO"))
        }
        path = [f for f in kept["PATH"].split(os.pathsep) if not shutil.which("uv", path=f)]
        pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        self.environment = {**kept, **pip, "PATH": os.pathsep.join(path), "PYTHONPATH": "not/inside"}

    def command(self, *arguments: str, python: str | Path = sys.executable) -> list[str]:
        return [str(python), str(self.root / "install.py"), *arguments]

    def run(
        self, *arguments: str, python: str | Path = sys.executable, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        command, environment = self.command(*arguments, python=python), {**self.environment, **variables}
        return subprocess.run(command, cwd=self.elsewhere, env=environment, capture_output=True, text=True)
