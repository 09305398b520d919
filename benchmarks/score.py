"""How fast folders are scored: `python benchmarks/score.py [--json FILE] [--side 512] [--kind jpg]`.

`folder_vs_network`: pictures a second of a whole folder run (opening, hashing, decoding, scoring, writing the
rows) over the network's own rate on prepared pixels, batches of the same size; taken in turns in one process.
`latency_vs_network`: the time for one 1024 x 1024 picture, as a host asks for it, over one bare network call.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from scdpo_core.cost.scorers import Scorer, load_scorer  # noqa: E402
from scdpo_core.files import write_json  # noqa: E402
from scdpo_core.scoring.job import ScoreJob, finish, score_files  # noqa: E402
from scdpo_core.scoring.run import BATCH  # noqa: E402


def photo(side: int, seed: int) -> Image.Image:
    """A picture that compresses as a photograph does: smooth colours, detail and a little noise."""
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


def rates(scorer: Scorer, folder: Path, count: int, rounds: int) -> tuple[list[float], list[float]]:
    """Pictures a second of the folder run and of the network alone, once each in every round."""
    views = [scorer.prepare(photo(512, seed)) for seed in range(BATCH)]
    scorer.score_prepared(views)
    whole, bare = [], []
    for number in range(rounds):
        job = ScoreJob([folder], jsonl=folder.parent / f"{number}.jsonl")
        bare.append(count / seconds(lambda: [scorer.score_prepared(views) for _ in range(count // BATCH)]))
        whole.append(count / seconds(lambda job=job: finish(job, score_files(job, scorer))))  # type: ignore[misc]
    return whole, bare


def latencies(scorer: Scorer, calls: int) -> tuple[float, float]:
    """Median seconds of one 1024 x 1024 picture and of the network alone on a prepared one, in turns."""
    picture = photo(1024, 1)
    view = [scorer.prepare(picture)]
    scorer.score([picture])
    whole, bare = [], []
    for _ in range(calls):
        bare.append(seconds(lambda: scorer.score_prepared(view)))
        whole.append(seconds(lambda: scorer.score([picture])))
    return statistics.median(whole), statistics.median(bare)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scorer", default="embedded")
    parser.add_argument("--count", type=int, default=16 * BATCH, help="pictures in the folder")
    parser.add_argument("--side", type=int, default=512, help="their side, pixels")
    parser.add_argument("--kind", choices=("jpg", "png", "webp"), default="jpg")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    count = max(1, options.count // BATCH) * BATCH
    scorer = load_scorer(options.scorer)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pictures"
        folder.mkdir()
        for seed in range(count):
            photo(options.side, seed).save(folder / f"{seed}.{options.kind}", quality=92)
        whole, bare = rates(scorer, folder, count, options.rounds)
    one, call = latencies(scorer, 21)
    figures = {
        "folder_vs_network": round(statistics.median(w / b for w, b in zip(whole, bare, strict=True)), 4),
        "latency_vs_network": round(one / call, 4),
        "folder_per_second": round(statistics.median(whole), 2),
        "network_per_second": round(statistics.median(bare), 2),
        "latency_ms": round(one * 1000, 2),
        "network_ms": round(call * 1000, 2),
        "pictures": f"{count} of {options.side} x {options.side}, {options.kind}",
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
