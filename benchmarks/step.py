"""What a training step costs, beside the least that it can cost and beside what other scripts do in one.

    python benchmarks/step.py [--shape sd1] [--size 512] [--rounds 5] [--json FILE]
    python benchmarks/step.py --external "python other.py {model} {pairs} {steps} {size} {batch}"

One random model, the same pairs and batch for all, in one process. The kinds of step take turns (A B C A B C
...), and ratios are taken within a round, so that a busy machine favours none of them:

    floor              the network forward and backward on 2B images
    floor + reference  the same after a forward pass without the LoRA
    ours               our trainer's step of SC-DPO, from dealing the pairs to the optimizer
    ours, cached       the same with a reference cache
    peer               VAE and text encoder in every step, then as 'ours' without its care
    redirect and keep  our trainer's step of the default objective (for --batch-size 4, 8, 12 ...)
    redirect floor     the network on as many images as that computes

An external script is run twice with different numbers of steps; the difference is what its steps cost. In its
command, {model} is a diffusers folder, {pairs} a preference folder.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.matrix import handed_out, images_computed, matrix_peak, operations  # noqa: E402
from benchmarks.random_models import SHAPES, random_model, save_pipeline  # noqa: E402
from benchmarks.step_variants import (  # noqa: E402
    BETA,
    Pairs,
    Variant,
    floor,
    images_of_terms,
    ours,
    peer,
    random_pairs,
    redirect_keep,
    with_draws,
)
from scdpo_core.config.settings import (  # noqa: E402
    LoraSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimSettings,
    TrainSettings,
)
from scdpo_core.families.latent_model import LatentModel  # noqa: E402
from scdpo_core.io.files import write_json  # noqa: E402
from scdpo_core.lora.adapter import attach  # noqa: E402
from scdpo_core.training.checks import resolve_device, resolve_dtype  # noqa: E402
from scdpo_core.training.distributed import SingleProcess  # noqa: E402
from scdpo_core.training.loading import make_ready  # noqa: E402

FLOOR, FLOOR_REFERENCE, OURS, CACHED, PEER = (
    "floor",
    "floor + reference",
    "ours",
    "ours, cached",
    "peer",
)
REDIRECT, NO_TEXT = "redirect and keep", "redirect and keep, no keep text"
OWN_FLOOR = {REDIRECT: "redirect floor", NO_TEXT: "redirect floor, no keep text"}
"""Kinds of step with a floor of their own, and its name."""
PAIRS = 4
TARGETS = {
    "ours_vs_floor": 1.05,
    "ours_cached_vs_floor_cached": 1.05,
    "ours_cached_vs_peer": 0.5,
    "memory_vs_floor": 1.1,
}
"""The most that each figure may be; the one about peers at the shapes of SD 1 and larger."""


def settings_of(options: argparse.Namespace, device: torch.device) -> TrainSettings:
    """Of our trainer with SC-DPO, at a rate that leaves the LoRA where it is."""
    return TrainSettings(
        model=ModelSettings(
            device=str(device),
            precision=options.precision,
            gradient_checkpointing=options.gradient_checkpointing,
            channels_last=options.channels_last,
            compile=options.compile,
        ),
        objective=ObjectiveSettings("sc_dpo", beta=BETA),
        optim=OptimSettings(batch_size=options.batch_size, accumulation=1, lr=1e-7, max_train_steps=200),
        lora=LoraSettings(rank=options.rank),
    )


def build(options: argparse.Namespace, work: Path) -> tuple[LatentModel, Pairs, dict[str, Variant], float]:
    """The model, the pairs, the kinds of step, and the seconds that compiling took."""
    device = resolve_device(options.device)
    shape = SHAPES[options.shape]
    size = options.size or shape.size
    model = random_model(shape, device, resolve_dtype(options.precision, device))
    pairs = random_pairs(model, size, max(PAIRS, options.batch_size))
    if options.external:
        save_pipeline(model, shape, work / "model")
    second = copy.deepcopy(model.denoiser) if options.peer == "second-unet" else None
    settings = settings_of(options, device)
    adapter = attach(
        model.denoiser, rank=options.rank, alpha=options.rank, targets=settings.lora.targets, seed=0
    )
    if options.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    make_ready(model, adapter, settings.model, SingleProcess())
    variants = {
        FLOOR: floor(model, adapter, pairs, 2 * options.batch_size),
        FLOOR_REFERENCE: floor(model, adapter, pairs, 2 * options.batch_size, 2 * options.batch_size),
        OURS: ours(model, adapter, pairs, settings, work),
        CACHED: ours(model, adapter, pairs, with_draws(settings, 2), work),
        PEER: peer(model, adapter, pairs, options.batch_size, second, BETA),
    }
    for kind in OWN_FLOOR if options.batch_size % 4 == 0 else ():
        terms = redirect_keep(settings, keep_text=kind == REDIRECT)
        policy, reference = map(round, images_of_terms(terms))
        variants[kind] = ours(model, adapter, pairs, terms, work)
        variants[OWN_FLOOR[kind]] = floor(model, adapter, pairs, policy, reference)
    began = time.perf_counter()
    for variant in variants.values():
        variant.step()
    synchronise(device)
    return model, pairs, variants, time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""'cpu' is what this process computes, in all its threads; for a machine that others use too."""


def seconds_for(variant: Variant, steps: int, device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds for one step, the mean of some."""
    synchronise(device)
    began = clock()
    for _ in range(steps):
        variant.step()
    synchronise(device)
    return (clock() - began) / steps


def peak_bytes(variant: Variant, device: torch.device) -> int:
    """The most memory that torch holds in a step, beyond what was there before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        variant.step()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        variant.step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def random_folder(pairs: Pairs, folder: Path) -> Path:
    """The pairs as a preference folder."""
    for number, (both, prompt) in enumerate(zip(pairs.pixels, pairs.prompts, strict=True)):
        for side, pixels in zip(("chosen", "rejected"), both, strict=True):
            place = folder / side
            place.mkdir(parents=True, exist_ok=True)
            array = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(array).save(place / f"{number}.png")
            (place / f"{number}.txt").write_text(prompt, "utf-8")
    return folder


def external_seconds(command: str, values: Mapping[str, object], few: int, more: int) -> float:
    """Seconds for a step of another script: what `more` steps beyond `few` take."""
    taken = []
    for steps in (few, few + more):
        words = [word.format(steps=steps, **values) for word in shlex.split(command)]
        began = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - began)
    return (taken[1] - taken[0]) / more


def ratio(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of what one kind costs in units of another, round by round."""
    each = [a / b for a, b in zip(one, other, strict=True)]
    return {"median": statistics.median(each), "low": min(each), "high": max(each)}


def summary(seconds: Mapping[str, list[float]], memory: Mapping[str, int]) -> dict[str, Any]:
    """The figures that count, with their spread under 'ratios'."""
    ratios = {
        "ours_vs_floor": ratio(seconds[OURS], seconds[FLOOR_REFERENCE]),
        "ours_cached_vs_floor_cached": ratio(seconds[CACHED], seconds[FLOOR]),
        "ours_cached_vs_peer": ratio(seconds[CACHED], seconds[PEER]),
        "ours_vs_peer": ratio(seconds[OURS], seconds[PEER]),
    }
    for kind, own in OWN_FLOOR.items():
        if kind in seconds:
            name = kind.replace(",", "").replace(" ", "_")
            ratios[f"{name}_vs_floor"] = ratio(seconds[kind], seconds[own])
            ratios[f"{name}_vs_ours"] = ratio(seconds[kind], seconds[OURS])
    found: dict[str, Any] = {name: round(value["median"], 4) for name, value in ratios.items()}
    found["memory_vs_floor"] = round(max(memory[OURS], memory[CACHED]) / memory[FLOOR], 4)
    found["memory_vs_peer"] = round(memory[CACHED] / memory[PEER], 4)
    found["not_network_share"] = round(1 - 1 / ratios["ours_vs_floor"]["median"], 4)
    found["not_network_share_cached"] = round(1 - 1 / ratios["ours_cached_vs_floor_cached"]["median"], 4)
    found["ratios"] = {name: {key: round(v, 4) for key, v in value.items()} for name, value in ratios.items()}
    return found


def table(seconds: Mapping[str, list[float]], memory: Mapping[str, int], pairs: int) -> str:
    """Seconds, pairs per second and memory of each kind of step as a Markdown table."""
    lines = ["| step | seconds (low, high) | pairs/s | peak memory |", "|---|---|---|---|"]
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        held = f"{memory[name] / 2**30:.2f} GiB" if name in memory else ""
        lines.append(
            f"| {name} | {middle:.3f} ({min(taken):.3f}, {max(taken):.3f}) | {pairs / middle:.3g} | {held} |"
        )
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; prints as it goes."""
    with tempfile.TemporaryDirectory(prefix="scdpo-step-") as name:
        work = Path(name)
        model, pairs, variants, first = build(options, work)
        memory = {
            kind: variant.resident() + peak_bytes(variant, model.device) for kind, variant in variants.items()
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in variants}
        on_gpu = model.device.type == "cuda"
        counted = on_gpu and options.compile == "off"
        work_of = {kind: operations(variant.step) for kind, variant in variants.items()} if counted else {}
        calls = {kind: handed_out(variant.step) for kind, variant in variants.items()}
        images = {kind: images_computed(one.step, model.denoiser) for kind, one in variants.items()}
        peak = matrix_peak(model.device, model.dtype) if on_gpu else None
        values = {
            "model": work / "model",
            "pairs": random_folder(pairs, work / "pairs") if options.external else "",
            "size": options.size or SHAPES[options.shape].size,
            "batch": options.batch_size,
        }
        for number in range(options.rounds):
            for kind, variant in variants.items():
                seconds[kind].append(seconds_for(variant, options.steps, model.device, CLOCKS[options.clock]))
            if options.external:
                more = max(options.steps, 2)
                seconds.setdefault("external", []).append(external_seconds(options.external, values, 1, more))
            print(
                f"round {number + 1}: "
                + ", ".join(f"{kind} {taken[-1]:.3f} s" for kind, taken in seconds.items())
            )
    found = summary(seconds, memory)
    print("\n" + table(seconds, memory, options.batch_size) + "\n")
    for key, most in TARGETS.items():
        spread = found["ratios"].get(key)
        between = f" ({spread['low']:.3f} to {spread['high']:.3f})" if spread else ""
        print(f"{key}: {found[key]:.3f}{between}, target at most {most}")
    print(
        f"share of a step that is not the network: {found['not_network_share']:.1%}, "
        f"with the reference cache {found['not_network_share_cached']:.1%}"
    )
    busy = {
        kind: round(work / statistics.median(seconds[kind]) / peak, 4)
        for kind, work in work_of.items()
        if peak
    }
    if peak:
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in busy.items())
        print(
            f"matrix products on this card: {peak / 1e12:.0f} TFLOP/s; share of it: {shares or 'not counted'}"
        )
    print("images, policy + reference: " + ", ".join(f"{kind} {p} + {r}" for kind, (p, r) in images.items()))
    print("operations handed out: " + ", ".join(f"{kind} {count:,}" for kind, count in calls.items()))
    device = model.device
    return found | {
        "seconds": seconds,
        "operations": calls,
        "images": images,
        "matrix_peak_tflops": peak and round(peak / 1e12, 1),
        "matrix_share": busy,
        "memory": memory,
        "first_steps_seconds": round(first, 2),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "options": {key: str(value) for key, value in vars(options).items()},
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the figures where `--json` says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = {field.name: field.default for field in dataclasses.fields(ModelSettings)}
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--size", type=int, default=0, help="pixels along an edge; 0: usual for the shape")
    parser.add_argument("--batch-size", type=int, default=1, help="pairs")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="of each kind in a round")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--channels-last", choices=["auto", "on", "off"], default=choices["channels_last"])
    parser.add_argument("--compile", choices=["off", "blocks", "whole"], default=choices["compile"])
    parser.add_argument("--peer", choices=["adapter-off", "second-unet"], default="adapter-off")
    parser.add_argument("--external", help="command of another trainer, see above")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: as torch chooses")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: on a busy machine")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measure(options)
    if options.json:
        write_json(options.json, json.loads(json.dumps(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
