"""Estimate the time and memory of a training, from earlier runs on this machine, else from the family's
cost table and the speed of the machine."""

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
    """Expected time and memory of a training.

    Attributes:
        steps: of the training.
        seconds: of the training; None if unknown.
        source_run: name of the run on this machine that it is based on; '' if the machine was timed instead,
            which is right to a factor of two.
        memory: peak bytes of graphics memory; None if the model's family is unknown.
        savings: settings that would reduce it, as in a job.toml.
        is_least: whether `memory` is the minimum, of a training that uses what is available.
    """

    steps: int
    seconds: float | None
    source_run: str
    memory: int | None
    savings: tuple[str, ...] = ()
    is_least: bool = False


def estimate(job: LoraJob, earlier: Path, timed: Callable[[int, int, int], float] | None = None) -> Estimate:
    """Estimate a job.

    The time is that of the newest run with the same base, else of the same family, in proportion to
    steps, pairs in a step and pixels.

    Args:
        job: may be incomplete.
        earlier: the runs root.
        timed: measures this machine, see `benchmark.speed`; called when no run is similar. None: never.
    """
    family, tree = _family_of(job.base), _layered(job)
    cost, weights = _pair_cost(family), weight_bytes(job.base)
    steps, load = _steps(tree), _load(tree, cost)
    memory, savings = _memory(tree, cost, weights), _savings(tree, cost)
    is_least = _offloaded(tree) == "auto"
    comparable = next(_rates(job.base, family, earlier), None)
    if comparable is not None:
        folder, rate = comparable
        return Estimate(steps, steps * load / rate, folder.name, memory, savings, is_least)
    seconds = None
    if cost is not None and timed is not None:
        work = cost.work[_checkpoints_gradients(tree)] * 1e12 * _share(cost, weights)
        seconds = steps * load * work / (timed(*cost.probe) * cost.reach)
    return Estimate(steps, seconds, "", memory, savings, is_least)


def in_words(expected: Estimate) -> str:
    """Format the estimate as sentences."""
    if expected.seconds is None:
        time = "time unknown, since no earlier run used this model; the bar shows it after a few steps"
    elif expected.source_run:
        time = f"about {_duration(expected.seconds)}, judging by the run '{expected.source_run}'"
    else:
        time = (
            f"very roughly {_duration(expected.seconds)}, perhaps half or twice that. No such model was "
            "trained here yet, so this comes from a short speed test; the progress bar will be more exact"
        )
    memory = ""
    # Every machine has the memory that the embedded model needs.
    if expected.memory and expected.memory >= _WORTH_SAYING:
        how_much = "at least" if expected.is_least else "about"
        memory = f" It needs {how_much} {expected.memory / 2**30:.1f} GB of graphics memory."
        if expected.savings:
            memory += f" If that is too much, set {' or '.join(expected.savings)} below."
    return f"{expected.steps:,} steps: {time}.{memory}"


def weight_bytes(base: str) -> int | None:
    """Return the bytes of a .safetensors checkpoint's denoiser in 16 bits; None for anything else."""
    from ..io.safetensors_header import read_header

    path = Path(base).expanduser()
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return None
    try:
        shapes = read_header(path).shapes
    except ScdpoError:
        return None
    weights = [shape for name, shape in shapes.items() if name.startswith(_DENOISERS)] or list(
        shapes.values()
    )
    return sum(math.prod(shape) for shape in weights) * _BYTES


def _family_of(base: str) -> str:
    """Detect the family of a base model; '' if it is unknown, 'micro' for the embedded one."""
    from ..families.detect import detect
    from ..family_info import MICRO

    path = Path(base.strip()).expanduser()
    if base == MICRO or not base.strip() or not path.exists():
        return MICRO if base == MICRO else ""
    try:
        return detect(path).family or ""
    except ScdpoError:
        return ""


def _rates(base: str, family: str, earlier: Path) -> Iterator[tuple[Path, float]]:
    """Yield comparable runs, the best first, and how much of `_load` each did per second."""
    trees = [(folder, _tree(folder / names.JOB)) for folder in runs_in(earlier, "lora")[:_MOST_LOOKED]]
    bases = [str(_section(tree, "model").get("base", "")) for _, tree in trees]
    same = [run for run, other in zip(trees, bases, strict=True) if other == base]
    yield from _rates_of(same, family)
    alike = (
        run for run, other in zip(trees, bases, strict=True) if other != base and _family_of(other) == family
    )
    yield from _rates_of(alike if family else (), family)


def _rates_of(runs: Iterable[tuple[Path, Tree]], family: str) -> Iterator[tuple[Path, float]]:
    for folder, tree in runs:
        try:
            speed = Follower(folder).view().steps_per_second
        except ScdpoError:
            continue
        if speed:
            yield folder, speed * _load(tree, _pair_cost(family))


def _pair_cost(family: str) -> PairCost | None:
    return FAMILY_INFO[family].cost if family in FAMILY_INFO else None


def _memory(tree: Tree, needs: PairCost | None, weights: int | None) -> int | None:
    if needs is None or _section(tree, "model").get("quantize", "off") != "off":
        return None
    share, rank = _share(needs, weights), _section(tree, "lora").get("rank", _DEFAULT_RANK)
    step = needs.step[_checkpoints_gradients(tree)] * share * _batch(tree) * _area(tree, needs)
    held = (needs.weights - _waiting(tree, needs)) * share
    return int((held + needs.lora * share * int(rank) / COST_RANK + step) * 2**30)


def _offloaded(tree: Tree) -> int | Literal["auto"]:
    """Return the number of blocks in main memory; 0 where the setting is not a number."""
    blocks = _section(tree, "model").get("offload_blocks", 0)
    if blocks == "auto":
        return "auto"
    return blocks if type(blocks) is int and blocks > 0 else 0


def _waiting(tree: Tree, needs: PairCost) -> float:
    """Return the GiB of the blocks in main memory; 'auto' counts all, though it may use fewer."""
    blocks, (total, weights) = _offloaded(tree), needs.blocks
    count = total if blocks == "auto" else min(blocks, total)
    return weights * max(0, count - _IN_FLIGHT) / total if total else 0.0


def _savings(tree: Tree, needs: PairCost | None) -> tuple[str, ...]:
    settings = (
        (not _checkpoints_gradients(tree), "gradient_checkpointing = true"),
        (needs is not None and bool(needs.blocks[0]) and not _offloaded(tree), 'offload_blocks = "auto"'),
        (_batch(tree) > 1, "a smaller batch_size"),
    )
    return tuple(setting for helps, setting in settings if helps)


def _share(needs: PairCost, weights: int | None) -> float:
    """Return a model's size relative to the family's measured one."""
    return 1.0 if weights is None else weights / 2**30 / needs.weights


def _layered(job: LoraJob) -> Tree:
    """Merge the settings that matter, in the trainer's order."""
    preset = _tree(ROOT / "trainer" / "configs" / f"{_family_of(job.base)}.toml")
    quality = quality_settings(job.quality, job.base) if job.quality in QUALITIES else {}
    layers = (preset, quality, job.choices, _chosen(job))
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
    """Return the pairs per step, counted as pairs of the usual size."""
    accumulation = int(_section(tree, "optim").get("accumulation", _DEFAULT_ACCUMULATION))
    return _batch(tree) * max(1, accumulation) * _area(tree, needs)


def _area(tree: Tree, needs: PairCost | None) -> float:
    """Return an image's pixels relative to the usual number."""
    data = _section(tree, "data")
    width, height = int(data.get("width", 0)), int(data.get("height", 0))
    return width * height / needs.side**2 if needs is not None and width and height else 1.0


def _checkpoints_gradients(tree: Tree) -> bool:
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
