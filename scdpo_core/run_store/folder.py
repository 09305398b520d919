"""What a run folder holds for those who start and watch runs: names, and two small records."""

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
STOP = "stop"  # a file of this name asks the run to save and leave
QUEUED = "queued"  # a file of this name says that the run waits for its turn
LOG = "child.log"  # what the process wrote on its screen
KIND = "run.json"  # which trainer the settings are for
LAUNCH = "child.json"  # the process that was started last
HOLD = "run.lock"  # empty; whoever works in the folder keeps it locked

SAMPLES = "samples"  # the folder of sample images
CHECKPOINTS = "checkpoints"  # the folder of what a resumed run goes on from
CHECKPOINT_SUFFIX = ".state.safetensors"

Kind = Literal["lora", "cost", "compare", "evaluate", "pairs"]
"""'compare' and 'evaluate' train nothing: they draw with a LoRA at several weights. 'pairs' draws what makes
pairs."""


@dataclass(frozen=True)
class _KindRecord:
    trains: Kind


RESERVED = frozenset({"active.json", "queue.json", "queue.lock", "supervisor.lock"})
"""Names that have a meaning in a runs root, so that no run can have them."""

_NO_NAME = re.compile(
    r'[<>:"/\\|?*\x00-\x1f]|^[. ]|[. ]$|^(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)', re.IGNORECASE
)
_MODEL_FILES = (".safetensors", ".ckpt", ".pt")
_LONGEST, _MOST_BYTES = 80, 200


def name_problem(name: str) -> str:
    """Why a run cannot be called that, a sentence; '' if it can."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "The name has a character that no file can have. Use letters, digits, '-' and '_'."
    if not name or len(name) > _LONGEST or _NO_NAME.search(name):
        shown = name if len(name) <= 2 * _LONGEST else f"{name[:_LONGEST]}..."
        return (
            f"'{shown}' cannot be the name of a file. Use up to {_LONGEST} letters, digits, '-' and '_', "
            "such as my_lora."
        )
    if size > _MOST_BYTES:
        return (
            f"'{name}' is too long for the name of a file: {size} bytes, of which {_MOST_BYTES} may be used."
        )
    if name.casefold() in RESERVED:
        return f"'{name}' is a file of the queue, and cannot be the name of a run. Choose another name."
    if Path(name).suffix.lower() in _MODEL_FILES:
        return f"The ending of '{name}' is added by itself: call it {Path(name).stem}."
    return ""


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """The steps that have a whole checkpoint in a run's `CHECKPOINTS` folder, in order."""
    names = [path.name[: -len(CHECKPOINT_SUFFIX)] for path in checkpoints.glob(f"step-*{CHECKPOINT_SUFFIX}")]
    return sorted(int(name[5:]) for name in names if name[5:].isdecimal())


def result_of(folder: Path) -> Path:
    """Where the finished LoRA or cost model of a run lies."""
    return folder / f"{folder.name}.safetensors"


def has_results(folder: Path) -> bool:
    """Whether a run has left something that no other run may overwrite: its result, or a whole checkpoint."""
    # Where a name is too long for the file system, pathlib raises.
    if os.path.exists(result_of(folder)):
        return True
    return os.path.isdir(folder / CHECKPOINTS) and bool(checkpoint_steps(folder / CHECKPOINTS))


def run_folder(root: Path, name: str) -> Path:
    """The folder of a run that is there.

    Raises:
        ScdpoError: there is no run of that name.
    """
    try:
        if name and Path(name).name == name and not name.startswith(".") and (root / name / JOB).is_file():
            return root / name
    # Longer than a disk allows, or with characters that it does not have.
    except (OSError, ValueError):
        pass
    raise ScdpoError(f"There is no run '{name[:_MOST_BYTES]}'. Choose one of the list.")


TITLES: dict[Kind, str] = {
    "lora": "a safety LoRA",
    "cost": "a cost model",
    "compare": "a comparison",
    "evaluate": "an evaluation",
    "pairs": "pairs being built",
}
"""What messages call each kind of work."""


@dataclass(frozen=True)
class Launch:
    """A process that was started on a run.

    Attributes:
        process: who it is.
        events_from: bytes in the log of events before it.
        log_from: bytes in its screen's log before it.
    """

    process: ProcessId
    events_from: int
    log_from: int


def kind_of(folder: Path) -> Kind:
    """What a run trains; a run of the command line, which leaves no record, trains a LoRA."""
    try:
        return read_json(folder / KIND, _KindRecord).trains
    except (OSError, SchemaError):
        return "lora"


def check_kind(folder: Path, kind: Kind) -> None:
    """Refuse a folder that holds a run of another kind, whose log and state are not ours to change.

    Raises:
        ScdpoError: says whose it is.
    """
    if not (folder / KIND).exists() and not _is_lora_job(folder / JOB):
        return
    found = kind_of(folder)
    if found != kind:
        hint = f" To compare its LoRA: --lora {folder}" if (kind, found) == ("compare", "lora") else ""
        raise ScdpoError(
            f"{folder} is the run folder of {TITLES[found]}, not of {TITLES[kind]}. "
            f"Give another folder.{hint}"
        )


def _is_lora_job(path: Path) -> bool:
    """Whether a file holds settings by section, as those of a LoRA alone are."""
    try:
        return any(isinstance(value, dict) for value in toml.loads(path.read_text("utf-8")).values())
    except (OSError, ValueError):
        return False


def write_kind(folder: Path, kind: Kind) -> None:
    """Say what a run trains."""
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
    """The process that was started last; None if none was, or if its record is damaged."""
    try:
        return read_json(folder / LAUNCH, Launch)
    except (OSError, SchemaError):
        return None


def write_launch(folder: Path, launch: Launch) -> None:
    """Remember a process that was started."""
    write_json(folder / LAUNCH, asdict(launch))


def size(path: Path) -> int:
    """Bytes in a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def changed(path: Path) -> int:
    """When a file was written last, nanoseconds since 1970; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


# The names of `files.atomic_path`, which end in eight characters of `tempfile`.
_HALF_WRITTEN = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?")


@dataclass(frozen=True)
class RunFolder:
    """PATH/NAME and what lies in it.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """Of the run and of its LoRA."""
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
        """What a LoRA that is exported from a checkpoint says of itself."""
        return self.checkpoints / "lora.json"

    @property
    def loras(self) -> Path:
        """The folder of the LoRAs kept on the way."""
        return self.path / "loras"

    @property
    def drawn_pairs(self) -> Path:
        """The preference folder of a run from prompts alone, which the base model draws."""
        return self.path / "drawn_pairs"

    def lora_at(self, step: int) -> Path:
        """The LoRA kept at a step."""
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
        """A file of this name asks the run to save and leave."""
        return self.path / STOP

    def has_results(self) -> bool:
        """Whether training has left something here that another run must not overwrite."""
        return has_results(self.path)

    @property
    def reached(self) -> int:
        """Steps behind the newest checkpoint, 0 if there is none."""
        return max(checkpoint_steps(self.checkpoints), default=0)

    @property
    def curves(self) -> Path:
        """The training curves."""
        return self.path / "curves.png"

    @property
    def relabel(self) -> Path:
        """What became of each pair when costs were asked for."""
        return self.path / "relabel.json"

    @property
    def costs(self) -> Path:
        """What the cost model said of each image."""
        return self.cache / "costs.json"

    @property
    def cache(self) -> Path:
        """Encoded images, unless they are kept elsewhere."""
        return self.path / "cache"

    def sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for place in (self.path, self.checkpoints, self.loras, self.cache, self.path / SAMPLES):
            for path in place.glob(".*"):
                if _HALF_WRITTEN.fullmatch(path.name) and path.is_file():
                    path.unlink(missing_ok=True)


def runs_in(root: Path, kind: Kind | None = None) -> list[Path]:
    """Run folders, the one that changed last first.

    Args:
        root: their folder, which need not be there.
        kind: only those that train this; None for all.
    """
    found = [
        (max(changed(folder / name) for name in (JOB, EVENTS, LAUNCH)), folder)
        for folder in (root.iterdir() if root.is_dir() else ())
        if (folder / JOB).is_file() and (kind is None or kind_of(folder) == kind)
    ]
    return [folder for _, folder in sorted(found, reverse=True)]
