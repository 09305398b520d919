"""The run folder: names of its files, and two small records."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..config import toml
from ..io.files import write_json
from ..io.json_schema import SchemaError, read_json
from ..types import ScdpoError
from .process import ProcessId

JOB = "job.toml"  # the settings
EVENTS = "events.jsonl"  # what happened
STOP = "stop"  # a file of this name asks the run to save and stop
QUEUED = "queued"  # a file of this name marks a waiting run
LOG = "child.log"  # the process's output
KIND = "run.json"  # the kind of run
LAUNCH = "child.json"  # the process that was started last
HOLD = "run.lock"  # empty; locked by the process that works in the folder

SAMPLES = "samples"  # the folder of sample images
CHECKPOINTS = "checkpoints"  # the folder that a resumed run continues from
CHECKPOINT_SUFFIX = ".state.safetensors"

Kind = Literal["lora", "cost", "compare", "evaluate", "pairs"]
"""'compare' and 'evaluate' train nothing: they generate images with a LoRA at several weights. 'pairs'
generates the images of pairs."""


@dataclass(frozen=True)
class _KindRecord:
    trains: Kind


RESERVED = frozenset({"active.json", "queue.json", "queue.lock", "supervisor.lock"})
"""File names of a runs root, which no run can have."""

_NO_NAME = re.compile(
    r'[<>:"/\\|?*\x00-\x1f]|^[. ]|[. ]$|^(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)', re.IGNORECASE
)
_MODEL_FILES = (".safetensors", ".ckpt", ".pt")
_LONGEST, _MOST_BYTES = 80, 200


def name_problem(name: str) -> str:
    """Return why a run cannot have a name, a sentence; '' if it can."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "The name has a character that file names cannot have. Use letters, digits, '-' and '_'."
    if not name or len(name) > _LONGEST or _NO_NAME.search(name):
        shortened = name if len(name) <= 2 * _LONGEST else f"{name[:_LONGEST]}..."
        return (
            f"'{shortened}' cannot be a file name. Use up to {_LONGEST} letters, digits, '-' and '_', "
            "such as my_lora."
        )
    if size > _MOST_BYTES:
        return f"'{name}' is too long for a file name: {size} bytes, at most {_MOST_BYTES} are possible."
    if name.casefold() in RESERVED:
        return f"'{name}' is a file of the queue, and cannot be the name of a run. Choose another name."
    if Path(name).suffix.lower() in _MODEL_FILES:
        return f"The ending of '{name}' is added automatically. Call it {Path(name).stem}."
    return ""


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """Return the steps with a complete checkpoint in a run's `CHECKPOINTS` folder, ascending."""
    names = [path.name[: -len(CHECKPOINT_SUFFIX)] for path in checkpoints.glob(f"step-*{CHECKPOINT_SUFFIX}")]
    return sorted(int(name[5:]) for name in names if name[5:].isdecimal())


def result_of(folder: Path) -> Path:
    """Return the path of a run's finished LoRA or cost model."""
    return folder / f"{folder.name}.safetensors"


def has_results(folder: Path) -> bool:
    """Return whether a run has a result or a complete checkpoint, which no other run may overwrite."""
    # Where a name is too long for the file system, pathlib raises.
    if os.path.exists(result_of(folder)):
        return True
    return os.path.isdir(folder / CHECKPOINTS) and bool(checkpoint_steps(folder / CHECKPOINTS))


def run_folder(root: Path, name: str) -> Path:
    """Return the folder of an existing run.

    Raises:
        ScdpoError: there is no run of that name.
    """
    try:
        if name and Path(name).name == name and not name.startswith(".") and (root / name / JOB).is_file():
            return root / name
    # Longer than a disk allows, or with characters that it does not have.
    except (OSError, ValueError):
        pass
    raise ScdpoError(f"There is no run '{name[:_MOST_BYTES]}'. Choose one from the list.")


TITLES: dict[Kind, str] = {
    "lora": "a safety LoRA",
    "cost": "a cost model",
    "compare": "a comparison",
    "evaluate": "an evaluation",
    "pairs": "pairs being built",
}
"""Each kind of run, as messages name it."""


@dataclass(frozen=True)
class Launch:
    """A process that was started on a run.

    Attributes:
        process: its identity.
        events_from: size of the event log when it started, bytes.
        log_from: size of the output log when it started, bytes.
    """

    process: ProcessId
    events_from: int
    log_from: int


def kind_of(folder: Path) -> Kind:
    """Return the kind of a run; a run of the command line, which leaves no record, trains a LoRA."""
    try:
        return read_json(folder / KIND, _KindRecord).trains
    except (OSError, SchemaError):
        return "lora"


def check_kind(folder: Path, kind: Kind) -> None:
    """Refuse a folder that holds a run of another kind.

    Raises:
        ScdpoError: the folder is of another kind; says which.
    """
    if not (folder / KIND).exists() and not _is_lora_job(folder / JOB):
        return
    actual = kind_of(folder)
    if actual != kind:
        hint = f" To compare its LoRA: --lora {folder}" if (kind, actual) == ("compare", "lora") else ""
        raise ScdpoError(
            f"{folder} is the run folder of {TITLES[actual]}, not of {TITLES[kind]}. "
            f"Give another folder.{hint}"
        )


def _is_lora_job(path: Path) -> bool:
    """Return whether a file holds settings by section, as only a LoRA's do."""
    try:
        return any(isinstance(value, dict) for value in toml.loads(path.read_text("utf-8")).values())
    except (OSError, ValueError):
        return False


def write_kind(folder: Path, kind: Kind) -> None:
    """Record the kind of a run."""
    write_json(folder / KIND, asdict(_KindRecord(kind)))


def copy_inputs(folder: Path, files: Sequence[Path]) -> tuple[Path, ...]:
    """Copy files that a job reads below its run folder, so that it can be resumed without the originals.

    Args:
        folder: that gets the copies; of two files with the same name the second gets a number.
        files: to copy; folders among them are returned as they are.

    Raises:
        ScdpoError: a file cannot be copied.
    """
    copies = []
    for file in files:
        if file.is_dir():
            copies.append(file.absolute())
            continue
        names = (file.name, *(f"{file.stem}-{number}{file.suffix}" for number in range(2, 10_000)))
        target = next(path for name in names if not (path := folder / name).exists())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        except OSError as error:
            raise ScdpoError(f"{file} cannot be copied to {target} ({error.strerror or error}).") from error
        copies.append(target.absolute())
    return tuple(copies)


def launch_of(folder: Path) -> Launch | None:
    """Return the process that was started last; None if there was none or its record is damaged."""
    try:
        return read_json(folder / LAUNCH, Launch)
    except (OSError, SchemaError):
        return None


def write_launch(folder: Path, launch: Launch) -> None:
    """Record a process that was started."""
    write_json(folder / LAUNCH, asdict(launch))


def size(path: Path) -> int:
    """Return the bytes of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def changed(path: Path) -> int:
    """Return the modification time of a file, nanoseconds since 1970; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


# The names of `files.atomic_path`, which end in eight characters of `tempfile`.
_HALF_WRITTEN = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?")


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the run and of its LoRA."""
        return self.path.name

    @property
    def lora(self) -> Path:
        """The finished LoRA."""
        return result_of(self.path)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def lora_facts(self) -> Path:
        """Metadata for a LoRA exported from a checkpoint."""
        return self.checkpoints / "lora.json"

    @property
    def loras(self) -> Path:
        """The folder of intermediate LoRAs."""
        return self.path / "loras"

    @property
    def drawn_pairs(self) -> Path:
        """The preference folder that the base model generates for a run from prompts alone."""
        return self.path / "drawn_pairs"

    def lora_at(self, step: int) -> Path:
        """Return the path of the intermediate LoRA of a step."""
        return self.loras / f"{self.name}-{step:06d}.safetensors"

    @property
    def events(self) -> Path:
        """The log of events."""
        return self.path / EVENTS

    @property
    def job(self) -> Path:
        """The settings of the run."""
        return self.path / JOB

    @property
    def stop(self) -> Path:
        """The file that asks the run to save and stop."""
        return self.path / STOP

    def has_results(self) -> bool:
        """Return whether training left results that another run must not overwrite."""
        return has_results(self.path)

    @property
    def reached(self) -> int:
        """Step of the newest checkpoint, 0 if there is none."""
        return max(checkpoint_steps(self.checkpoints), default=0)

    @property
    def curves(self) -> Path:
        """The training curves."""
        return self.path / "curves.png"

    @property
    def relabel(self) -> Path:
        """The relabelling of each pair by the cost model."""
        return self.path / "relabel.json"

    @property
    def costs(self) -> Path:
        """The cost of each image."""
        return self.cache / "costs.json"

    @property
    def cache(self) -> Path:
        """Encoded images, unless the settings name another folder."""
        return self.path / "cache"

    def sweep(self) -> None:
        """Remove half-written files of a killed process."""
        for folder in (self.path, self.checkpoints, self.loras, self.cache, self.path / SAMPLES):
            for path in folder.glob(".*"):
                if _HALF_WRITTEN.fullmatch(path.name) and path.is_file():
                    path.unlink(missing_ok=True)


def runs_in(root: Path, kind: Kind | None = None) -> list[Path]:
    """List run folders, the most recently changed first.

    Args:
        root: their folder, which may be missing.
        kind: only runs of this kind; None for all.
    """
    by_time = [
        (max(changed(folder / name) for name in (JOB, EVENTS, LAUNCH)), folder)
        for folder in (root.iterdir() if root.is_dir() else ())
        if (folder / JOB).is_file() and (kind is None or kind_of(folder) == kind)
    ]
    return [folder for _, folder in sorted(by_time, reverse=True)]
