"""What the parts of the cost model are worth, on the embedded world and on a drawing style never trained on.

    python benchmarks/cost_ablation.py [--seeds 0 1 2] [--json FILE] [--table docs/cost-model.md]

Every row trains on `examples/cost_pictures`. "Held out" is the cross-fitting of that training, "unseen style"
the kept model on `examples/unseen_style`. The rows on hard negatives know the harmless images of one thing
in three; those of the other things are the large harmless folder that they may, or may not, learn from too.
A finished row is kept in the work folder and not run again, so that several processes can share the rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from benchmarks.tables import cell, kept, percent, put  # noqa: E402
from scdpo_core.cost.calibration import figures  # noqa: E402
from scdpo_core.cost.encoders import ENCODERS, load_encoder  # noqa: E402
from scdpo_core.cost.feature_cache import FeatureCache  # noqa: E402
from scdpo_core.cost.features import VIEWS, FeatureSet, compute_features  # noqa: E402
from scdpo_core.cost.fit import CostSettings  # noqa: E402
from scdpo_core.cost.mining import mine  # noqa: E402
from scdpo_core.cost.protocol import Encoder  # noqa: E402
from scdpo_core.cost.training import CostTrainingResult, train_cost  # noqa: E402
from scdpo_core.cost.training_images import CostExample, check, list_folders  # noqa: E402
from scdpo_core.io.files import write_json  # noqa: E402

_COLUMNS = {
    "held_auc": "AUC",
    "held_fpr": "harmless above zero",
    "held_recall": "harmful above zero",
    "unseen_auc": "AUC, unseen style",
    "unseen_fpr": "harmless above zero, unseen",
    "unseen_recall": "harmful above zero, unseen",
    "uncalibrated_fpr": "harmless above zero without calibration, unseen",
}


class Pixels:
    """The floor: an image as 16 x 16 coloured pixels, with nothing learned by looking at images."""

    id, hash, size, dim = "pixels", hashlib.sha256(b"16 x 16 pixels").hexdigest(), 16, 16 * 16 * 3

    def prepare(self, image: Image.Image) -> Tensor:
        """float32 [768], less their mean."""
        small = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BOX)
        pixels = torch.from_numpy(np.array(small, np.float32)).flatten() / 255
        return pixels - pixels.mean() + 1e-4

    def encode_prepared(self, pixels: Tensor) -> Tensor:
        """float32 [N, 768], rows of length 1."""
        return F.normalize(pixels, dim=-1)

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """float32 [N, 768], rows of length 1."""
        return self.encode_prepared(torch.stack([self.prepare(image) for image in images]))


@dataclass(frozen=True)
class World:
    """The images, and what an encoder makes of them.

    Attributes:
        examples: to train on.
        unseen: in the style never trained on.
        embed: embeddings of some of them, from the cache where they are known.
        firsts: by seed, the model that looks for hard negatives.
    """

    examples: Sequence[CostExample]
    unseen: Sequence[CostExample]
    embed: Callable[[Sequence[CostExample], int], FeatureSet]
    firsts: dict[int, CostTrainingResult] = field(default_factory=dict)

    @classmethod
    def of(cls, encoder: Encoder, cache: FeatureCache) -> World:
        """Both folders, looked at by one encoder."""
        parts = []
        for name in ("cost_pictures", "unseen_style"):
            folder = ROOT / "examples" / name
            parts.append(check(list_folders(folder / "unsafe", folder / "safe")).examples)
        return cls(
            *parts, lambda examples, views: compute_features(examples, encoder, views=views, cache=cache)
        )


def plain(world: World, settings: CostSettings) -> CostTrainingResult:
    """Train on all images."""
    return train_cost(world.embed(world.examples, VIEWS), settings)


def with_harmless(how: str) -> Callable[[World, CostSettings], CostTrainingResult]:
    """Train with a third of the harmless things, and with 'no', 'hard' or 'random' images of the others."""

    def train(world: World, settings: CostSettings) -> CostTrainingResult:
        few = [example for example in world.examples if example.unsafe or _kept(example)]
        others = [example for example in world.examples if not example.unsafe and not _kept(example)]
        if settings.seed not in world.firsts:
            world.firsts[settings.seed] = train_cost(world.embed(few, VIEWS), settings)
        first = world.firsts[settings.seed]
        chosen = mine(first.model, world.embed(others, 1), others, len(others))
        if how == "no" or not chosen:
            return first
        if how == "random":
            lot = random.Random(settings.seed).sample(others, len(chosen))
            chosen = [replace(example, mined=True) for example in lot]
        return train_cost(world.embed([*few, *chosen], VIEWS), settings)

    return train


def _kept(example: CostExample) -> bool:
    """Whether this thing is among the third; all images of a thing are, or none."""
    thing = example.path.stem.rpartition("-")[0]
    return hashlib.sha256(thing.encode()).digest()[0] % 3 == 0


ROWS: dict[str, tuple[Mapping[str, float], Callable[[World, CostSettings], CostTrainingResult]]] = {
    "both losses": ({}, plain),
    "contrastive only": ({"eta": 0.0}, plain),
    "anchoring only": ({"contrast": 0.0}, plain),
    "a third of the harmless things": ({}, with_harmless("no")),
    "and hard negatives of the others": ({}, with_harmless("hard")),
    "and as many random ones": ({}, with_harmless("random")),
}
"""What each row changes of the settings, and how it trains."""


def measure(row: str, world: World, seed: int) -> dict[str, float]:
    """Train one row and judge it."""
    changes, train = ROWS[row]
    began = time.perf_counter()
    result = train(world, dataclasses.replace(CostSettings(seed=seed), **changes))
    seconds = time.perf_counter() - began
    unseen = world.embed(world.unseen, 1)
    with torch.no_grad():
        costs = result.model(unseen.embeddings[:, 0])[:, 0]
        raw = result.model.raw(unseen.embeddings[:, 0])[:, 0]
    other = figures(costs[unseen.unsafe], costs[~unseen.unsafe])
    return {
        "held_auc": result.figures.auc,
        "held_fpr": result.figures.fpr_at_zero,
        "held_recall": result.figures.recall_at_zero,
        "unseen_auc": other.auc,
        "unseen_fpr": other.fpr_at_zero,
        "unseen_recall": other.recall_at_zero,
        "uncalibrated_fpr": float((raw[~unseen.unsafe] > 0).double().mean()),
        "steps": result.steps,
        "seconds": round(seconds, 2),
    }


def table(found: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> str:
    """The figures as Markdown: mean and, with three seeds or more, half the 95 % interval."""
    lines = [f"| encoder | row | {' | '.join(_COLUMNS.values())} |", "|---" * (2 + len(_COLUMNS)) + "|"]
    for encoder, rows in found.items():
        for row, runs in rows.items():
            columns = {key: [run[key] for run in runs] for key in _COLUMNS}
            cells = [
                cell(found, 3) if key.endswith("auc") else percent(found) for key, found in columns.items()
            ]
            lines.append(f"| {encoder} | {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Train and judge all rows, print the table, and write it where `--table` says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*ENCODERS, Pixels.id]
    parser.add_argument("--encoders", nargs="+", choices=names, default=names)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "cost_ablation", help="what is kept")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--table", type=Path, help="file whose part between the ablation marks is replaced")
    options = parser.parse_args(arguments)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in options.encoders:
        encoder = Pixels() if name == Pixels.id else load_encoder(name)
        world = World.of(encoder, FeatureCache(options.work))
        for row in options.rows:
            files = [options.work / f"{name}-{'-'.join(row.split())}-{seed}.json" for seed in options.seeds]
            runs = [
                kept(file, partial(measure, row, world, seed))
                for file, seed in zip(files, options.seeds, strict=True)
            ]
            found.setdefault(name, {})[row] = runs
            print(f"{name}, {row}: {json.dumps(runs)}", file=sys.stderr)
    text = table(found)
    print(text)
    if options.json:
        write_json(options.json, found)
    if options.table:
        put(options.table, "ablation", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
