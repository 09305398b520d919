"""Programs that show figures beside our own, fed from a run's events and from nothing else."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..io.files import write_text
from ..run_store.events import Done, Event, Failed, Progress, Sample, Validated, Warned
from ..types import ScdpoError

WANDB = "wandb-id.txt"
"""The file in a run folder that says which run of Weights & Biases it is."""


class Tracker(Protocol):
    """One such program."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of a step, by name, 'train/loss' for example."""
        ...

    def image(self, step: int, name: str, path: Path) -> None:
        """An image that was drawn after some steps."""
        ...

    def close(self) -> None:
        """Everything is said."""
        ...


class TensorBoard:
    """Event files in the run folder's tensorboard/; `tensorboard --logdir RUNS` shows them."""

    def __init__(self, folder: Path) -> None:
        """Append to what an interrupted run has left.

        Raises:
            ScdpoError: the package is missing.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.scalars`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def image(self, step: int, name: str, path: Path) -> None:
        """See `Tracker.image`."""
        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """See `Tracker.close`."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, which listens to its own variables: WANDB_MODE=offline, WANDB_PROJECT ..."""

    def __init__(self, folder: Path) -> None:
        """Go on with the run of this folder, if there is one.

        Raises:
            ScdpoError: the package is missing, or nobody is logged in.
        """
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        self._wandb = wandb
        settings = wandb.Settings(silent=True, console="off")
        try:
            self._run: Any = wandb.init(
                dir=str(folder), name=folder.name, id=_wandb_id(folder), resume="allow", settings=settings
            )
        except wandb.errors.Error as error:
            raise ScdpoError(
                f"--track wandb: {error}. Log in ('wandb login'), or set WANDB_MODE=offline."
            ) from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.scalars`. The step is a figure among others: its own must never go back."""
        self._run.log({**values, "step": step})

    def image(self, step: int, name: str, path: Path) -> None:
        """See `Tracker.image`."""
        self._run.log({name: self._wandb.Image(str(path)), "step": step})

    def close(self) -> None:
        """See `Tracker.close`."""
        self._run.finish()


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb}


def unknown(names: Sequence[str]) -> Iterator[str]:
    """A sentence about each name that is none of `TRACKERS`."""
    for name in names:
        if name not in TRACKERS:
            yield f"output.track: there is no '{name}'. Choose from: {', '.join(TRACKERS)}"


class Tracking:
    """A listener that passes a run's events on; what goes wrong there never ends the training."""

    def __init__(self, trackers: Sequence[Tracker], folder: Path, warn: Callable[[Event], None]) -> None:
        """Pass on to `trackers`.

        Args:
            trackers: where to.
            folder: the run folder, which images' paths are relative to.
            warn: is told, once, that one of them fails and is left out from now on.
        """
        self._trackers, self._folder, self._warn = list(trackers), folder, warn

    def __call__(self, event: Event) -> None:
        """Pass on an event, if it holds figures or an image."""
        if isinstance(event, Progress) and event.phase == "train":
            values = _known("train", event.metrics)
            if event.steps_per_second is not None:
                values["train/steps_per_second"] = event.steps_per_second
            self._tell(lambda tracker: tracker.scalars(event.step, values))
        elif isinstance(event, Validated):
            values = _known("validation", event.metrics)
            self._tell(lambda tracker: tracker.scalars(event.step, values))
        elif isinstance(event, Sample):
            name = f"samples/{event.seed}"
            self._tell(lambda tracker: tracker.image(event.step, name, self._folder / event.path))
            if event.cost is not None:
                cost = {f"cost/{event.seed}": event.cost}
                self._tell(lambda tracker: tracker.scalars(event.step, cost))
        elif isinstance(event, Done | Failed):
            self._tell(lambda tracker: tracker.close())
            self._trackers = []

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                tell(tracker)
            # Somebody else's program and its network: anything may happen, and none of it matters here.
            except Exception as error:
                self._trackers.remove(tracker)
                name = type(tracker).__name__
                self._warn(Warned(f"{name} failed ({error}) and gets no more figures; the training goes on."))


def start_tracking(names: Sequence[str], folder: Path, warn: Callable[[Event], None]) -> Tracking:
    """Begin to pass events on to the named programs.

    Raises:
        ScdpoError: one of them cannot be had; says what to do.
    """
    return Tracking([TRACKERS[name](folder) for name in names], folder, warn)


def _wandb_id(folder: Path) -> str:
    """What wandb knows the run of a folder by: made once and kept there, so that it moves with the folder.

    A name would not do: two folders of one name would become one run.
    """
    path = folder / WANDB
    kept = path.read_text("utf-8").strip() if path.is_file() else ""
    if not kept:
        kept = secrets.token_hex(8)
        write_text(path, kept + "\n")
    return kept


def _known(group: str, metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in metrics.items() if value is not None}


def _missing(package: str) -> ScdpoError:
    return ScdpoError(
        f"--track {package} needs the package {package}, which is not installed: pip install '.[{package}]'."
    )
