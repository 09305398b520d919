"""The architecture's arrows, read from the source: who may import whom."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 350
# A longer door does what is the core's.
MOST_LINES_OF_A_DOOR = 200
DOORS = ("trainer", "comfy_nodes", "a1111_extension", "scripts")

# The part of the project that a file or folder at the top belongs to, where the name differs.
PART = {"__init__.py": "comfy_nodes", "scripts": "a1111_extension", "install.py": "install"}
# Which of our own parts each part may import; nobody may import trainer.
MAY_IMPORT = {
    "scdpo_core": {"scdpo_core"},
    "comfy_nodes": {"comfy_nodes", "scdpo_core"},
    "a1111_extension": {"a1111_extension", "scdpo_core"},
    "trainer": {"scdpo_core", "trainer"},
    "install": set(),
    "benchmarks": {"benchmarks", "scdpo_core", "a1111_extension", "tools"},
    "tools": {"tools", "scdpo_core"},
    "tests": {
        "tests",
        "benchmarks",
        "tools",
        "scdpo_core",
        "comfy_nodes",
        "a1111_extension",
        "install",
        "scripts",
    },
}
OURS = {
    "comfy_nodes",
    "a1111_extension",
    "scripts",
    "trainer",
    "install",
    "benchmarks",
    "tools",
    "tests",
    "scdpo_core",
}
NOT_IN_CORE = {
    "argparse",
    "tyro",
    "gradio",
    "comfy",
    "comfy_api",
    "folder_paths",
    "nodes",
    "modules",
    "launch",
}
# What runs inside a host, under its old packages.
# fmt: off
IN_HOSTS = (
    "cost.scorers", "lora.file", "lora.formats.keys", "pairs.start", "panels.built_pairs",
    "panels.compare", "panels.gallery", "panels.pair", "panels.report", "panels.run", "preferences.build",
    "preferences.labelling_session", "preferences.summary", "reports.covers", "reports.html",
    "reports.raster_charts", "reports.training_charts", "run_store.events", "runs.benchmark",
    "runs.comparison", "runs.estimate", "runs.follow", "runs.install_result", "runs.interpreter", "runs.jobs",
    "runs.launch", "runs.queue", "runs.rerun", "runs.summary", "runs.supervisor", "suite.defaults",
    "suite.job", "types",
)
# fmt: on
# jinja2 and markupsafe are requirements of torch itself, psutil of every host; requirements.txt names it too.
EVERY_HOST_HAS = {"torch", "numpy", "PIL", "safetensors", "onnxruntime", "jinja2", "markupsafe", "psutil"}
TRAINER_ONLY = (
    "transformers",
    "diffusers",
    "peft",
    "accelerate",
    "tyro",
    "scipy",
    "matplotlib",
    "tqdm",
    "gradio",
)


@dataclass(frozen=True)
class Import:
    file: str
    line: int
    name: str  # `from a import b` is a.b
    at_load: bool  # runs when the module is imported

    def is_of(self, *modules: str) -> bool:
        return any(self.name == module or self.name.startswith(module + ".") for module in modules)

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


def sources(root: Path) -> list[Path]:
    found = []
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if not any(folder.startswith(".") for folder in folders) and folders[:1] not in (
            ("build",),
            ("runs",),
        ):
            found.append(path)
    return found


def walk(node: ast.AST, at_load: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement, and whether loading the module runs it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_load
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from walk(child, False)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from walk(ast.Module(child.body, []), False)
            yield from walk(ast.Module(child.orelse, []), at_load)
        else:
            yield from walk(child, at_load)


def imports(root: Path, path: Path) -> list[Import]:
    file = path.relative_to(root)
    found = []
    for node, at_load in walk(ast.parse(path.read_text("utf-8")), True):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            # Level 1 is the file's own folder, for an __init__.py as well.
            above = file.parts[: len(file.parts) - node.level] if node.level else ()
            base = [*above, *([node.module] if node.module else [])]
            names = [".".join([*base, alias.name]) for alias in node.names]
        found += [Import(file.as_posix(), node.lineno, name, at_load) for name in names]
    return found


def part_of(file: str) -> str:
    top = file.split("/")[0]
    return PART.get(top, top)


def foreign(found: Import, allowed: set[str]) -> bool:
    """Whether an import is neither of the standard library nor of what is allowed."""
    return found.name.split(".")[0] not in allowed | set(sys.stdlib_module_names)


def module_files(root: Path, name: str) -> list[Path]:
    """The files that importing a dotted name runs: packages on the way, and the module."""
    files = []
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        stem = root.joinpath(*parts[:end])
        files += [file for file in (stem / "__init__.py", stem.with_suffix(".py")) if file.is_file()]
    return files


def loaded_with(root: Path, module: str) -> list[Import]:
    """Every import that happens when a module of ours is imported, through our own modules."""
    found: list[Import] = []
    waiting, seen = module_files(root, module), set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for item in imports(root, path):
            if item.at_load:
                found.append(item)
                waiting += module_files(root, item.name) if item.is_of("scdpo_core") else []
    return found


def broken_arrows(root: Path) -> list[str]:
    """Every breach of the rules in a tree."""
    breaches = []
    if (root / "trainer" / "__init__.py").exists():
        breaches.append("trainer/__init__.py: another extension owns a package of that name")
    for path in sources(root):
        most = MOST_LINES_OF_A_DOOR if path.relative_to(root).parts[0] in DOORS else MOST_LINES
        if (lines := path.read_text("utf-8").count("\n")) > most:
            breaches.append(f"{path.relative_to(root)} has {lines} lines")
        for item in imports(root, path):
            part, top = part_of(item.file), item.name.split(".")[0]
            objectives = item.file.startswith("scdpo_core/objectives/")
            if top in OURS and top not in MAY_IMPORT.get(part, OURS - {"trainer"}):
                breaches.append(f"{item}: {part} may not")
            elif part == "scdpo_core" and top in NOT_IN_CORE:
                breaches.append(f"{item}: core knows no host and no command line")
            elif part == "install" and foreign(item, set()):
                breaches.append(f"{item}: install.py has the standard library alone")
            elif objectives and foreign(item, {"torch", "scdpo_core"}):
                breaches.append(f"{item}: objectives import torch and types alone")
            elif objectives and top == "scdpo_core":
                if not item.is_of("scdpo_core.types", "scdpo_core.objectives"):
                    breaches.append(f"{item}: objectives import torch and types alone")
            elif item.file.startswith("scdpo_core/cost/") and item.is_of("scdpo_core.families"):
                breaches.append(f"{item}: cost never imports families")
    for path in sorted(root.glob("scdpo_core/cost/*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        breaches += [
            f"{item}: cost never imports families, not even through others ({module})"
            for item in loaded_with(root, module)
            if item.is_of("scdpo_core.families") and not item.file.startswith("scdpo_core/cost/")
        ]
    for module in IN_HOSTS:
        breaches += [
            f"{item}: scdpo_core.{module} runs inside hosts, which lack that"
            for item in loaded_with(root, f"scdpo_core.{module}")
            if foreign(item, {*EVERY_HOST_HAS, "scdpo_core"})
        ]
    return sorted(set(breaches))


def test_the_arrows_hold() -> None:
    assert broken_arrows(ROOT) == []


@pytest.mark.parametrize(
    ("file", "code", "breach"),
    [
        ("scdpo_core/io/files.py", "from comfy_nodes import cost", "scdpo_core may not"),
        ("scdpo_core/io/files.py", "def f():\n    import trainer.demo", "scdpo_core may not"),
        ("scdpo_core/io/files.py", "import argparse", "no command line"),
        ("scdpo_core/io/files.py", "\n" * 351, "has 351 lines"),
        ("trainer/demo.py", "\n" * 201, "trainer/demo.py has 201 lines"),
        ("comfy_nodes/cost.py", "\n" * 201, "has 201 lines"),
        ("a1111_extension/panes/score.py", "\n" * 201, "has 201 lines"),
        ("scripts/scdpo.py", "\n" * 201, "has 201 lines"),
        ("comfy_nodes/cost.py", "import a1111_extension.jobs", "comfy_nodes may not"),
        ("comfy_nodes/cost.py", "from ..a1111_extension import jobs", "comfy_nodes may not"),
        ("__init__.py", "from .trainer import demo", "comfy_nodes may not"),
        ("scripts/scdpo.py", "import comfy_nodes", "a1111_extension may not"),
        ("trainer/demo.py", "from a1111_extension import app", "trainer may not"),
        ("trainer/__init__.py", "", "another extension owns"),
        ("benchmarks/run.py", "from trainer import train_lora", "benchmarks may not"),
        ("tests/trainer/test_demo.py", "from trainer import demo", "tests may not"),
        ("install.py", "import yaml", "standard library alone"),
        ("install.py", "from scdpo_core import types", "install may not"),
        ("scdpo_core/objectives/a.py", "import numpy", "torch and types alone"),
        ("scdpo_core/objectives/a.py", "from scdpo_core.io.files import write_json", "torch and types alone"),
        ("scdpo_core/objectives/a.py", "from ..files import write_json", "torch and types alone"),
        (
            "scdpo_core/cost/a.py",
            "def f():\n    from ..families.sd1 import SD1",
            "cost never imports families",
        ),
        ("scdpo_core/types.py", "import diffusers", "scdpo_core.types runs inside hosts"),
        ("scdpo_core/lora/__init__.py", "import peft", "scdpo_core.lora.formats.keys runs inside hosts"),
        (
            "scdpo_core/run_store/events.py",
            "try:\n    import tqdm\nexcept ImportError:\n    pass",
            "run_store.events",
        ),
    ],
)
def test_each_rule_can_be_broken(tmp_path: Path, file: str, code: str, breach: str) -> None:
    for name in ("types.py", "lora/keys.py", "cost/scorers.py", "training/events.py"):
        path = tmp_path / "scdpo_core" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("import json\n", "utf-8")
    assert broken_arrows(tmp_path) == []
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(code, "utf-8")
    assert any(breach in found for found in broken_arrows(tmp_path))


def test_rules_follow_imports_through_our_own_modules(tmp_path: Path) -> None:
    core = tmp_path / "scdpo_core"
    for folder in ("cost", "preferences", "families"):
        (core / folder).mkdir(parents=True)
    (core / "cost" / "scorers.py").write_text("from ..preferences import cache\n", "utf-8")
    (core / "preferences" / "cache.py").write_text("from ..families.base import Family\n", "utf-8")
    (core / "families" / "base.py").write_text("import diffusers\n", "utf-8")
    breaches = "\n".join(broken_arrows(tmp_path))
    assert "scdpo_core/preferences/cache.py:1 imports scdpo_core.families.base.Family: cost never" in breaches
    assert "scdpo_core/families/base.py:1 imports diffusers: scdpo_core.cost.scorers runs inside" in breaches


def test_what_loads_later_or_for_types_only_may_be_missing_in_hosts(tmp_path: Path) -> None:
    (tmp_path / "scdpo_core").mkdir()
    (tmp_path / "scdpo_core" / "types.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import peft\ndef f():\n    import scipy\n",
        "utf-8",
    )
    assert broken_arrows(tmp_path) == []


CORE = [
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in sources(ROOT)
    if part_of(p.relative_to(ROOT).as_posix()) == "scdpo_core"
]


@pytest.mark.parametrize("module", [name.removesuffix(".__init__") for name in CORE])
def test_every_core_module_imports(module: str) -> None:
    importlib.import_module(module)


def test_what_runs_in_hosts_imports_without_the_trainers_packages() -> None:
    there = [
        f"scdpo_core.{module}"
        for module in IN_HOSTS
        if module_files(ROOT, f"scdpo_core.{module}")[-1].stem == module.split(".")[-1]
    ]
    code = f"import sys\nsys.modules.update(dict.fromkeys({TRAINER_ONLY}))\nimport {', '.join(there)}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_pytest_leaves_the_roots_init_alone(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "__init__.py").write_text("raise RuntimeError('a door was opened')", "utf-8")
    (tmp_path / "tests" / "test_nothing.py").write_text("def test_nothing() -> None: ...", "utf-8")
    result = subprocess.run([sys.executable, "-m", "pytest"], cwd=tmp_path, capture_output=True, text=True)
    assert "1 passed" in result.stdout, result.stdout
