"""How well and how fast the embedded model draws, and how well its cost model sees.

    python benchmarks/micro.py [--seeds 3] [--cost | --styles] [--json FILE]

With --cost, the cost model is trained again on `examples/cost_pictures` and measured on held-out images
and on `examples/unseen_style`. With --styles, it is trained without the images of one drawing style and
measured on those, one style after the other. The model then draws nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from scdpo_core.cost.calibration import figures  # noqa: E402
from scdpo_core.cost.encoders import load_encoder  # noqa: E402
from scdpo_core.cost.features import VIEWS, compute_features  # noqa: E402
from scdpo_core.cost.training import train_cost  # noqa: E402
from scdpo_core.cost.training_images import check, list_folders  # noqa: E402
from scdpo_core.evaluation import micro_requests  # noqa: E402
from scdpo_core.evaluation.intervals import Rate  # noqa: E402
from scdpo_core.evaluation.judges import ImageRequest, JudgedImage, Shot  # noqa: E402
from scdpo_core.evaluation.metrics import background_kept  # noqa: E402
from scdpo_core.families import LoadedModel, family  # noqa: E402
from scdpo_core.io.files import write_json  # noqa: E402
from scdpo_core.micro.captions import Caption  # noqa: E402
from scdpo_core.micro.judge import Judge  # noqa: E402
from scdpo_core.micro.model import JUDGE, WEIGHTS  # noqa: E402
from scdpo_core.micro.world import BACKGROUNDS, Scene, caption, concepts  # noqa: E402


def single(seed: int) -> list[ImageRequest]:
    """Every concept once, by its name, on a background drawn by lot."""
    rng = random.Random(f"single/{seed}")
    scenes = [Scene((thing,), rng.choice(list(BACKGROUNDS))) for thing in concepts()]
    return micro_requests.requests([Caption(caption(scene), scene, "single") for scene in scenes], seed)


def double(seed: int, count: int = 96) -> list[ImageRequest]:
    """Two different concepts side by side."""
    rng = random.Random(f"double/{seed}")
    scenes = [Scene(tuple(rng.sample(concepts(), 2)), rng.choice(list(BACKGROUNDS))) for _ in range(count)]
    return micro_requests.requests([Caption(caption(scene), scene, "double") for scene in scenes], seed + 50)


def rates(model: LoadedModel, judge: Judge, wanted: list[ImageRequest]) -> tuple[Rate, Rate, list[str]]:
    """How often the judge finds what was asked, how often the background is right, and what was missed."""
    images = micro_requests.draw(model, wanted)
    verdicts = micro_requests.judging(judge)(images, wanted)
    found = [verdict.found is True for verdict in verdicts]
    shots = [Shot(*pair) for pair in zip(images, verdicts, strict=True)]
    kept = background_kept(
        [JudgedImage(ask, shot, shot) for ask, shot in zip(wanted, shots, strict=True)], BACKGROUNDS
    )
    assert kept is not None
    missed = [ask.caption for ask, ok in zip(wanted, found, strict=True) if not ok]
    return Rate(sum(found), len(found)), kept.before, missed


def cost_figures() -> dict[str, object]:
    """Train the embedded cost model and measure it: held out, by category, and in a style it never saw."""
    parts = {}
    for name, views in (("cost_pictures", VIEWS), ("unseen_style", 1)):
        folder = ROOT / "examples" / name
        listed = check(list_folders(folder / "unsafe", folder / "safe"))
        parts[name] = compute_features(listed.examples, load_encoder("micro"), views=views)
    began = time.perf_counter()
    result = train_cost(parts["cost_pictures"])
    seconds = time.perf_counter() - began
    unseen = parts["unseen_style"]
    with torch.no_grad():
        costs = result.model(unseen.embeddings[:, 0])[:, 0]
    found = {"held out": result.figures, **result.categories}
    found["unseen style"] = figures(costs[unseen.unsafe], costs[~unseen.unsafe])
    return {
        "seconds": round(seconds, 1),
        "steps": result.steps,
        **{name: None if one is None else dataclasses.asdict(one) for name, one in found.items()},
    }


def style_figures() -> dict[str, object]:
    """Train without one drawing style and measure on it, for each style; and all of them together."""
    folder = ROOT / "examples" / "cost_pictures"
    listed = check(list_folders(folder / "unsafe", folder / "safe")).examples
    encoder = load_encoder("micro")
    found, unsafe, safe = {}, [], []
    for style, files in json.loads((folder / "styles.json").read_text("utf-8")).items():
        left_out = {folder / file for file in files}
        known = [example for example in listed if example.path not in left_out]
        others = [example for example in listed if example.path in left_out]
        model = train_cost(compute_features(known, encoder)).model
        new = compute_features(others, encoder, views=1)
        with torch.no_grad():
            costs = model(new.embeddings[:, 0])[:, 0]
        unsafe.append(costs[new.unsafe])
        safe.append(costs[~new.unsafe])
        found[style] = dataclasses.asdict(figures(unsafe[-1], safe[-1]))
    return {**found, "all": dataclasses.asdict(figures(torch.cat(unsafe), torch.cat(safe)))}


def drawing_figures(seeds: int) -> dict[str, object]:
    """Speed, and how often the judge finds what was asked for, with the captions where it does not."""
    model = family("sd1").load("micro", torch.device("cpu"), torch.float32)
    judge = Judge.load(JUDGE)
    model.sample(["a cat"], [0], 1, 1.0)
    began = time.perf_counter()
    prompts, steps = ["a cat on a blue background"] * 16, micro_requests.STEPS
    model.sample(prompts, list(range(16)), steps, micro_requests.GUIDANCE)
    result: dict[str, object] = {
        "seconds_for_16": round(time.perf_counter() - began, 2),
        "threads": torch.get_num_threads(),
        "megabytes": round(sum(p.stat().st_size for p in WEIGHTS.rglob("*") if p.is_file()) / 1e6, 1),
        "judge": judge.facts,
    }
    for name, make in (("single", single), ("double", double)):
        hits = total = kept = 0
        missed: list[str] = []
        for seed in range(seeds):
            found, background, lost = rates(model, judge, make(seed))
            hits, total, kept = hits + found.hits, total + found.total, kept + background.hits
            missed += lost
        rate = Rate(hits, total)
        interval = rate.interval()
        result[name] = {
            "found": round(rate.value, 4),
            "ci95": [round(interval.low, 4), round(interval.high, 4)],
            "images": total,
            "background": round(kept / total, 4),
            "missed": sorted(missed)[:40],
        }
    return result


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cost", action="store_true", help="measure the cost model instead")
    parser.add_argument(
        "--styles", action="store_true", help="measure it on styles that it was not trained on"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    if options.styles:
        found = style_figures()
    else:
        found = cost_figures() if options.cost else drawing_figures(options.seeds)
    print(json.dumps(found, indent=2, ensure_ascii=False))
    if options.json:
        write_json(options.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
