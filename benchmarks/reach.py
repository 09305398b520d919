#!/usr/bin/env python3
"""How much of a convolution's speed a training step reaches: what a first estimate of its time rests on.

    python benchmarks/reach.py [--kinds micro sd1] [--size 256] [--steps 3]

A random model of the kind's shape takes steps beside the convolution that `scdpo_core.runs.benchmark` times,
in turns. `scdpo_core/family_info.py` has the share as `reach`; here it is on the machine that this runs on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.random_models import SHAPES, random_model
from benchmarks.step_variants import floor, random_pairs
from scdpo_core.families import family_of
from scdpo_core.families.base import LoadOptions
from scdpo_core.family_info import COST_RANK, FAMILY_INFO, MICRO
from scdpo_core.lora.adapter import attach
from scdpo_core.runs import benchmark
from scdpo_core.training.checks import resolve_device, resolve_dtype


def main() -> None:
    """Print a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="*", default=[MICRO, "sd1"], choices=[MICRO, "sd1", "sdxl"])
    parser.add_argument("--size", type=int, default=0, help="side of the images; not given, the kind's")
    parser.add_argument("--batch", type=int, default=0, help="pairs; not given, 16 for micro, else 1")
    parser.add_argument("--steps", type=int, default=3)
    own = parser.parse_args()
    for kind in own.kinds:
        print(measured(kind, own.size, own.batch, own.steps), flush=True)


def measured(kind: str, size: int, batch: int, steps: int) -> str:
    """What a step took beside what the convolution's speed promised, and the share that was reached."""
    device, needs = resolve_device("auto"), FAMILY_INFO[kind].cost
    assert needs is not None
    dtype = resolve_dtype("auto", device)
    if kind == MICRO:
        model, size = family_of("auto", MICRO).load(MICRO, device, dtype, LoadOptions()), needs.side
    else:
        model, size = random_model(SHAPES[kind], device, dtype), size or needs.side
    batch = batch or (16 if kind == MICRO else 1)
    adapter = attach(model.denoiser, rank=COST_RANK, alpha=COST_RANK, targets="attention", seed=0)
    model.denoiser.train()
    step = floor(model, adapter, random_pairs(model, size, batch), 2 * batch, 2 * batch).step
    step()
    promised, took = [], []
    for _ in range(steps):
        benchmark.forget()
        promised.append(
            batch * (size / needs.side) ** 2 * needs.work[0] * 1e12 / benchmark.speed(*needs.probe)
        )
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    shares = [one / other for one, other in zip(promised, took, strict=True)]
    return (
        f"{kind} at {size}, {batch} pairs, {device}: {statistics.median(took):.3f} s a step, "
        f"reach {statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f}); "
        f"the estimate takes {needs.reach}"
    )


if __name__ == "__main__":
    main()
