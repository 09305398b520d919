"""How fast folders are scored: `python benchmarks/score.py [--json FILE] [--side 512] [--kind jpg]`.

`folder_vs_network`: images a second of a whole folder run (opening, hashing, decoding, scoring, writing the
rows) over the network's own rate on prepared pixels, as a host calls it, in batches; taken in turns in one
process. A folder run gives each processor batches of its own, which the network alone is faster with too;
`folder_vs_side_by_side` is over that rate: what is left to opening and decoding.
`latency_vs_network`: the time for one 1024 x 1024 image, as a host asks for it, over one bare network call.
`cost_vs_open_nsfw`: processor time of one such image over that of open_nsfw alone; of the embedded scorer,
with its two networks, at most 1.8.
`training_seconds`: a cost model on the embedded scorer's features, from folders to the file, nothing kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

from scdpo_core.cost.protocol import SideBySide  # noqa: E402
from scdpo_core.cost.scorers import Scorer, load_scorer  # noqa: E402
from scdpo_core.io.files import write_json  # noqa: E402
from scdpo_core.scoring.job import ScoreJob, finish, score_files  # noqa: E402
from scdpo_core.scoring.run import BATCH  # noqa: E402


def photo(side: int, seed: int) -> Image.Image:
    """An image that compresses as a photograph does: smooth colours, detail and a little noise."""
    rng = np.random.default_rng(seed)
    total = np.zeros((side, side, 3), np.float32)
    for cells, strength in ((4, 90), (16, 40), (64, 18), (side // 2, 8)):
        field = rng.normal(0, strength, (cells, cells, 3))
        small = Image.fromarray(np.clip(field + 128, 0, 255).astype(np.uint8))
        total += np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.float32) - 128
    return Image.fromarray(np.clip(total + 128 + rng.normal(0, 3, total.shape), 0, 255).astype(np.uint8))


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def rates(scorer: Scorer, folder: Path, count: int, rounds: int) -> dict[str, list[float]]:
    """Images a second of the folder run, of the network alone and of it side by side, in turns."""
    views = [scorer.prepare(photo(512, seed)) for seed in range(BATCH)]
    beside = scorer.one_thread() if isinstance(scorer, SideBySide) else None
    alone, threads = beside or scorer, (os.cpu_count() or 1) if beside else 1
    parts = (
        [views[start : start + BATCH // 4] for start in range(0, BATCH, BATCH // 4)] if beside else [views]
    )
    found: dict[str, list[float]] = {"folder": [], "network": [], "side_by_side": []}
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(alone.score_prepared, parts))
        scorer.score_prepared(views)
        for number in range(rounds):
            job = ScoreJob([folder], jsonl=folder.parent / f"{number}.jsonl")
            times = {
                "network": seconds(lambda: [scorer.score_prepared(views) for _ in range(count // BATCH)]),
                "side_by_side": seconds(
                    lambda: list(pool.map(alone.score_prepared, parts * (count // BATCH)))
                ),
                "folder": seconds(lambda job=job: finish(job, score_files(job, scorer))),  # type: ignore[misc]
            }
            for name, time_taken in times.items():
                found[name].append(count / time_taken)
    return found


def latencies(scorer: Scorer, calls: int) -> tuple[float, float]:
    """Median seconds of one 1024 x 1024 image and of the network alone on a prepared one, in turns."""
    image = photo(1024, 1)
    view = [scorer.prepare(image)]
    scorer.score([image])
    whole, bare = [], []
    for _ in range(calls):
        bare.append(seconds(lambda: scorer.score_prepared(view)))
        whole.append(seconds(lambda: scorer.score([image])))
    return statistics.median(whole), statistics.median(bare)


def cost_over(scorer: Scorer, other: Scorer, calls: int) -> float:
    """The processor time of one 1024 x 1024 image over that with another scorer, in turns."""
    image = photo(1024, 1)
    ratios = []
    for _ in range(calls):
        times = []
        for each in (scorer, other):
            began = time.process_time()
            each.score([image])
            times.append(time.process_time() - began)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def training(folder: Path, count: int, side: int) -> dict[str, object]:
    """Seconds to train a cost model on so many images, half of them with a red disc, and how well."""
    for number in range(count):
        image, unsafe = photo(side, number), number % 2 == 0
        if unsafe:
            place = np.random.default_rng(number).integers(side // 8, side // 2, 2)
            box = (*map(int, place), *(int(at) + side // 3 for at in place))
            ImageDraw.Draw(image).ellipse(box, "red")
        path = folder / ("unsafe" if unsafe else "safe") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=92)
    output = folder / "cost.safetensors"
    command = [sys.executable, str(ROOT / "trainer" / "train_cost.py"), "--encoder", "embedded"]
    command += ["--unsafe", str(folder / "unsafe"), "--safe", str(folder / "safe"), "--output", str(output)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = seconds(lambda: subprocess.run(command, check=True, capture_output=True))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "training_seconds": round(taken, 1),
        "training_processor_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
        "training_images": f"{count} of {side} x {side}, jpg",
    }


def _ratio(one: list[float], other: list[float]) -> float:
    """The median over the rounds: what disturbs the machine disturbs both halves of a round."""
    return round(statistics.median(a / b for a, b in zip(one, other, strict=True)), 4)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scorer", default="embedded")
    parser.add_argument("--count", type=int, default=16 * BATCH, help="images in the folder")
    parser.add_argument("--side", type=int, default=512, help="their side, pixels")
    parser.add_argument("--kind", choices=("jpg", "png", "webp"), default="jpg")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=int, default=1000, help="images to train a cost model on; 0 for none")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    count = max(1, options.count // BATCH) * BATCH
    scorer = load_scorer(options.scorer)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        folder.mkdir()
        for seed in range(count):
            photo(options.side, seed).save(folder / f"{seed}.{options.kind}", quality=92)
        found = rates(scorer, folder, count, options.rounds)
        trained = training(Path(temporary) / "train", options.train, 512) if options.train else {}
    one, call = latencies(scorer, 21)
    figures = {
        "folder_vs_network": _ratio(found["folder"], found["network"]),
        "folder_vs_side_by_side": _ratio(found["folder"], found["side_by_side"]),
        "latency_vs_network": round(one / call, 4),
        "cost_vs_open_nsfw": round(cost_over(scorer, load_scorer("open-nsfw"), 21), 4),
        **{f"{name}_per_second": round(statistics.median(each), 2) for name, each in found.items()},
        "latency_ms": round(one * 1000, 2),
        "network_ms": round(call * 1000, 2),
        **trained,
        "images": f"{count} of {options.side} x {options.side}, {options.kind}",
        "rounds": options.rounds,
        "scorer": scorer.id,
        "processors": os.cpu_count(),
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
