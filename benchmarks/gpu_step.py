"""What a step costs on a GPU, with each way to save memory or time, in ten minutes at most:

    python benchmarks/gpu_step.py --json gpu.json --markdown gpu.md

SD 1.5 at 512 and SDXL at 1024 pixels, random weights, 4 pairs, as it is and with gradient checkpointing,
block offload, both, and compiled blocks. In each of these four kinds of step take turns:

    redirect and keep   our trainer's step of the default objective
    redirect floor      the network forward and backward over as many images as that computes
    sc_dpo              our trainer's step of SC-DPO
    floor + reference   the network over as many images as that

Both files are rewritten after every case, so that an interrupted run keeps what was measured. A case that
does not fit the card says so, and one for which no time is left is named as not run. `--tiny` takes a small
network and one round: the same script in a minute on a processor, where its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.random_models import SHAPES, random_model  # noqa: E402
from benchmarks.step import seconds_for, synchronise  # noqa: E402
from benchmarks.step_variants import (  # noqa: E402
    BETA,
    Variant,
    floor,
    images_of_terms,
    ours,
    random_pairs,
    redirect_keep,
)
from scdpo_core.config.settings import (  # noqa: E402
    LoraSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimSettings,
    TrainSettings,
)
from scdpo_core.devices import is_out_of_memory  # noqa: E402
from scdpo_core.families.base import LoadOptions  # noqa: E402
from scdpo_core.families.block_offload import blocks_of  # noqa: E402
from scdpo_core.io.files import write_json, write_text  # noqa: E402
from scdpo_core.training.adapters import attach_lora  # noqa: E402
from scdpo_core.training.checks import resolve_device, resolve_dtype  # noqa: E402
from scdpo_core.training.distributed import SingleProcess  # noqa: E402
from scdpo_core.training.loading import make_ready  # noqa: E402

PAIRS = 4
ALL_BLOCKS = 10**6
SAVINGS: dict[str, ModelSettings] = {
    "as it is": ModelSettings(),
    "checkpointing": ModelSettings(gradient_checkpointing=True),
    "offload": ModelSettings(offload_blocks=ALL_BLOCKS),
    "checkpointing, offload": ModelSettings(gradient_checkpointing=True, offload_blocks=ALL_BLOCKS),
    # Last, for nobody can end it halfway: it takes minutes before its first step.
    "compiled blocks": ModelSettings(compile="blocks"),
}


@dataclass
class Case:
    """A network with one saving.

    Attributes:
        shape: see `SHAPES`.
        size: pixels along an edge.
        saving: see `SAVINGS`.
        seconds: of each kind of step, round by round.
        start: seconds of the first steps of all kinds, with what is compiled.
        memory: most bytes that the device held, weights included; None on a processor.
        blocks: how many of the network's blocks waited in main memory, and how many it has.
        note: why there are no figures; '' where there are.
    """

    shape: str
    size: int
    saving: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    start: float = 0.0
    memory: int | None = None
    blocks: tuple[int, int] = (0, 0)
    note: str = ""


def cases(tiny: bool) -> list[Case]:
    """List what is measured, in this order."""
    shapes = [("small", 64)] if tiny else [(name, SHAPES[name].size) for name in ("sd1", "sdxl")]
    savings = [name for name in SAVINGS if not (tiny and name == "compiled blocks")]
    return [Case(shape, size, saving) for saving in savings for shape, size in shapes]


def kinds_of_step(case: Case, device: torch.device, work: Path) -> dict[str, Variant]:
    """Make a network with that saving, and the kinds of step with it."""
    saving = SAVINGS[case.saving]
    options = LoadOptions(offload_blocks=saving.offload_blocks)
    model = random_model(SHAPES[case.shape], device, resolve_dtype("auto", device), options=options)
    pairs = random_pairs(model, case.size, PAIRS)
    settings = TrainSettings(
        model=saving,
        objective=ObjectiveSettings("sc_dpo", beta=BETA),
        # A rate that leaves the LoRA where it is.
        optim=OptimSettings(batch_size=PAIRS, accumulation=1, lr=1e-7, max_train_steps=200),
        lora=LoraSettings(rank=16),
    )
    adapter = attach_lora(model, settings.lora, seed=0)
    if saving.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    make_ready(model, adapter, settings.model, SingleProcess())
    total = len(blocks_of(model.denoiser))
    case.blocks = (min(int(saving.offload_blocks), total), total)
    terms = redirect_keep(settings, keep_text=True)
    policy, reference = map(round, images_of_terms(terms))
    kinds = {
        "redirect and keep": ours(model, adapter, pairs, terms, work),
        "redirect floor": floor(model, adapter, pairs, policy, reference),
        "sc_dpo": ours(model, adapter, pairs, settings, work),
        "floor + reference": floor(model, adapter, pairs, 2 * PAIRS, 2 * PAIRS),
    }
    # Nothing but the network is on the card while a run trains.
    model.release_encoders()
    return kinds


def measure(case: Case, device: torch.device, rounds: int, steps: int) -> None:
    """Fill in a case's figures, or say why there are none."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with tempfile.TemporaryDirectory(prefix="scdpo-gpu-step-") as work:
            kinds = kinds_of_step(case, device, Path(work))
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            began = time.perf_counter()
            for variant in kinds.values():
                variant.step()
            synchronise(device)
            case.start = round(time.perf_counter() - began, 3)
            for _ in range(rounds):
                for kind, variant in kinds.items():
                    taken = seconds_for(variant, steps, device, time.perf_counter)
                    case.seconds.setdefault(kind, []).append(round(taken, 5))
            if device.type == "cuda":
                case.memory = torch.cuda.max_memory_allocated(device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        case.seconds.clear()
        case.note = "does not fit"


def table(measured: Sequence[Case]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield "| network, pixels | saving | step | seconds (low, high) | against its floor | most memory |"
    yield "|---|---|---|---|---|---|"
    for case in measured:
        head = f"| {case.shape}, {case.size} | {case.saving} |"
        if case.note:
            yield f"{head} {case.note} | | | |"
        for kind, own in (("redirect and keep", "redirect floor"), ("sc_dpo", "floor + reference")):
            seconds = case.seconds.get(kind)
            if not seconds:
                continue
            ratio = statistics.median(a / b for a, b in zip(seconds, case.seconds[own], strict=True))
            memory = "" if case.memory is None else f"{case.memory / 2**30:.2f} GiB"
            spread = f"{statistics.median(seconds):.3f} ({min(seconds):.3f}, {max(seconds):.3f})"
            yield f"{head} {kind} | {spread} | {ratio:.2f} | {memory} |"


def write(measured: Sequence[Case], device: torch.device, options: argparse.Namespace) -> None:
    """Write what is known so far into the files that were asked for."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    if options.json is not None:
        facts = {"device": name, "torch": torch.__version__, "pairs": PAIRS, "tiny": options.tiny}
        write_json(options.json, {**facts, "cases": [asdict(case) for case in measured]})
    if options.markdown is not None:
        title = f"{name}, torch {torch.__version__}, {PAIRS} pairs, random weights\n\n"
        write_text(options.markdown, title + "\n".join(table(measured)) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="no case begins when these are nearly over"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of each kind in a round")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="a small network and one round, on any machine")
    options = parser.parse_args(arguments)
    device = resolve_device(options.device)
    rounds, steps = (1, 1) if options.tiny else (options.rounds, options.steps)
    began, longest = time.monotonic(), 0.0
    measured = cases(options.tiny)
    for case in measured:
        left = options.minutes * 60 - (time.monotonic() - began)
        # Compiling takes longer than anything before it did.
        if left < longest * (3 if SAVINGS[case.saving].compile != "off" else 1.5):
            case.note = "not run: no time was left"
        else:
            started = time.monotonic()
            measure(case, device, rounds, steps)
            longest = max(longest, time.monotonic() - started)
        write(measured, device, options)
        print(
            f"{time.monotonic() - began:.0f} s: {case.shape}, {case.saving} {case.note}".rstrip(), flush=True
        )
    print("\n" + "\n".join(table(measured)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
