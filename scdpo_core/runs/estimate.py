"""What a training will take, from what is known: earlier runs on this machine, else what the kind of model
costs and how fast the machine computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..config import toml
from ..family_info import COST_RANK, FAMILY_INFO, PairCost
from ..run_store import folder as names
from ..run_store.folder import runs_in
from ..types import ScdpoError
from .follow import Follower
from .interpreter import ROOT
from .jobs import QUALITIES, LoraJob, quality_settings

_MOST_LOOKED = 12  # runs, newest first
_WORTH_SAYING = 2**27  # bytes
_BYTES = 2  # a weight in 16 bits
_IN_FLIGHT = 2  # blocks that are on the device at once, of those that wait in main memory
_DEFAULT_STEPS, _DEFAULT_BATCH, _DEFAULT_ACCUMULATION, _DEFAULT_RANK = 700, 4, 4, 16
_DENOISERS = ("model.diffusion_model.", "unet.", "transformer.")

Tree = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Estimate:
    """What a training will take.

    Attributes:
        steps: of the training.
        seconds: of the training; None if nothing tells.
        told_by: name of the run on this machine that tells; '' if the machine was timed instead, which is
            right to a factor of two.
        memory: bytes of graphics memory at its peak; None if the kind of model is not known.
        spares: settings that would make that less, as in a job.toml.
        is_least: whether `memory` is the least that will do, of a training that takes what there is.
    """

    steps: int
    seconds: float | None
    told_by: str
    memory: int | None
    spares: tuple[str, ...] = ()
    is_least: bool = False


def estimate(job: LoraJob, earlier: Path, timed: Callable[[int, int, int], float] | None = None) -> Estimate:
    """Estimate a job.

    The time is that of the newest run with the same base, or else one of the same kind, in proportion to
    steps, pairs in a step and pixels.

    Args:
        job: need not be complete.
        earlier: the runs root.
        timed: how fast this machine is, see `benchmark.speed`; called when no run tells. None: never.
    """
    kind, tree = _kind(job.base), _layered(job)
    needs, weights = _cost_of(kind), weight_bytes(job.base)
    steps, load = _steps(tree), _load(tree, needs)
    memory, spares, is_least = _memory(tree, needs, weights), _spares(tree, needs), _offloaded(tree) == "auto"
    told = next(_rates(job.base, kind, earlier), None)
    if told is not None:
        folder, rate = told
        return Estimate(steps, steps * load / rate, folder.name, memory, spares, is_least)
    seconds = None
    if needs is not None and timed is not None:
        work = needs.work[_saves(tree)] * 1e12 * _share(needs, weights)
        seconds = steps * load * work / (timed(*needs.probe) * needs.reach)
    return Estimate(steps, seconds, "", memory, spares, is_least)


def in_words(found: Estimate) -> str:
    """The estimate as sentences."""
    if found.seconds is None:
        time = "no earlier run with this model tells how long; the bar will after the first steps"
    elif found.told_by:
        time = f"about {_duration(found.seconds)}, judging by the run '{found.told_by}'"
    else:
        time = (
            f"very roughly {_duration(found.seconds)}, perhaps half or twice that. No such model was trained "
            "here yet, so this machine was timed for a moment; the bar will tell better"
        )
    memory = ""
    # Nobody lacks what the embedded model needs.
    if found.memory and found.memory >= _WORTH_SAYING:
        how_much = "at least" if found.is_least else "about"
        memory = f" It needs {how_much} {found.memory / 2**30:.1f} GB of graphics memory."
        if found.spares:
            memory += f" If that is too much, set {' or '.join(found.spares)} below."
    return f"{found.steps:,} steps: {time}.{memory}"


def weight_bytes(base: str) -> int | None:
    """Bytes of the drawing network of a .safetensors checkpoint, in 16 bits; None of anything else."""
    from ..io.safetensors_header import read_header

    path = Path(base).expanduser()
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return None
    try:
        shapes = read_header(path).shapes
    except ScdpoError:
        return None
    own = [shape for name, shape in shapes.items() if name.startswith(_DENOISERS)] or list(shapes.values())
    return sum(math.prod(shape) for shape in own) * _BYTES


def _kind(base: str) -> str:
    """The family of a base model, 'micro' of the embedded one; '' if that cannot be told."""
    from ..families.detect import detect
    from ..family_info import MICRO

    path = Path(base.strip()).expanduser()
    if base == MICRO or not base.strip() or not path.exists():
        return MICRO if base == MICRO else ""
    try:
        return detect(path).family or ""
    except ScdpoError:
        return ""


def _rates(base: str, kind: str, earlier: Path) -> Iterator[tuple[Path, float]]:
    """Runs that tell, the best first, and how much of `_load` each did in a second."""
    trees = [(folder, _tree(folder / names.JOB)) for folder in runs_in(earlier, "lora")[:_MOST_LOOKED]]
    bases = [str(_section(tree, "model").get("base", "")) for _, tree in trees]
    same = [run for run, other in zip(trees, bases, strict=True) if other == base]
    yield from _told(same, kind)
    alike = (run for run, other in zip(trees, bases, strict=True) if other != base and _kind(other) == kind)
    yield from _told(alike if kind else (), kind)


def _told(runs: Iterable[tuple[Path, Tree]], kind: str) -> Iterator[tuple[Path, float]]:
    for folder, tree in runs:
        try:
            speed = Follower(folder).view().steps_per_second
        except ScdpoError:
            continue
        if speed:
            yield folder, speed * _load(tree, _cost_of(kind))


def _cost_of(kind: str) -> PairCost | None:
    return FAMILY_INFO[kind].cost if kind in FAMILY_INFO else None


def _memory(tree: Tree, needs: PairCost | None, weights: int | None) -> int | None:
    if needs is None or _section(tree, "model").get("quantize", "off") != "off":
        return None
    share, rank = _share(needs, weights), _section(tree, "lora").get("rank", _DEFAULT_RANK)
    step = needs.step[_saves(tree)] * share * _batch(tree) * _area(tree, needs)
    held = (needs.weights - _waiting(tree, needs)) * share
    return int((held + needs.lora * share * int(rank) / COST_RANK + step) * 2**30)


def _offloaded(tree: Tree) -> int | Literal["auto"]:
    """How many blocks wait in main memory; 0 where somebody wrote what is no number."""
    blocks = _section(tree, "model").get("offload_blocks", 0)
    if blocks == "auto":
        return "auto"
    return blocks if type(blocks) is int and blocks > 0 else 0


def _waiting(tree: Tree, needs: PairCost) -> float:
    """GiB of the blocks that wait in main memory: all with 'auto', which takes fewer where there is room."""
    asked, (total, weights) = _offloaded(tree), needs.blocks
    count = total if asked == "auto" else min(asked, total)
    return weights * max(0, count - _IN_FLIGHT) / total if total else 0.0


def _spares(tree: Tree, needs: PairCost | None) -> tuple[str, ...]:
    ways = (
        (not _saves(tree), "gradient_checkpointing = true"),
        (needs is not None and bool(needs.blocks[0]) and not _offloaded(tree), 'offload_blocks = "auto"'),
        (_batch(tree) > 1, "a smaller batch_size"),
    )
    return tuple(way for helps, way in ways if helps)


def _share(needs: PairCost, weights: int | None) -> float:
    """How large a model is beside the one of its kind that was looked at."""
    return 1.0 if weights is None else weights / 2**30 / needs.weights


def _layered(job: LoraJob) -> Tree:
    """The settings that are known to count, as the trainer will put them together."""
    preset = _tree(ROOT / "trainer" / "configs" / f"{_kind(job.base)}.toml")
    own = quality_settings(job.quality, job.base) if job.quality in QUALITIES else {}
    layers = (preset, own, job.choices, _chosen(job))
    sections = ("optim", "model", "data", "lora")
    return {
        name: {key: value for layer in layers for key, value in _section(layer, name).items()}
        for name in sections
    }


def _steps(tree: Tree) -> int:
    return int(_section(tree, "optim").get("max_train_steps", _DEFAULT_STEPS))


def _batch(tree: Tree) -> int:
    return max(1, int(_section(tree, "optim").get("batch_size", _DEFAULT_BATCH)))


def _load(tree: Tree, needs: PairCost | None) -> float:
    """Pairs in a step, as pairs of the usual size."""
    accumulation = int(_section(tree, "optim").get("accumulation", _DEFAULT_ACCUMULATION))
    return _batch(tree) * max(1, accumulation) * _area(tree, needs)


def _area(tree: Tree, needs: PairCost | None) -> float:
    """Pixels of an image beside the usual number."""
    data = _section(tree, "data")
    width, height = int(data.get("width", 0)), int(data.get("height", 0))
    return width * height / needs.side**2 if needs is not None and width and height else 1.0


def _saves(tree: Tree) -> bool:
    return bool(_section(tree, "model").get("gradient_checkpointing", False))


def _duration(seconds: float) -> str:
    for size, unit in ((86400.0, "day"), (3600.0, "hour")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}s"
    minutes = max(1, math.ceil(seconds / 60))
    return f"{minutes} minute{'s' if minutes > 1 else ''}"


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
