"""What a training will take, from what is known: earlier runs on this machine, and the base model's size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..types import ScdpoError
from . import folder as names
from . import toml
from .follow import Follower
from .interpreter import ROOT
from .jobs import QUALITIES, LoraJob, Quality
from .listing import runs_in

_MOST_LOOKED = 12  # runs, newest first
_BYTES = 2  # a weight in 16 bits
_DEFAULT_STEPS, _DEFAULT_BATCH, _DEFAULT_ACCUMULATION = 700, 4, 4
_DENOISERS = ("model.diffusion_model.", "unet.", "transformer.")


@dataclass(frozen=True)
class Estimate:
    """What a training will take.

    Attributes:
        steps: of the training.
        seconds: of the training; None if no earlier run on this machine tells.
        told_by: name of the run that tells; '' if none does.
        weights: bytes of the network that draws, in 16 bits, which is the least it needs of the graphics
            card; None if the file does not tell.
    """

    steps: int
    seconds: float | None
    told_by: str
    weights: int | None


def estimate(job: LoraJob, earlier: Path) -> Estimate:
    """Estimate a job.

    The time is that of the newest run with the same base, in proportion to steps times pairs in a step.

    Args:
        job: need not be complete.
        earlier: the runs root.
    """
    chosen = _chosen(job)
    steps, pairs = _amount(_layered(job.base, job.quality, chosen))
    for folder in runs_in(earlier, "lora")[:_MOST_LOOKED]:
        tree = _tree(folder / names.JOB)
        if _section(tree, "model").get("base") != job.base:
            continue
        try:
            speed = Follower(folder).view().steps_per_second
        except ScdpoError:
            continue
        if speed:
            _, others = _amount(tree)
            return Estimate(steps, steps / speed * pairs / others, folder.name, weight_bytes(job.base))
    return Estimate(steps, None, "", weight_bytes(job.base))


def in_words(found: Estimate) -> str:
    """The estimate as sentences."""
    if found.seconds is None:
        time = "no earlier run with this model tells how long; the bar will after the first steps"
    else:
        minutes = math.ceil(found.seconds / 60)
        time = f"about {minutes} minute{'s' if minutes > 1 else ''}, judging by the run '{found.told_by}'"
    memory = ""
    if found.weights:
        memory = (
            f" The network alone takes {found.weights / 2**30:.1f} GB of graphics memory; the pictures come "
            "on top. If that is too much, set gradient_checkpointing or a smaller batch_size below."
        )
    return f"{found.steps:,} steps: {time}.{memory}"


def weight_bytes(base: str) -> int | None:
    """Bytes of the drawing network of a .safetensors checkpoint, in 16 bits; None of anything else."""
    from ..families.header import read_header

    path = Path(base).expanduser()
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return None
    try:
        shapes = read_header(path).shapes
    except ScdpoError:
        return None
    own = [shape for name, shape in shapes.items() if name.startswith(_DENOISERS)] or list(shapes.values())
    return sum(math.prod(shape) for shape in own) * _BYTES


def _layered(base: str, quality: Quality, chosen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    preset = _tree(ROOT / "trainer" / "configs" / "micro.toml") if base == "micro" else {}
    layers = (preset, QUALITIES.get(quality, {}), chosen)
    return {"optim": {key: value for layer in layers for key, value in _section(layer, "optim").items()}}


def _amount(tree: dict[str, Any]) -> tuple[int, int]:
    """Steps, and pairs that a step looks at."""
    optim = _section(tree, "optim")
    size = int(optim.get("batch_size", _DEFAULT_BATCH)) * int(
        optim.get("accumulation", _DEFAULT_ACCUMULATION)
    )
    return int(optim.get("max_train_steps", _DEFAULT_STEPS)), max(1, size)


def _chosen(job: LoraJob) -> dict[str, Any]:
    try:
        return toml.loads(job.overrides)
    except ValueError:
        return {}


def _tree(path: Path) -> dict[str, Any]:
    try:
        return toml.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _section(tree: Any, name: str) -> dict[str, Any]:
    values = tree.get(name, {})
    return dict(values) if isinstance(values, dict) else {}
